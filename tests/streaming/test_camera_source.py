"""Cameras, with a made-up capture and clock."""

from __future__ import annotations

from fractions import Fraction

import cv2
import numpy as np
import pytest

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming import CameraSource


class StandInCapture:
    def __init__(self, answers: list[np.ndarray | None], *, opened: bool = True, rate: float = 30.0) -> None:
        self.answers = list(answers)
        self.opened, self.rate, self.released = opened, rate, 0

    def isOpened(self) -> bool:
        return self.opened

    def read(self):
        image = self.answers.pop(0) if self.answers else None
        return image is not None, image

    def get(self, property_id: int) -> float:
        return self.rate if property_id == cv2.CAP_PROP_FPS else 0.0

    def release(self) -> None:
        self.released += 1


def _camera(capture: StandInCapture, times: list[float]) -> CameraSource:
    return CameraSource(3, clock=iter(times).__next__, open_capture=lambda _: capture)


def _picture(value: int, channels: int = 3) -> np.ndarray:
    return np.full((4, 6, channels) if channels else (4, 6), value, np.uint8)


def test_times_come_from_the_capture_clock_and_a_lost_read_is_counted() -> None:
    camera = _camera(StandInCapture([_picture(1), None, _picture(2)]), [50.0, 50.5, 51.25])
    frames = iter(camera)
    first, second = next(frames), next(frames)
    assert (first.pts_seconds, first.captured_at_seconds, first.frame_index) == (0.0, 50.0, 0)
    assert (second.pts_seconds, second.captured_at_seconds, second.frame_index) == (1.25, 51.25, 1)
    assert (second.image == 2).all()
    assert camera.faults == {"failed_reads": 1}
    assert camera.is_live
    assert camera.source_id == "camera:3"


@pytest.mark.parametrize("channels", [0, 1])
def test_grey_cameras_become_bgr(channels: int) -> None:
    camera = _camera(StandInCapture([_picture(77, channels)]), [0.0])
    image = next(iter(camera)).image
    assert image.shape == (4, 6, 3)
    assert (image == 77).all()


def test_a_lost_camera_ends_with_an_error_and_invents_no_frame() -> None:
    camera = _camera(StandInCapture([_picture(1)]), [float(second) for second in range(20)])
    frames = iter(camera)
    next(frames)
    with pytest.raises(SourceError, match="camera 3 gives no more pictures after 1 frames"):
        next(frames)


def test_a_missing_camera_is_one_sentence() -> None:
    capture = StandInCapture([], opened=False)
    with pytest.raises(SourceError, match="camera 3 cannot be opened"):
        _camera(capture, [])
    assert capture.released == 1


@pytest.mark.parametrize(
    ("reported", "rate"),
    [(30.0, Fraction(30)), (0.0, None), (float("nan"), None), (29.97, Fraction(2997, 100))],
)
def test_the_reported_rate_is_believed_only_if_it_can_be(reported: float, rate: Fraction | None) -> None:
    assert _camera(StandInCapture([], rate=reported), []).frame_rate == rate


def test_interrupt_ends_a_camera_that_fails_for_ever() -> None:
    camera = _camera(StandInCapture([]), [])
    camera.interrupt()
    assert list(camera) == []
