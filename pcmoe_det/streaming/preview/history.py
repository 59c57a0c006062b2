"""What the preview remembers of each stream: one sample a second, for a bounded time."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

__all__ = ["SAMPLES_KEPT", "WINDOW_SAMPLES", "History", "RateMeter", "Sample", "quantile"]

SAMPLES_KEPT = 300
"""Five minutes at one sample a second."""

WINDOW_SAMPLES = 5
"""Rates are those of the last five seconds: a detector of less than one frame a second has one, too."""


@dataclass(frozen=True, slots=True)
class Sample:
    """Values at one moment.

    Attributes:
        number: 1 for the first sample of the server, then one more a second.
        seconds: Since the server's start.
        values: As the history's owner defines them; None where there was nothing to measure.
    """

    number: int
    seconds: float
    values: tuple[float | None, ...]


class History:
    """The last samples. Written by one thread, read by any."""

    def __init__(self, *, kept: int = SAMPLES_KEPT) -> None:
        self._kept = kept
        self._samples: tuple[Sample, ...] = ()

    def add(self, sample: Sample) -> None:
        """Append a sample; the oldest leaves when there are too many."""
        # A new tuple: readers keep walking along the old one.
        self._samples = (*self._samples[-(self._kept - 1) :], sample)

    def after(self, number: int) -> list[list[float | None]]:
        """Samples with a higher number, each as ``[number, seconds, *values]``."""
        return [
            [sample.number, round(sample.seconds, 1), *sample.values]
            for sample in self._samples
            if sample.number > number
        ]

    @property
    def last(self) -> Sample | None:
        """The newest sample."""
        return self._samples[-1] if self._samples else None


class RateMeter:
    """Rates of counters over the last few readings.

    Args:
        counters: How many counters are read together.
    """

    def __init__(self, counters: int) -> None:
        self._readings: deque[tuple[float, tuple[float, ...]]] = deque(maxlen=WINDOW_SAMPLES + 1)
        self._counters = counters

    def read(self, seconds: float, *counts: float) -> tuple[float, ...] | None:
        """Increase per second of each counter over the window; None at the first reading.

        Raises:
            ValueError: Not as many counts as counters.
        """
        if len(counts) != self._counters:
            raise ValueError(f"{len(counts)} counts for {self._counters} counters")
        self._readings.append((seconds, counts))
        first_seconds, first = self._readings[0]
        elapsed_seconds = seconds - first_seconds
        if elapsed_seconds <= 0:
            return None
        return tuple((now - then) / elapsed_seconds for now, then in zip(counts, first, strict=True))


def quantile(values: Sequence[float], fraction: float) -> float | None:
    """The smallest of ``values`` (sorted) that at least ``fraction`` of them do not exceed; None if empty."""
    if not values:
        return None
    return values[max(1, math.ceil(fraction * len(values))) - 1]
