"""A limit on bytes per second, shared by the threads of a store."""

from __future__ import annotations

import threading
from collections.abc import Callable

__all__ = ["BandwidthLimit"]

# How much may be taken at once after a pause. Short, so that a single record of some megabytes
# already takes the time it would take on the slower disk.
_BURST_SECONDS = 0.02


class BandwidthLimit:
    """A token bucket in the form of a reservation: who comes later waits for the ones before.

    In any span of t seconds at most ``rate * (t + 0.02)`` bytes are granted, plus one request that is
    larger than the bucket.

    Args:
        bytes_per_second: The rate.
        clock: Seconds, monotonic.
        sleep: Called with seconds; may return early (a closed store does not wait).
    """

    def __init__(
        self, bytes_per_second: float, *, clock: Callable[[], float], sleep: Callable[[float], object]
    ) -> None:
        if not 0 < bytes_per_second < float("inf"):
            raise ValueError(f"the bandwidth is {bytes_per_second} bytes per second; it must be above 0")
        self.bytes_per_second = bytes_per_second
        self._clock = clock
        self._sleep = sleep
        self._lock = threading.Lock()
        self._paid_until = float("-inf")

    def take(self, num_bytes: int) -> float:
        """Wait until ``num_bytes`` may be read; returns the seconds waited."""
        with self._lock:
            now = self._clock()
            start = max(self._paid_until, now - _BURST_SECONDS)
            self._paid_until = start + num_bytes / self.bytes_per_second
            wait = self._paid_until - now
        if wait <= 0:
            return 0.0
        self._sleep(wait)
        return max(0.0, self._clock() - now)
