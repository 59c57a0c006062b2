"""Pictures are made only while somebody watches, small and seldom enough."""

from __future__ import annotations

import threading

import cv2
import numpy as np
import pytest

from pcmoe_det.streaming.preview.pictures import WATCHED_SECONDS, PictureEncoder, PictureFeed
from tests.streaming.preview.made import FakeClock

CHEAP = 1e-9  # cost factor: nothing but the rate limit counts


def feed(clock: FakeClock) -> PictureFeed:
    return PictureEncoder(clock=clock).feed()


def flat(value: int, *, width: int = 32, height: int = 24) -> np.ndarray:
    return np.full((height, width, 3), value, np.uint8)


def ask(pictures: PictureFeed, after: int = 0):
    return pictures.newest(after=after, timeout_seconds=0)


def test_without_a_viewer_nothing_is_wanted_or_encoded() -> None:
    clock = FakeClock()
    pictures = feed(clock)
    assert not pictures.is_wanted
    pictures.offer(flat(100), frame_index=0)
    pictures.encode(cost_factor=CHEAP)
    assert ask(pictures) is None


def test_asking_makes_pictures_for_a_while() -> None:
    clock = FakeClock()
    pictures = feed(clock)
    assert ask(pictures) is None
    assert pictures.is_wanted
    pictures.offer(flat(100), frame_index=7)
    assert not pictures.is_wanted  # one at a time
    pictures.encode(cost_factor=CHEAP)
    picture = ask(pictures)
    assert (picture.sequence, picture.frame_index) == (1, 7)
    shown = cv2.imdecode(np.frombuffer(picture.data, np.uint8), cv2.IMREAD_COLOR)
    assert shown.shape == (24, 32, 3)
    assert abs(float(shown.mean()) - 100) < 2
    assert ask(pictures, after=1) is None
    clock.seconds += WATCHED_SECONDS - 0.1
    assert pictures.is_wanted
    clock.seconds += 0.2
    assert not pictures.is_watched
    assert not pictures.is_wanted


@pytest.mark.parametrize("frame_rate", [12, 25, 50, 1000])
def test_there_are_at_most_ten_a_second(frame_rate: int) -> None:
    clock = FakeClock()
    pictures = feed(clock)
    for _ in range(4 * frame_rate):
        ask(pictures)
        pictures.offer(flat(1), frame_index=0)
        pictures.encode(cost_factor=CHEAP)
        clock.seconds += 1 / frame_rate
    assert 38 <= ask(pictures).sequence <= 42


def test_costly_pictures_come_less_often() -> None:
    clock = FakeClock()
    pictures = feed(clock)
    ask(pictures)
    pictures.offer(flat(1), frame_index=0)
    pictures.encode(cost_factor=6000)  # a picture costs 0.5 ms and more: a pause of 3 s, half of it at first
    clock.seconds += 1.4
    assert not pictures.is_wanted


@pytest.mark.parametrize(
    ("width", "height", "expected"),
    [(1280, 720, (540, 960)), (1920, 1080, (540, 960)), (3840, 2160, (540, 960)), (961, 3, (3, 960)),
     (960, 720, (720, 960)), (1, 1, (1, 1)), (5000, 2, (1, 960))],
)  # fmt: skip
def test_wide_pictures_are_shrunk(width: int, height: int, expected: tuple[int, int]) -> None:
    pictures = feed(FakeClock())
    ask(pictures)
    pictures.offer(flat(50, width=width, height=height), frame_index=0)
    pictures.encode(cost_factor=CHEAP)
    data = np.frombuffer(ask(pictures).data, np.uint8)
    assert cv2.imdecode(data, cv2.IMREAD_COLOR).shape[:2] == expected


def test_the_given_picture_is_not_written_to() -> None:
    pictures = feed(FakeClock())
    picture = flat(50, width=1920, height=1080)
    picture.setflags(write=False)
    ask(pictures)
    pictures.offer(picture, frame_index=0)
    pictures.encode(cost_factor=CHEAP)
    assert ask(pictures) is not None


def test_a_picture_that_cannot_be_encoded_is_followed_by_others() -> None:
    clock = FakeClock()
    pictures = feed(clock)
    ask(pictures)
    pictures.offer(np.zeros((0, 0, 3), np.uint8), frame_index=0)
    with pytest.raises(cv2.error):
        pictures.encode(cost_factor=CHEAP)
    clock.seconds += 1
    pictures.offer(flat(1), frame_index=1)
    pictures.encode(cost_factor=CHEAP)
    assert ask(pictures).frame_index == 1


@pytest.mark.timeout(30)
def test_the_thread_encodes_for_whoever_waits_and_lets_go_at_the_end() -> None:
    encoder = PictureEncoder()
    encoder.start()
    pictures = encoder.feed()
    found = []
    waiting = threading.Thread(target=lambda: found.append(pictures.newest(timeout_seconds=20)))
    waiting.start()
    while not pictures.is_wanted:
        pass
    pictures.offer(flat(9), frame_index=3)
    waiting.join(20)
    assert found[0].frame_index == 3
    late = threading.Thread(target=lambda: found.append(pictures.newest(after=1, timeout_seconds=25)))
    late.start()
    encoder.stop(timeout_seconds=5)
    late.join(5)
    assert not late.is_alive()
    assert found[1] is None
