"""Dropping frames that would be answered too late, before the detector spends time on them."""

from __future__ import annotations

import logging
from collections import deque

__all__ = ["LatencyLimit"]

_log = logging.getLogger(__name__)

# The first frames of a run are slow (memory is allocated, kernels are chosen): they are no evidence.
_WARM_UP_FRAMES = 3
_RECENT_FRAMES = 15
# A busy moment may make every frame look hopeless, and then nothing would ever be measured again.
_PROBE_AFTER_SECONDS = 1.0


class LatencyLimit:
    """Decides for each frame of one stream whether the detector can still answer in time.

    A frame's age plus what the detector typically takes (the median of recent frames of this stream) must
    stay within the limit. Where nothing was let through for a second one frame is, so that the typical time
    is measured anew. Used by the detector thread only.

    Args:
        max_latency_seconds: From capture to the detector's answer.
        name: The stream's name, for the warning that the limit cannot be met.
    """

    def __init__(self, max_latency_seconds: float, *, name: str) -> None:
        self._max_latency_seconds = max_latency_seconds
        self._name = name
        self._recent: deque[float] = deque(maxlen=_RECENT_FRAMES)
        self._measured = 0
        self._shedding_since_seconds: float | None = None
        self._warned = False

    @property
    def typical_seconds(self) -> float:
        """What the detector typically takes; 0.0 until that is known."""
        if self._measured < _WARM_UP_FRAMES:
            return 0.0
        return sorted(self._recent)[(len(self._recent) - 1) // 2]

    def is_too_late(self, captured_at_seconds: float, now_seconds: float) -> bool:
        """Whether a frame captured then would be answered too late if detection began now."""
        typical_seconds = self.typical_seconds
        age_seconds = now_seconds - captured_at_seconds
        if age_seconds + typical_seconds <= self._max_latency_seconds:
            self._shedding_since_seconds = None
            return False
        if age_seconds > self._max_latency_seconds:  # hopeless whatever the detector takes
            return True
        if typical_seconds > self._max_latency_seconds and not self._warned:
            self._warned = True
            _log.warning(
                "%s: the detector takes %.0f ms for a frame, which alone is more than the latency limit of "
                "%.0f ms; allow more, or use a smaller model or more threads",
                self._name,
                typical_seconds * 1e3,
                self._max_latency_seconds * 1e3,
            )
        if self._shedding_since_seconds is None:
            self._shedding_since_seconds = now_seconds
        if now_seconds - self._shedding_since_seconds >= _PROBE_AFTER_SECONDS:
            self._shedding_since_seconds = None
            return False
        return True

    def add(self, detect_seconds: float) -> None:
        """Take note of what the detector took for a frame of this stream."""
        self._measured += 1
        if self._measured > 1:  # the very first is far from typical
            self._recent.append(detect_seconds)
