"""Modes and the latency limit, on clocks that stand still."""

from __future__ import annotations

import logging

import pytest

from pcmoe_det.streaming import Stream, StreamPipeline
from pcmoe_det.streaming.modes import choose_policy
from pcmoe_det.streaming.queues import QueuePolicy
from pcmoe_det.streaming.shedding import LatencyLimit
from tests.streaming.stand_ins import StandInDetector, StandInSink, StandInSource

pytestmark = pytest.mark.timeout(30)


@pytest.mark.parametrize(
    ("mode", "is_live", "policy"),
    [
        (None, False, QueuePolicy.EVERY_FRAME),
        ("auto", False, QueuePolicy.EVERY_FRAME),
        ("auto", True, QueuePolicy.FRESHEST),
        ("every-frame", True, QueuePolicy.EVERY_FRAME),
        ("freshest", False, QueuePolicy.FRESHEST),
    ],
)
def test_modes(mode, is_live: bool, policy: QueuePolicy) -> None:
    assert choose_policy(mode, is_live=is_live) is policy


def _limit(detect_seconds: float, *, frames: int = 20) -> LatencyLimit:
    limit = LatencyLimit(0.2, name="made")
    for _ in range(frames):
        limit.add(detect_seconds)
    return limit


def test_age_and_typical_time_together_must_stay_below_the_limit() -> None:
    limit = _limit(0.125)
    assert not limit.is_too_late(0.0, 0.07)
    assert limit.is_too_late(0.0, 0.08)
    assert limit.is_too_late(0.0, 0.3)


def test_the_first_slow_frames_are_no_evidence() -> None:
    limit = LatencyLimit(0.2, name="made")
    limit.add(5.0)
    limit.add(0.1)
    assert not limit.is_too_late(0.0, 0.19)
    limit.add(0.1)
    assert limit.typical_seconds == 0.1
    assert limit.is_too_late(0.0, 0.19)


def test_one_slow_frame_changes_nothing_and_a_lasting_change_does() -> None:
    limit = _limit(0.1)
    limit.add(9.0)
    assert limit.typical_seconds == 0.1
    for _ in range(8):
        limit.add(0.15)
    assert limit.typical_seconds == 0.15


def test_a_detector_that_became_fast_again_is_noticed(caplog: pytest.LogCaptureFixture) -> None:
    limit = _limit(0.5)
    with caplog.at_level(logging.WARNING):
        answers = [limit.is_too_late(now, now) for now in (0.0, 0.4, 0.9, 1.0, 1.1, 2.2)]
    # After a second without any, one frame is let through to measure.
    assert answers == [True, True, True, False, True, False]
    assert caplog.text.count("the detector takes 500 ms for a frame") == 1
    assert limit.is_too_late(0.0, 5.0)  # older than the limit: nothing to learn from


class SlowDetector(StandInDetector):
    """Takes 100 ms on a clock of its own."""

    def __init__(self, now: list[float]) -> None:
        super().__init__()
        self.now = now

    def detect(self, images):
        self.now[0] += 0.1
        return super().detect(images)


@pytest.mark.parametrize(("is_live", "mode"), [(True, "every-frame"), (False, "auto")])
def test_frames_that_would_be_late_are_dropped_from_live_streams_only(is_live: bool, mode: str) -> None:
    now, sink = [0.0], StandInSink()
    # All frames are captured at 0: frame i is i * 100 ms old when its turn comes.
    source = StandInSource(10, is_live=is_live, clock=lambda: 0.0)
    (summary,) = StreamPipeline(
        [Stream(source, [sink], mode=mode)], SlowDetector(now), max_latency_seconds=0.45, clock=lambda: now[0]
    ).run()
    if is_live:
        # 400 ms + 100 ms is above 450 ms.
        assert sink.results == [0, 1, 2, 3]
        assert summary.frames_dropped == {"too_late": 6}
        assert summary.latency["total"].max_ms == pytest.approx(400)
    else:
        assert sink.results == list(range(10))
        assert summary.frames_dropped == {}
    assert summary.frames_read == summary.frames_written + sum(summary.frames_dropped.values())


def test_total_latency_counts_from_the_capture() -> None:
    now, sink = [1.5], StandInSink()
    source = StandInSource(1, is_live=True, clock=lambda: 1.0)
    (summary,) = StreamPipeline(
        [Stream(source, [sink])], SlowDetector(now), clock=lambda: now[0]
    ).run()  # fmt: skip
    assert summary.latency["total"].max_ms == pytest.approx(600)
    assert sink.latencies[0]["total"] == pytest.approx(600)
