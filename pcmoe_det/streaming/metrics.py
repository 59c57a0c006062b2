"""Counters and latency quantiles of one stream, in constant memory however long it runs."""

from __future__ import annotations

import math
import threading
from collections import Counter
from dataclasses import dataclass

__all__ = ["LatencyHistogram", "LatencyQuantiles", "StreamMetrics"]

# One bucket per 2 % of latency: a quantile is off by at most 1 %, which is far less than what one
# run differs from the next, and 1,113 integers cover 1 microsecond to one hour.
_GROWTH = 1.02
_LOG_GROWTH = math.log(_GROWTH)
_SMALLEST_MS = 1e-3
_LARGEST_MS = 3.6e6
_BUCKETS = math.ceil(math.log(_LARGEST_MS / _SMALLEST_MS) / _LOG_GROWTH) + 1


@dataclass(frozen=True, slots=True)
class LatencyQuantiles:
    """Latency of one stage over a run, in milliseconds."""

    count: int
    mean_ms: float
    p50_ms: float
    p95_ms: float
    p99_ms: float
    max_ms: float


class LatencyHistogram:
    """Latencies in logarithmic buckets. Not locked: ``StreamMetrics`` does that.

    Values below 1 microsecond or above one hour count in the first or last bucket; smallest, largest
    and mean are exact.
    """

    def __init__(self) -> None:
        self._counts = [0] * _BUCKETS
        self._count = 0
        self._sum_ms = 0.0
        self._min_ms = math.inf
        self._max_ms = 0.0

    def add(self, value_ms: float) -> None:
        """Count one latency in milliseconds. A negative one (a clock set back) counts as 0."""
        value_ms = max(0.0, value_ms)
        bucket = math.ceil(math.log(max(value_ms, _SMALLEST_MS) / _SMALLEST_MS) / _LOG_GROWTH)
        self._counts[min(bucket, _BUCKETS - 1)] += 1
        self._count += 1
        self._sum_ms += value_ms
        self._min_ms = min(self._min_ms, value_ms)
        self._max_ms = max(self._max_ms, value_ms)

    def quantile(self, fraction: float) -> float:
        """The smallest latency that at least ``fraction`` of all do not exceed, within 1 %; 0.0 if none.

        Raises:
            ValueError: ``fraction`` is outside [0, 1].
        """
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"a quantile lies in [0, 1], not at {fraction}")
        if self._count == 0:
            return 0.0
        rank = max(1, math.ceil(fraction * self._count))
        seen = 0
        for bucket, count in enumerate(self._counts):
            seen += count
            if seen >= rank:
                # The bucket holds (s * g^(b-1), s * g^b]: its geometric middle is off by at most 1 %.
                middle_ms: float = _SMALLEST_MS * _GROWTH ** (bucket - 0.5)
                return min(max(middle_ms, self._min_ms), self._max_ms)
        return self._max_ms

    def summary(self) -> LatencyQuantiles:
        """Count, mean, p50, p95, p99 and maximum so far."""
        return LatencyQuantiles(
            count=self._count,
            mean_ms=self._sum_ms / self._count if self._count else 0.0,
            p50_ms=self.quantile(0.50),
            p95_ms=self.quantile(0.95),
            p99_ms=self.quantile(0.99),
            max_ms=self._max_ms,
        )


class StreamMetrics:
    """Counters and stage latencies of one stream; any thread may write and read.

    Counters: ``read``, ``detected``, ``written``. Frames that a stage drops are counted by cause; those that
    a queue drops are counted there.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._drops: Counter[str] = Counter()
        self._latencies: dict[str, LatencyHistogram] = {}

    def count(self, name: str, amount: int = 1) -> None:
        """Add ``amount`` to the counter ``name``."""
        with self._lock:
            self._counts[name] += amount

    def value(self, name: str) -> int:
        """The counter ``name``; 0 if it was never counted."""
        with self._lock:
            return self._counts[name]

    def drop(self, cause: str) -> None:
        """Count one frame that a stage took and gave up."""
        with self._lock:
            self._drops[cause] += 1

    def drops(self) -> dict[str, int]:
        """Frames that stages gave up, by cause."""
        with self._lock:
            return dict(self._drops)

    def add_latency(self, stage: str, value_ms: float) -> None:
        """Add one latency of ``stage`` in milliseconds."""
        with self._lock:
            self._latencies.setdefault(stage, LatencyHistogram()).add(value_ms)

    def counts(self) -> dict[str, int]:
        """All counters, as a copy."""
        with self._lock:
            return dict(self._counts)

    def latencies(self) -> dict[str, LatencyQuantiles]:
        """Quantiles by stage, in the order in which stages were first seen."""
        with self._lock:
            return {stage: histogram.summary() for stage, histogram in self._latencies.items()}
