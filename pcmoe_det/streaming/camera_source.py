"""Cameras by index, through OpenCV."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from fractions import Fraction
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming.decoding import check_picture_size
from pcmoe_det.streaming.faults import FaultCounter
from pcmoe_det.streaming.live_connection import ConnectionFacts, Picture
from pcmoe_det.streaming.live_source import LiveSource
from pcmoe_det.streaming.reconnect import Backoff
from pcmoe_det.streaming.sources import SourceOptions

__all__ = ["CameraSource", "Capture"]

# Each failed read of a V4L2 camera already waits for the driver's own time-out, so a few in a row mean
# that it was unplugged; a single one happens when the exposure changes.
_MAX_FAILED_READS_IN_A_ROW = 5
_DEFAULT_OPTIONS = SourceOptions()


class Capture(Protocol):
    """The part of ``cv2.VideoCapture`` that is used, from one thread."""

    def isOpened(self) -> bool: ...
    def read(self) -> tuple[bool, Any]: ...
    def get(self, property_id: int) -> float: ...
    def release(self) -> None: ...


class CameraSource(LiveSource):
    """One camera, opened again by the same index when it is lost or frozen.

    ``pts_seconds`` counts from the first frame on the capture clock. ``faults`` also counts
    ``failed_reads``.

    Args:
        index: As the system numbers its cameras, from 0.
        options: Time-outs and limits.
        clock: Seconds; read right after each frame.
        open_capture: Opens the camera of that index; called in the thread that reads it.
        backoff: Delays between attempts.

    Raises:
        SourceError: There is no such camera, or it gives no picture.
    """

    def __init__(
        self,
        index: int,
        *,
        options: SourceOptions = _DEFAULT_OPTIONS,
        clock: Callable[[], float] = monotonic,
        open_capture: Callable[[int], Capture] = cv2.VideoCapture,
        backoff: Backoff | None = None,
    ) -> None:
        super().__init__(
            lambda faults: _CameraConnection(index, clock=clock, open_capture=open_capture, faults=faults),
            source_id=f"camera:{index}",
            options=options,
            clock=clock,
            backoff=backoff,
        )


class _CameraConnection:
    """An open camera."""

    def __init__(
        self,
        index: int,
        *,
        clock: Callable[[], float],
        open_capture: Callable[[int], Capture],
        faults: FaultCounter,
    ) -> None:
        self._clock = clock
        self._faults = faults
        try:
            self._capture = open_capture(index)
        except cv2.error as error:
            raise SourceError(f"OpenCV refuses it: {error}") from error
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(_cameras_here())
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        believable = np.isfinite(rate) and 0 < rate <= 1000
        self._facts = ConnectionFacts(
            frame_rate=Fraction(rate).limit_denominator(1001) if believable else None
        )

    @property
    def facts(self) -> ConnectionFacts:
        return self._facts

    def pictures(self) -> Iterator[Picture]:
        failed_in_a_row = 0
        while True:
            ok, image = self._capture.read()
            now_seconds = self._clock()
            if not ok or image is None or not image.size:
                self._faults.add("failed_reads")
                failed_in_a_row += 1
                if failed_in_a_row >= _MAX_FAILED_READS_IN_A_ROW:
                    raise SourceError(
                        "it gives no pictures; check its cable, and that no other program uses it"
                    )
                continue
            failed_in_a_row = 0
            check_picture_size(image.shape[1], image.shape[0], what="a picture that it gives")
            yield Picture(image=_as_bgr(image), stamp_seconds=None, captured_at_seconds=now_seconds)

    def close(self) -> None:
        self._capture.release()


def _as_bgr(image: NDArray[Any]) -> NDArray[np.uint8]:
    """``[height, width, 3]`` BGR of what a driver gives, which for a grey camera has one channel or none."""
    if image.dtype == np.uint16:
        image = (image >> 8).astype(np.uint8)
    if image.ndim == 2 or image.shape[2] == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    return np.ascontiguousarray(image[:, :, :3], dtype=np.uint8)


def _cameras_here() -> str:
    if not sys.platform.startswith("linux"):
        return "check that it is plugged in and that no other program uses it"
    cameras = sorted(str(path) for path in Path("/dev").glob("video[0-9]*"))
    if not cameras:
        return "this machine has none (no /dev/video*): plug one in, or give a file with --source"
    return f"video devices here: {', '.join(cameras)}; check that no other program uses it"
