"""Latency quantiles against numpy."""

from __future__ import annotations

import numpy as np
import pytest

from pcmoe_det.streaming.metrics import LatencyHistogram, StreamMetrics


@pytest.mark.parametrize("fraction", [0.0, 0.01, 0.5, 0.95, 0.99, 1.0])
@pytest.mark.parametrize("shape", ["log-normal", "uniform", "two-peaks"])
def test_quantiles_agree_with_numpy_to_one_percent(shape: str, fraction: float) -> None:
    random = np.random.default_rng(7)
    values = {
        "log-normal": random.lognormal(2.0, 1.5, 20_000),
        "uniform": random.uniform(0.01, 500.0, 20_000),
        "two-peaks": np.concatenate([random.normal(5, 0.1, 12_000), random.normal(900, 5, 8_000)]),
    }[shape]
    histogram = LatencyHistogram()
    for value in values:
        histogram.add(float(value))
    truth = np.quantile(values, fraction, method="inverted_cdf")
    assert histogram.quantile(fraction) == pytest.approx(truth, rel=0.0101)


def test_summary_is_exact_where_it_can_be() -> None:
    histogram = LatencyHistogram()
    for value in (3.0, 1.0, 2.0):
        histogram.add(value)
    summary = histogram.summary()
    assert (summary.count, summary.mean_ms, summary.max_ms) == (3, 2.0, 3.0)


def test_one_value_is_every_quantile() -> None:
    histogram = LatencyHistogram()
    histogram.add(12.34)
    assert histogram.quantile(0.5) == histogram.quantile(0.99) == 12.34


def test_extremes_are_counted_not_lost() -> None:
    histogram = LatencyHistogram()
    for value in (0.0, -5.0, 1e-9, 1e9):
        histogram.add(value)
    assert histogram.summary().count == 4
    assert histogram.quantile(0.0) == 0.0 or histogram.quantile(0.0) <= 1e-3
    assert histogram.summary().max_ms == 1e9


def test_empty_and_out_of_range() -> None:
    histogram = LatencyHistogram()
    assert histogram.quantile(0.5) == 0.0
    assert histogram.summary().count == 0
    with pytest.raises(ValueError, match=r"not at 1\.5"):
        histogram.quantile(1.5)


def test_metrics_keep_stages_apart() -> None:
    metrics = StreamMetrics()
    metrics.count("read")
    metrics.count("read", 2)
    metrics.add_latency("detect", 10.0)
    metrics.add_latency("encode", 1.0)
    assert metrics.counts() == {"read": 3}
    assert metrics.value("never") == 0
    assert list(metrics.latencies()) == ["detect", "encode"]
    assert metrics.latencies()["detect"].p50_ms == 10.0
