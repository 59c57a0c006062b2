"""The time stamps of a live source that may be lost and come back."""

from __future__ import annotations

__all__ = ["Timeline"]

# Between two pictures a sender's stamps may run ahead of the capture clock by what a network or a segmented
# stream holds back; more is a jump of the sender's clock.
_LONGEST_JUMP_SECONDS = 5.0


class Timeline:
    """Seconds since the first picture, by the sender's stamps, never going back.

    Where the sender's stamps say nothing about the distance to the picture before (there are none, it is the
    first after a loss, or they jump), the capture clock tells it.
    """

    def __init__(self) -> None:
        self._last_seconds = 0.0
        self._last_captured_seconds: float | None = None
        self._offset_seconds: float | None = None

    def place(self, stamp_seconds: float | None, captured_at_seconds: float, *, anew: bool) -> float:
        """``pts_seconds`` of the next picture.

        Args:
            stamp_seconds: The sender's, or None.
            captured_at_seconds: When it came.
            anew: Whether its sender's clock may have nothing to do with the one before.
        """
        before_seconds = self._last_captured_seconds
        elapsed_seconds = 0.0 if before_seconds is None else max(0.0, captured_at_seconds - before_seconds)
        by_clock_seconds = self._last_seconds + elapsed_seconds
        if stamp_seconds is not None and self._offset_seconds is not None and not anew:
            by_stamp_seconds = stamp_seconds + self._offset_seconds
            if self._last_seconds < by_stamp_seconds <= by_clock_seconds + _LONGEST_JUMP_SECONDS:
                self._last_seconds, self._last_captured_seconds = by_stamp_seconds, captured_at_seconds
                return by_stamp_seconds
        self._offset_seconds = None if stamp_seconds is None else by_clock_seconds - stamp_seconds
        self._last_seconds, self._last_captured_seconds = by_clock_seconds, captured_at_seconds
        return by_clock_seconds
