"""Counts by cause that several threads add to."""

from __future__ import annotations

import threading
from collections import Counter

__all__ = ["FaultCounter"]


class FaultCounter:
    """What went wrong in a source, counted by cause."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()

    def add(self, cause: str, count: int = 1) -> None:
        """Count ``cause`` once more, or ``count`` times."""
        with self._lock:
            self._counts[cause] += count

    def as_dict(self) -> dict[str, int]:
        """Counts so far; causes that never happened are left out."""
        with self._lock:
            return {cause: count for cause, count in self._counts.items() if count}
