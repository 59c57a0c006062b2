"""Stable ids: objects that cross, hide, change their place in the list, and gaps."""

from __future__ import annotations

import importlib
from dataclasses import replace

import numpy as np
import pytest

from pcmoe_det.errors import UsageError
from pcmoe_det.streaming.tracking import TRACKER_NAMES, make_tracker
from pcmoe_det.structures import Detections, Gap
from tests.streaming.stand_ins import detections, frame

PEDESTRIAN, CAR, TRUCK = 0, 1, 2


def _car(left: float, top: float = 100, *, score: float = 0.8, kind: int = CAR) -> tuple[float, ...]:
    return (left, top, left + 60, top + 40, score, kind)


@pytest.fixture(params=TRACKER_NAMES)
def name(request: pytest.FixtureRequest) -> str:
    pytest.importorskip("trackers")
    return request.param


class Follower:
    """Feeds frames of a made-up scene, in a new order of detections each time."""

    def __init__(self, name: str, **options) -> None:
        self.tracker = make_tracker(name, **options)
        self.index = 0
        self._random = np.random.default_rng(3)

    def see(self, *rows, gap: Gap | None = None) -> list[int]:
        """Ids of ``rows``, in the order given here."""
        order = self._random.permutation(len(rows))
        seen = replace(frame(0, pts_seconds=self.index / 25), gap=gap)
        given = detections(*[rows[place] for place in order])
        answer = self.tracker.update(seen, given)
        assert answer.boxes_xyxy is given.boxes_xyxy  # the detections themselves stay as they are
        assert answer.scores is given.scores
        self.index += 1
        ids = np.empty(len(rows), np.int64)
        ids[order] = answer.track_ids
        return ids.tolist()


def test_crossing_objects_keep_their_ids(name: str) -> None:
    follower = Follower(name, frame_rate=25)
    seen = [
        follower.see(
            _car(20 + 8 * index, 100),
            _car(580 - 8 * index, 115),
            _car(300, 60 + 3 * index, kind=PEDESTRIAN),
        )
        for index in range(70)
    ]
    assert seen[0] == [-1, -1, -1]  # one frame makes no object
    first = seen[1]
    assert len(set(first)) == 3
    assert min(first) >= 1
    assert seen[1:] == [first] * 69


def test_classes_are_kept_apart(name: str) -> None:
    """Two boxes at one place are two objects if they are of two classes."""
    follower = Follower(name)
    seen = [follower.see(_car(100 + index), _car(100 + index, kind=TRUCK)) for index in range(10)]
    assert len(set(seen[-1])) == 2
    assert seen[1:] == [seen[-1]] * 9


def test_an_object_that_hides_for_a_moment_keeps_its_id(name: str) -> None:
    follower = Follower(name, frame_rate=25)
    for index in range(20):
        (before,) = follower.see(_car(20 + 3 * index))
    for _ in range(8):
        assert follower.see() == []
    for index in range(28, 40):
        (after,) = follower.see(_car(20 + 3 * index))
    assert after == before >= 1


def test_an_object_that_comes_back_later_is_a_new_one(name: str) -> None:
    follower = Follower(name, frame_rate=25)
    for _ in range(5):
        (before,) = follower.see(_car(100))
    for _ in range(60):
        follower.see()
    for _ in range(5):
        (after,) = follower.see(_car(100))
    assert after > before >= 1


@pytest.mark.parametrize("how", ["reset", "gap"])
def test_after_a_gap_ids_are_new(name: str, how: str) -> None:
    follower = Follower(name)
    for _ in range(5):
        before = follower.see(_car(100), _car(300))
    gap = None
    if how == "reset":
        follower.tracker.reset()
    else:
        gap = Gap("reconnected", 0.0)
    after = [follower.see(_car(100), _car(300), gap=gap if index == 0 else None) for index in range(5)]
    assert after[0] == [-1, -1]
    assert not {*after[-1]} & {*before}
    assert len({*after[-1]}) == 2
    assert min(after[-1]) >= 1


def test_dropped_frames_are_bridged_by_their_times(name: str) -> None:
    """A car of 60 pixels drives 10 a frame; seven frames later it overlaps nothing of where it was."""
    tracker = make_tracker(name, frame_rate=25)
    seen = [
        tracker.update(frame(0, pts_seconds=index / 25), detections(_car(10 * index))).track_ids.tolist()
        for index in [*range(25), *range(32, 50)]
    ]
    assert seen[1:] == [seen[1]] * 42
    assert seen[1] != [-1]


@pytest.mark.parametrize(
    "times",
    [[None] * 12, [0.0] * 12, [10.0 - index for index in range(12)], [None, 5.0] * 6],
    ids=["none", "repeating", "backwards", "mixed"],
)
def test_useless_times_count_as_frames(name: str, times: list[float | None]) -> None:
    tracker = make_tracker(name, frame_rate=25)
    seen = [
        tracker.update(frame(0, pts_seconds=time), detections(_car(100 + index))).track_ids.tolist()
        for index, time in enumerate(times)
    ]
    assert seen[1:] == [seen[1]] * 11
    assert seen[1] != [-1]


def test_weak_detections_start_nothing() -> None:
    pytest.importorskip("trackers")
    follower = Follower("bytetrack")
    assert [follower.see(_car(100, score=0.35)) for _ in range(5)] == [[-1]] * 5
    for _ in range(3):
        strong = follower.see(_car(100, score=0.9))
    assert follower.see(_car(100, score=0.35)) == strong != [-1]


def test_nothing_at_all(name: str) -> None:
    tracker = make_tracker(name)
    for index in range(3):
        answer = tracker.update(frame(0, pts_seconds=index / 25), detections())
        assert answer.track_ids is not None
        assert answer.track_ids.shape == (0,)
        assert answer.track_ids.dtype == np.int64


def test_what_is_kept_does_not_grow(name: str) -> None:
    """A new object every third frame, each seen for three frames: 400 objects, about ten kept."""
    follower = Follower(name, frame_rate=25)
    ids = set()
    for index in range(1200):
        ids.update(follower.see(_car(60 * (index // 3 % 20), 400 * (index // 3 % 2), kind=index // 3 % 3)))
    assert len(ids - {-1}) >= 390
    tracker = follower.tracker
    kept = sum(len(own.tracks) for own in tracker._trackers.values())
    assert kept <= 25
    assert sum(len(numbers) for numbers in tracker._numbers.values()) <= kept
    for _ in range(60):
        follower.see()
    assert not tracker._trackers
    assert not tracker._numbers


def test_two_trackers_are_independent(name: str) -> None:
    first, second = Follower(name), Follower(name)
    for _ in range(3):
        ids = first.see(_car(100)), second.see(_car(100), _car(300))
    assert ids[0] == [1]
    assert sorted(ids[1]) == [1, 2]


def test_an_unknown_tracker() -> None:
    with pytest.raises(UsageError, match="no tracker 'kalman'; there are bytetrack"):
        make_tracker("kalman")


def test_without_the_package_the_message_tells_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    def missing(module: str) -> None:
        raise ModuleNotFoundError(f"No module named '{module}'")

    monkeypatch.setattr(importlib, "import_module", missing)
    with pytest.raises(UsageError, match=r"pip install 'pcmoe_det\[track\]'"):
        make_tracker("bytetrack")


def test_answers_have_one_id_each(name: str) -> None:
    """Many overlapping boxes: every detection gets an answer, and no id is given twice in a frame."""
    tracker = make_tracker(name)
    random = np.random.default_rng(0)
    for index in range(20):
        corners = random.uniform(0, 100, (40, 2))
        found = Detections(
            boxes_xyxy=np.hstack([corners, corners + 50]).astype(np.float32),
            scores=random.uniform(0.3, 1, 40).astype(np.float32),
            class_ids=random.integers(0, 3, 40),
        )
        ids = tracker.update(frame(0, pts_seconds=index / 25), found).track_ids
        assert ids is not None
        given = ids[ids >= 0].tolist()
        assert len(given) == len(set(given))
    assert given
