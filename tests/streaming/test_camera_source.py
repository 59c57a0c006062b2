"""Cameras, with a made-up capture and clock."""

from __future__ import annotations

import itertools
import threading
from fractions import Fraction

import cv2
import numpy as np
import pytest

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming.camera_source import CameraSource
from pcmoe_det.streaming.reconnect import Backoff
from pcmoe_det.streaming.source_factory import open_camera
from pcmoe_det.streaming.sources import SourceOptions
from pcmoe_det.structures import Gap

pytestmark = pytest.mark.timeout(30)

_chance = np.random.default_rng(11)


class StandInCapture:
    """Gives its answers, the second and later ones once ``go`` is set, and then fails for ever."""

    def __init__(self, answers: list, *, opened: bool = True, rate: float = 30.0, go: bool = True) -> None:
        self.answers = list(answers)
        self.opened, self.rate = opened, rate
        self.released = threading.Event()
        self.go = threading.Event()
        self.reads = 0
        if go:
            self.go.set()

    def isOpened(self) -> bool:
        return self.opened

    def read(self):
        self.reads += 1
        if self.reads > 1:
            self.go.wait()
        image = self.answers.pop(0) if self.answers else None
        return image is not None, image

    def get(self, property_id: int) -> float:
        return self.rate if property_id == cv2.CAP_PROP_FPS else 0.0

    def release(self) -> None:
        self.released.set()


def _picture(channels: int = 3, *, width: int = 6, value: int | None = None) -> np.ndarray:
    shape = (4, width, channels) if channels else (4, width)
    return _chance.integers(0, 255, shape, np.uint8) if value is None else np.full(shape, value, np.uint8)


def _camera(*captures: StandInCapture, times=None, limit: int | None = 0, **options) -> CameraSource:
    waiting = list(captures)
    captures[0].go.clear()  # what comes before the iteration makes room for newer pictures
    times = itertools.count(50.0) if times is None else iter(times)
    return CameraSource(
        3,
        options=SourceOptions(reconnect_limit=limit, **options),
        clock=times.__next__,
        open_capture=lambda _: waiting.pop(0),
        backoff=Backoff(limit, first_seconds=0.0),
    )


def _read(camera: CameraSource, first: StandInCapture) -> tuple[list, str]:
    frames = []
    with pytest.raises(SourceError) as caught:
        for frame in camera:
            frames.append(frame)
            first.go.set()
    return frames, str(caught.value)


def test_times_come_from_the_capture_clock_and_a_lost_read_is_counted() -> None:
    capture = StandInCapture([_picture(), None, _picture(value=2)])
    camera = _camera(capture, times=itertools.chain([50.0, 50.5, 51.25], itertools.count(60.0)))
    first, second = _read(camera, capture)[0]
    assert (first.pts_seconds, first.captured_at_seconds, first.frame_index) == (0.0, 50.0, 0)
    assert (second.pts_seconds, second.captured_at_seconds, second.frame_index) == (1.25, 51.25, 1)
    assert (second.image == 2).all()
    assert camera.faults["failed_reads"] == 1 + 5  # five in a row are the end
    assert camera.is_live
    assert camera.source_id == "camera:3"
    assert camera.frame_rate == 30


@pytest.mark.parametrize(("channels", "depth"), [(0, np.uint8), (1, np.uint8), (4, np.uint8), (0, np.uint16)])
def test_grey_alpha_and_16_bit_cameras_become_bgr(channels: int, depth: type) -> None:
    picture = _picture(channels, value=77).astype(depth) * (257 if depth is np.uint16 else 1)
    capture = StandInCapture([picture])
    image = _read(_camera(capture), capture)[0][0].image
    assert image.shape == (4, 6, 3)
    assert image.dtype == np.uint8
    assert (image == 77).all()


def test_a_lost_camera_without_attempts_ends_with_an_error_and_invents_no_frame() -> None:
    capture = StandInCapture([_picture()])
    frames, message = _read(_camera(capture), capture)
    assert len(frames) == 1
    assert "camera:3 was lost after 1 frames: it gives no pictures" in message
    assert capture.released.wait(5)


def test_an_unplugged_camera_is_opened_again_with_another_size() -> None:
    first = StandInCapture([_picture(), _picture()])
    gone = StandInCapture([], opened=False)
    second = StandInCapture([_picture(width=8), _picture(width=8)])
    camera = _camera(first, gone, second, limit=2)
    frames, message = _read(camera, first)
    assert [frame.frame_index for frame in frames] == [0, 1, 2, 3]
    assert [frame.gap is None for frame in frames] == [True, True, False, True]
    gap = frames[2].gap
    assert gap == Gap("reconnected", frames[2].captured_at_seconds - frames[1].captured_at_seconds)
    assert frames[2].pts_seconds - frames[1].pts_seconds == gap.seconds
    assert [frame.image.shape[1] for frame in frames] == [6, 6, 8, 8]
    assert camera.faults["reconnects"] == 1
    assert camera.faults["failed_reconnects"] == 1 + 2
    assert all(capture.released.wait(5) for capture in (first, gone, second))
    assert "2 attempts to get it back failed" in message


def test_a_frozen_camera_is_opened_again() -> None:
    first = StandInCapture([_picture(value=9) for _ in range(30)])
    second = StandInCapture([_picture()])
    camera = _camera(first, second, limit=1, frozen_after_seconds=4.0)
    frames, _ = _read(camera, first)
    assert len(frames) == 5 + 1  # 50 to 54 s, and one of the second connection
    assert camera.faults["frozen"] == 1
    assert frames[5].gap is not None


def test_a_missing_camera_is_one_sentence() -> None:
    capture = StandInCapture([], opened=False)
    with pytest.raises(SourceError, match="camera:3 cannot be opened") as caught:
        _camera(capture)
    assert "\n" not in str(caught.value)
    assert capture.released.wait(5)


def test_a_real_index_that_is_not_there_is_refused() -> None:
    with pytest.raises(SourceError, match="camera:97 cannot be opened"):
        open_camera(97)


def test_opencv_that_refuses_is_one_sentence() -> None:
    def refuse(index: int) -> StandInCapture:
        raise cv2.error("no back end")

    with pytest.raises(SourceError, match="camera:0 cannot be opened: OpenCV refuses it"):
        CameraSource(0, open_capture=refuse)


def test_a_camera_that_gives_no_picture_is_refused() -> None:
    with pytest.raises(SourceError, match="camera:0 cannot be opened: it gives no pictures"):
        CameraSource(0, open_capture=lambda _: StandInCapture([]))


@pytest.mark.parametrize(
    ("reported", "rate"),
    [(30.0, Fraction(30)), (0.0, None), (float("nan"), None), (29.97, Fraction(2997, 100))],
)
def test_the_reported_rate_is_believed_only_if_it_can_be(reported: float, rate: Fraction | None) -> None:
    camera = _camera(StandInCapture([_picture()], rate=reported))
    assert camera.frame_rate == rate
    camera.close()


def test_interrupt_ends_a_camera_whose_driver_hangs() -> None:
    capture = StandInCapture([_picture()])
    camera = _camera(capture)
    frames: list = []
    reader = threading.Thread(target=lambda: frames.extend(camera), daemon=True)
    reader.start()
    camera.interrupt()
    reader.join(5)
    assert not reader.is_alive()
    assert len(frames) <= 1
    assert not capture.released.is_set()  # never released under a thread that reads from it
    capture.go.set()
    assert capture.released.wait(5)
    camera.close()
