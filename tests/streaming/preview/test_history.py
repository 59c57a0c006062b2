"""Samples, rates and quantiles."""

from __future__ import annotations

import pytest

from pcmoe_det.streaming.preview.history import History, RateMeter, Sample, quantile


def test_the_oldest_samples_leave() -> None:
    history = History(kept=3)
    for number in range(1, 6):
        history.add(Sample(number, number * 1.0, (number * 10.0, None)))
    assert history.after(0) == [[3, 3.0, 30.0, None], [4, 4.0, 40.0, None], [5, 5.0, 50.0, None]]
    assert history.after(4) == [[5, 5.0, 50.0, None]]
    assert history.after(5) == []
    assert history.last == Sample(5, 5.0, (50.0, None))


def test_rates_are_those_of_the_last_five_seconds() -> None:
    meter = RateMeter(2)
    assert meter.read(0.0, 0, 100) is None
    assert meter.read(1.0, 10, 100) == (10.0, 0.0)
    for second in range(2, 7):
        rates = meter.read(float(second), 10 + 4 * (second - 1), 100 + second)
    assert rates == (4.0, 1.2)
    with pytest.raises(ValueError, match="1 counts for 2"):
        meter.read(9.0, 1)


def test_a_slow_detector_has_a_rate() -> None:
    meter = RateMeter(1)
    counts = [0, 0, 0, 1, 1, 1, 2, 2]
    rates = [meter.read(float(second), count) for second, count in enumerate(counts)]
    assert rates[-1] == (pytest.approx(2 / 5),)


def test_no_time_no_rate() -> None:
    meter = RateMeter(1)
    assert meter.read(1.0, 3) is None
    assert meter.read(1.0, 4) is None


@pytest.mark.parametrize(
    ("count", "fraction", "expected"),
    [(0, 0.5, None), (1, 0.99, 1), (4, 0.5, 2), (100, 0.99, 99), (200, 0.99, 198), (10, 1.0, 10)],
)  # fmt: skip
def test_quantiles_are_nearest_ranks(count: int, fraction: float, expected: float | None) -> None:
    assert quantile(list(range(1, count + 1)), fraction) == expected
