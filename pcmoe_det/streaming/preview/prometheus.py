"""The Prometheus text format 0.0.4: families, labels and histograms."""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

__all__ = ["BYTES_BOUNDS", "CONTENT_TYPE", "SECONDS_BOUNDS", "Histogram", "MetricFamily", "to_text"]

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

SECONDS_BOUNDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
"""Upper bounds of latency buckets: from one stage of a small model to a stream that has fallen behind."""

BYTES_BOUNDS = (0.0, *(float(2**power) for power in range(16, 32, 2)))
"""Nothing at all, then 64 KiB to 1 GiB in steps of four."""


class Histogram:
    """Counts by upper bound, and their sum. Not locked.

    Args:
        bounds: Upper bounds, ascending, without infinity.
    """

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def add(self, value: float) -> None:
        """Count one value in the unit of the bounds."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def copy(self) -> Histogram:
        """The same counts, apart from later ones."""
        other = Histogram(self._bounds)
        other._counts = list(self._counts)
        other._sum = self._sum
        return other

    def samples(self) -> list[tuple[str, str, float]]:
        """Suffix of the name, ``le`` label (empty for none) and value, buckets cumulative."""
        rows: list[tuple[str, str, float]] = []
        total = 0
        for bound, count in zip((*self._bounds, math.inf), self._counts, strict=True):
            total += count
            rows.append(("_bucket", _number(bound), total))
        return [*rows, ("_sum", "", self._sum), ("_count", "", total)]


@dataclass(slots=True)
class MetricFamily:
    """One metric with all its label values.

    Attributes:
        name: Without the suffixes of a histogram; counters end in ``_total``, units are base units.
        kind: As Prometheus calls it.
        help: One sentence.
        samples: Labels and value; a histogram's value is a ``Histogram``.
    """

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    help: str
    samples: list[tuple[Mapping[str, str], float | Histogram]] = field(default_factory=list)

    def add(self, value: float | Histogram, **labels: str) -> None:
        """One more combination of labels; each may come once."""
        self.samples.append((labels, value))


def to_text(families: Sequence[MetricFamily]) -> str:
    """The page that Prometheus reads; families without samples are left out."""
    lines: list[str] = []
    for family in families:
        if not family.samples:
            continue
        help_text = family.help.replace("\\", r"\\").replace("\n", r"\n")
        lines += [f"# HELP {family.name} {help_text}", f"# TYPE {family.name} {family.kind}"]
        for labels, value in family.samples:
            if isinstance(value, Histogram):
                for suffix, bound, number in value.samples():
                    all_labels = {**labels, "le": bound} if bound else labels
                    lines.append(f"{family.name}{suffix}{_labels(all_labels)} {_number(number)}")
            else:
                lines.append(f"{family.name}{_labels(labels)} {_number(value)}")
    return "\n".join(lines) + "\n"


def _labels(labels: Mapping[str, str]) -> str:
    if not labels:
        return ""
    return "{" + ",".join(f'{name}="{_escaped(value)}"' for name, value in labels.items()) + "}"


def _escaped(value: str) -> str:
    """File names may hold bytes that are no UTF-8 (lone surrogates here); they become question marks."""
    clean = value.encode("utf-8", "replace").decode("utf-8")
    return clean.replace("\\", r"\\").replace("\n", r"\n").replace('"', r"\"")


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    return repr(int(value)) if float(value).is_integer() and abs(value) < 2**53 else repr(float(value))
