"""Stable ids for objects from frame to frame.

The association itself is done by the package ``trackers`` (Apache-2.0, Roboflow), which is installed with
``pip install pcmoe_det[track]`` and imported only when a tracker is made (it takes about a second). A frame
with 5, 20 or 100 objects of six classes takes ``bytetrack`` 1.0, 2.1 and 5.2 ms of CPU time (machine loaded).
"""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import UsageError
from pcmoe_det.structures import Detections, Frame

__all__ = ["TRACKER_NAMES", "Tracker", "make_tracker"]

_CLASS_OF_NAME = {"bytetrack": "ByteTrackTracker", "ocsort": "OCSORTTracker", "sort": "SORTTracker"}
TRACKER_NAMES: tuple[str, ...] = tuple(_CLASS_OF_NAME)

_DEFAULT_FRAME_RATE = 25.0
_FRAME_RATES = (0.1, 240.0)
# The package counts this in frames of a 30 Hz video whatever the real rate is: one second.
_LOST_AFTER_30HZ_FRAMES = 30
# Two frames in a row make an object: a false alarm in a single frame gets no number.
_CONFIRMING_FRAMES = 2
# The package's own 0.7 and 0.6 are for detectors whose scores lie near 1; ours start at 0.3.
_START_SCORE = 0.5
_HIGH_SCORE = 0.4
# An object's steps overlap less at the few frames per second that a small machine reaches.
_SMALLEST_OVERLAP = 0.1


class Tracker(Protocol):
    """Numbers objects so that the same object has the same number in every frame of one stream.

    Used by one thread. Frames come in order; some may be missing.
    """

    def update(self, frame: Frame, detections: Detections) -> Detections:
        """The same detections, in the same order, with ``track_ids``: from 1, or -1 for an object that is not
        (yet) followed."""
        ...

    def reset(self) -> None:
        """Forget every object. Numbers go on counting, so that none is used for two objects."""
        ...


def make_tracker(name: str = "bytetrack", *, frame_rate: float | None = None) -> Tracker:
    """A tracker for one stream, which keeps classes apart and starts anew at ``Frame.gap``.

    Args:
        name: One of ``TRACKER_NAMES``. ``bytetrack`` also follows objects through frames in which they are
            scored low; ``ocsort`` watches their direction; ``sort`` is the plain one.
        frame_rate: Frames per second that the source announces, or None. Real steps are taken from the
            frames' times.

    Raises:
        UsageError: No such tracker, or the package it needs is not installed.
    """
    if name not in _CLASS_OF_NAME:
        raise UsageError(f"there is no tracker {name!r}; there are {', '.join(TRACKER_NAMES)}")
    try:
        factory = getattr(importlib.import_module("trackers"), _CLASS_OF_NAME[name])
        importlib.import_module("supervision")
    except (ImportError, AttributeError) as error:
        raise UsageError(
            "tracking needs the package 'trackers', 2.6 or later, which is not installed "
            f"({error}); install it with: pip install 'pcmoe_det[track]'"
        ) from error
    rate = _DEFAULT_FRAME_RATE if frame_rate is None else float(frame_rate)
    rate = min(max(rate, _FRAME_RATES[0]), _FRAME_RATES[1])
    settings: dict[str, Any] = {
        "frame_rate": rate,
        "lost_track_buffer": _LOST_AFTER_30HZ_FRAMES,
        "minimum_consecutive_frames": _CONFIRMING_FRAMES,
        "minimum_iou_threshold": _SMALLEST_OVERLAP,
    }
    if name in ("bytetrack", "sort"):
        settings["track_activation_threshold"] = _START_SCORE
    if name in ("bytetrack", "ocsort"):
        settings["high_conf_det_threshold"] = _HIGH_SCORE
    return _PerClassTracker(lambda: factory(**settings), frame_seconds=1 / rate)


class _PerClassTracker:
    """One tracker of the package per class, with one sequence of numbers for all.

    The package restarts its numbers at every reset and in every tracker, so they are translated. A number of
    the package is kept only while its object is followed: memory is bounded by the objects of about the last
    second.
    """

    def __init__(self, make: Callable[[], Any], *, frame_seconds: float) -> None:
        self._make = make
        self._frame_seconds = frame_seconds
        self._trackers: dict[int, Any] = {}
        self._numbers: dict[int, dict[int, int]] = {}
        self._next_number = 1
        self._last_pts_seconds: float | None = None
        self._seconds = 0.0

    def reset(self) -> None:
        self._trackers.clear()
        self._numbers.clear()
        self._last_pts_seconds = None
        self._seconds = 0.0

    def update(self, frame: Frame, detections: Detections) -> Detections:
        if frame.gap is not None:
            self.reset()
        self._advance(frame)
        track_ids = np.full(len(detections), -1, np.int64)
        # Classes without a detection are told too: their objects must be forgotten in time.
        for class_id in sorted({*self._trackers, *detections.class_ids.tolist()}):
            rows = np.flatnonzero(detections.class_ids == class_id)
            self._update_class(class_id, rows, detections, track_ids)
        return replace(detections, track_ids=track_ids)

    def _update_class(
        self, class_id: int, rows: NDArray[np.intp], detections: Detections, track_ids: NDArray[np.int64]
    ) -> None:
        import supervision

        if class_id not in self._trackers:
            self._trackers[class_id] = self._make()
            self._numbers[class_id] = {}
        tracker, numbers = self._trackers[class_id], self._numbers[class_id]
        # The answer may be in another order: ``class_id`` carries each detection's row through.
        given = supervision.Detections(
            xyxy=detections.boxes_xyxy[rows].astype(np.float64),
            confidence=detections.scores[rows].astype(np.float64),
            class_id=rows,
        )
        answer = tracker.update(given, timestamp=self._seconds)
        if len(answer):
            for row, own_id in zip(answer.class_id.tolist(), answer.tracker_id.tolist(), strict=True):
                if own_id < 0:
                    continue
                if own_id not in numbers:
                    numbers[own_id] = self._next_number
                    self._next_number += 1
                track_ids[row] = numbers[own_id]
        followed = {track.tracker_id for track in tracker.tracks}
        for own_id in [own_id for own_id in numbers if own_id not in followed]:
            del numbers[own_id]
        if not tracker.tracks:
            del self._trackers[class_id], self._numbers[class_id]

    def _advance(self, frame: Frame) -> None:
        """The package's clock must ascend: a time that is missing, repeats or steps back makes one frame."""
        pts_seconds = frame.pts_seconds
        step = self._frame_seconds
        if pts_seconds is not None and self._last_pts_seconds is not None:
            elapsed = pts_seconds - self._last_pts_seconds
            step = elapsed if elapsed > 0 else step
        self._last_pts_seconds = pts_seconds
        self._seconds += step
