"""The generated street: determinism, exact labels, steady tracks, weather."""

from __future__ import annotations

import hashlib
import itertools
from collections import Counter
from typing import Any

import numpy as np
import pytest

from pcmoe_det.datasets.street_render import StreetRenderer
from pcmoe_det.datasets.street_traffic import Traffic
from pcmoe_det.datasets.street_video import StreetFrame, StreetVideo
from pcmoe_det.datasets.street_weather import SHIFTS, conditions_at, frame_attributes
from pcmoe_det.errors import UsageError
from pcmoe_det.structures import SHIFT_CLASSES


def small(seed: int, num_frames: int = 4, **arguments: Any) -> StreetVideo:
    settings: dict[str, Any] = {"width": 320, "height": 180, "shift": "clear"}
    return StreetVideo(seed, num_frames=num_frames, **(settings | arguments))


def digest(frame: StreetFrame) -> str:
    content = frame.image.tobytes() + repr((frame.labels, sorted(frame.attributes.items()))).encode()
    return hashlib.sha256(content).hexdigest()


def test_same_seed_gives_the_same_frames_again() -> None:
    video = small(5, shift="clear_to_rainy")
    first = [digest(frame) for frame in video]
    assert first == [digest(frame) for frame in video]
    assert first == [digest(frame) for frame in small(5, shift="clear_to_rainy")]
    assert len(set(first)) == 4


def test_seeds_give_different_streets() -> None:
    pictures = [next(iter(small(seed))).image.astype(np.int16) for seed in range(4)]
    for one, other in itertools.combinations(pictures, 2):
        assert np.abs(one - other).mean() > 10


def test_frames_have_the_promised_form() -> None:
    frames = list(small(1, 3))
    assert [frame.frame_index for frame in frames] == [0, 1, 2]
    for frame in frames:
        assert frame.image.shape == (180, 320, 3)
        assert frame.image.dtype == np.uint8
        record = frame.as_scalabel()
        assert record["size"] == {"width": 320, "height": 180}
        assert record["name"] == f"{frame.frame_index:08d}_img_front.jpg"
        assert record["attributes"]["annotated_categories"] == ",".join(SHIFT_CLASSES)
        assert all(isinstance(value, str) for value in record["attributes"].values())


@pytest.mark.parametrize("seed", [2, 7, 11])
def test_boxes_bound_the_visible_pixels(seed: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every object is drawn once more, flat and alone, in drawing order; its pixels are counted plainly."""
    numbers: dict[int, np.ndarray[Any, Any]] = {}
    laid: list[tuple[int, int, int, Any]] = []
    original = StreetRenderer._lay

    def watch(self: StreetRenderer, patch: Any, canvas: Any, number: int) -> int:
        laid.append((number, patch.x, patch.y, patch.image[..., 3] > 127))
        return original(self, patch, canvas, number)

    monkeypatch.setattr(StreetRenderer, "_lay", watch)
    video = small(seed, 1, width=640, height=360)
    frame = next(iter(video))
    # Later objects hide earlier ones. (Buildings and the bonnet may hide more: then boxes are smaller.)
    owner = np.zeros((360, 640), np.int64)
    for number, x, y, inside in laid:
        view = owner[y : y + inside.shape[0], x : x + inside.shape[1]]
        view[inside] = number
    for number in range(1, int(owner.max()) + 1):
        rows, columns = np.nonzero(owner == number)
        if len(rows):
            numbers[number] = np.array([columns.min(), rows.min(), columns.max() + 1, rows.max() + 1])
    assert frame.labels
    exact = 0
    for label in frame.labels:
        box = np.array(label.box_xyxy)
        assert 0 <= box[0] < box[2] <= 640
        assert 0 <= box[1] < box[3] <= 360
        exact += any(np.array_equal(box, other) for other in numbers.values())
    assert exact >= 0.8 * len(frame.labels)


def test_labels_agree_with_the_number_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    kept: list[tuple[np.ndarray[Any, Any], list[Any]]] = []
    original = StreetRenderer.render

    def watch(self: StreetRenderer, *arguments: Any) -> Any:
        image, seen = original(self, *arguments)
        kept.append((self.ids.copy(), seen))
        return image, seen

    monkeypatch.setattr(StreetRenderer, "render", watch)
    for _ in small(3, 6, width=480, height=270):
        pass
    for ids, seen in kept:
        present = [number for number in np.unique(ids) if number > 0]
        boxes = {
            (n.min(), m.min(), n.max() + 1, m.max() + 1) for m, n in (np.nonzero(ids == k) for k in present)
        }
        assert {item.box for item in seen} <= {tuple(int(v) for v in box) for box in boxes}
        assert sum(item.visible_pixels for item in seen) <= int(np.count_nonzero(ids))


def test_a_picture_without_an_object_differs_inside_its_box(monkeypatch: pytest.MonkeyPatch) -> None:
    """Independent of how labels are made: leave one object out, and look where the picture changes."""
    video = small(4, 1, width=640, height=360, camera="dashcam")
    frame = next(iter(video))
    largest = sorted(frame.labels, key=lambda label: label.box_xyxy[0] - label.box_xyxy[2])[:4]
    everyone = Traffic.movers
    for label in largest:
        monkeypatch.setattr(
            Traffic,
            "movers",
            lambda self, out=label.track_id: [m for m in everyone(self) if m.track_id != out],
        )
        other = next(iter(video)).image
        changed = np.abs(frame.image.astype(np.int16) - other).max(axis=2) > 8
        x1, y1, x2, y2 = (int(v) for v in label.box_xyxy)
        assert changed[y1:y2, x1:x2].mean() > 0.3
        for edge in (changed[y1:y2, x1 : x1 + 3], changed[y1:y2, x2 - 3 : x2], changed[y1 : y1 + 3, x1:x2]):
            assert edge.any()
        # Only its shadow and the lens' softness reach further.
        changed[max(0, y1 - 2) : y2 + 2, max(0, x1 - 2) : x2 + 2] = False
        assert changed[: max(0, y1 - 2)].mean() < 0.002


def test_hidden_and_tiny_objects_are_not_labelled() -> None:
    for frame in small(6, 5, width=640, height=360, density=2.0):
        for label in frame.labels:
            x1, y1, x2, y2 = label.box_xyxy
            assert label.occlusion <= 0.75
            assert (x2 - x1) * (y2 - y1) >= 30
            assert min(x2 - x1, y2 - y1) >= 3


def test_all_classes_occur() -> None:
    counts: Counter[str] = Counter()
    for seed in range(6):
        for frame in small(seed, 2, width=480, height=270):
            counts.update(label.category for label in frame.labels)
    assert set(counts) == set(SHIFT_CLASSES)


@pytest.mark.parametrize("camera", ["dashcam", "roadside"])
def test_tracks_keep_id_and_class_and_move_smoothly(camera: Any) -> None:
    classes: dict[int, int] = {}
    before: dict[int, tuple[float, ...]] = {}
    jumps: list[float] = []
    for frame in small(8, 25, camera=camera, fps=20.0):
        ids = [label.track_id for label in frame.labels]
        assert len(ids) == len(set(ids))
        now = {label.track_id: label.box_xyxy for label in frame.labels}
        for label in frame.labels:
            assert classes.setdefault(label.track_id, label.class_id) == label.class_id
        for track, (x1, y1, x2, y2) in now.items():
            if track in before:
                a1, b1, a2, b2 = before[track]
                size = max(x2 - x1, y2 - y1, 8.0)
                jumps.append(max(abs(x1 + x2 - a1 - a2), abs(y1 + y2 - b1 - b2)) / 2 / size)
        before = now
    assert len(jumps) > 50
    assert np.quantile(jumps, 0.95) < 0.5


def test_night_is_darker_than_day_and_fog_is_flatter() -> None:
    def look(shift: Any) -> tuple[float, float]:
        image = next(iter(small(9, 1, shift=shift, camera="dashcam"))).image
        return float(image.mean()), float(image[60:120].std())

    day, night, fog = look("clear"), look("night"), look("foggy")
    assert night[0] < 0.6 * day[0]
    assert fog[1] < day[1]


def test_a_shift_runs_from_day_to_night() -> None:
    frames = list(small(10, 12, shift="daytime_to_night", camera="dashcam"))
    times = [frame.attributes["timeofday_coarse"] for frame in frames]
    assert times[0] == "daytime"
    assert times[-1] == "night"
    assert [time for time, _ in itertools.groupby(times)] == ["daytime", "dawn/dusk", "night"]
    assert frames[-1].image.mean() < 0.8 * frames[0].image.mean()


@pytest.mark.parametrize("shift", [name for name in SHIFTS if name != "random"])
def test_attributes_follow_the_conditions(shift: str) -> None:
    for fraction in (0.0, 0.5, 1.0):
        attributes = frame_attributes(
            conditions_at(shift, fraction), view="front", town="01", sun_azimuth=0.0
        )
        assert attributes["weather_coarse"] in {"clear", "cloudy", "overcast", "rainy", "foggy"}
        assert attributes["timeofday_coarse"] in {"daytime", "dawn/dusk", "night"}
        assert float(attributes["fog_density"]) >= 0
    last = frame_attributes(conditions_at(shift, 1.0), view="front", town="01", sun_azimuth=0.0)
    for word, key in (
        ("rainy", "weather_coarse"),
        ("foggy", "weather_coarse"),
        ("night", "timeofday_coarse"),
    ):
        if shift.endswith(word):
            assert last[key] == word


@pytest.mark.parametrize(
    "arguments",
    [
        {"num_frames": 0}, {"width": 10}, {"height": 9999}, {"fps": 0.0}, {"density": 0.0}, {"density": 9.0},
        {"shift": "snowy"}, {"camera": "drone"}, {"view": "back"},
    ],
    ids=lambda a: f"{next(iter(a))}={next(iter(a.values()))}",
)  # fmt: skip
def test_bad_arguments_are_refused(arguments: dict[str, Any]) -> None:
    with pytest.raises(UsageError, match=str(next(iter(arguments.values())))):
        small(0, **arguments)


def test_negative_seed_is_refused() -> None:
    with pytest.raises(UsageError, match="-1"):
        small(-1)
