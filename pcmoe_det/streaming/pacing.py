"""Gives pictures that come in bursts at the pace of their time stamps."""

from __future__ import annotations

import time
from collections.abc import Callable

__all__ = ["Pacer"]

# A picture later than this, or a stamp further ahead, is a new start and not something to catch up with.
_LONGEST_OFFSET_SECONDS = 1.0


class Pacer:
    """Waits until a picture is due.

    Args:
        clock: Seconds, monotonic.
        sleep: Waits so many seconds.
    """

    def __init__(self, clock: Callable[[], float], *, sleep: Callable[[float], None] = time.sleep) -> None:
        self._clock = clock
        self._sleep = sleep
        self._due_seconds = 0.0
        self._stamp_seconds: float | None = None

    def wait_for(self, stamp_seconds: float) -> None:
        """Wait as long after the picture before as the stamps say, but for what is already late."""
        now_seconds = self._clock()
        due_seconds = now_seconds
        if self._stamp_seconds is not None:
            due_seconds = self._due_seconds + stamp_seconds - self._stamp_seconds
            if abs(due_seconds - now_seconds) > _LONGEST_OFFSET_SECONDS:
                due_seconds = now_seconds
        self._due_seconds, self._stamp_seconds = due_seconds, stamp_seconds
        if due_seconds > now_seconds:
            self._sleep(due_seconds - now_seconds)
