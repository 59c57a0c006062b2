"""Cameras by index, through OpenCV."""

from __future__ import annotations

import logging
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from time import monotonic
from typing import Any, Protocol

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import SourceError
from pcmoe_det.structures import Frame

__all__ = ["CameraSource", "Capture"]

_log = logging.getLogger(__name__)

# Each failed read of a V4L2 camera already waits for the driver's own time-out, so a few in a row mean
# that it was unplugged; a single one happens when the exposure changes.
_MAX_FAILED_READS_IN_A_ROW = 5


class Capture(Protocol):
    """The part of ``cv2.VideoCapture`` that is used."""

    def isOpened(self) -> bool: ...
    def read(self) -> tuple[bool, Any]: ...
    def get(self, property_id: int) -> float: ...
    def release(self) -> None: ...


class CameraSource:
    """One camera. ``pts_seconds`` counts from the first frame on the capture clock.

    Args:
        index: As the system numbers its cameras, from 0.
        clock: Seconds; read right after each frame.
        open_capture: Opens the camera of that index.

    Raises:
        SourceError: There is no such camera, or it gives no picture.
    """

    is_live = True
    frame_count: int | None = None
    time_base: Fraction | None = None

    def __init__(
        self,
        index: int,
        *,
        clock: Callable[[], float] = monotonic,
        open_capture: Callable[[int], Capture] = cv2.VideoCapture,
    ) -> None:
        self._index = index
        self._clock = clock
        self._faults: Counter[str] = Counter()
        self._interrupted = False
        try:
            self._capture = open_capture(index)
        except cv2.error as error:
            raise SourceError(f"camera {index} cannot be opened: {error}") from error
        if not self._capture.isOpened():
            self._capture.release()
            raise SourceError(f"camera {index} cannot be opened; {_cameras_here()}")

    @property
    def source_id(self) -> str:
        return f"camera:{self._index}"

    @property
    def frame_rate(self) -> Fraction | None:
        rate = self._capture.get(cv2.CAP_PROP_FPS)
        return Fraction(rate).limit_denominator(1001) if np.isfinite(rate) and 0 < rate <= 1000 else None

    @property
    def faults(self) -> Mapping[str, int]:
        """Counts: ``failed_reads``."""
        return dict(self._faults)

    def __iter__(self) -> Iterator[Frame]:
        first_at_seconds: float | None = None
        frame_index = 0
        failed_in_a_row = 0
        while not self._interrupted:
            ok, image = self._capture.read()
            now_seconds = self._clock()
            if not ok or image is None:
                self._faults["failed_reads"] += 1
                failed_in_a_row += 1
                if failed_in_a_row >= _MAX_FAILED_READS_IN_A_ROW and not self._interrupted:
                    raise SourceError(
                        f"camera {self._index} gives no more pictures after {frame_index} frames; "
                        "check its cable, and that no other program uses it"
                    )
                continue
            failed_in_a_row = 0
            if first_at_seconds is None:
                first_at_seconds = now_seconds
            yield Frame(
                image=_as_bgr(image),
                source_id=self.source_id,
                frame_index=frame_index,
                pts_seconds=now_seconds - first_at_seconds,
                captured_at_seconds=now_seconds,
            )
            frame_index += 1

    def interrupt(self) -> None:
        self._interrupted = True

    def close(self) -> None:
        self._capture.release()


def _as_bgr(image: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """``[height, width, 3]`` BGR of what a driver gives, which for a grey camera has one channel or none."""
    if image.ndim == 2 or image.shape[2] == 1:
        return np.asarray(cv2.cvtColor(image, cv2.COLOR_GRAY2BGR), dtype=np.uint8)
    return image


def _cameras_here() -> str:
    if not sys.platform.startswith("linux"):
        return "check that it is plugged in and that no other program uses it"
    cameras = sorted(str(path) for path in Path("/dev").glob("video[0-9]*"))
    if not cameras:
        return "this machine has none (no /dev/video*): plug one in, or give a file with --source"
    return f"video devices here: {', '.join(cameras)}; check that no other program uses it"
