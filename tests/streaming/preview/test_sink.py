"""A stream as its preview output sees it."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pcmoe_det.streaming.preview.pictures import PictureEncoder
from pcmoe_det.streaming.preview.sink import PreviewSink
from pcmoe_det.structures import Gap
from tests.streaming.preview.made import FakeClock, result


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def sink(clock: FakeClock) -> PreviewSink:
    return PreviewSink("made", PictureEncoder(clock=clock).feed(), stall_seconds=10, clock=clock)


def test_states_from_start_to_stall_and_back(sink: PreviewSink, clock: FakeClock) -> None:
    assert sink.snapshot().state == "starting"
    clock.seconds += 10
    assert sink.snapshot().state == "starting"
    clock.seconds += 0.1
    assert sink.snapshot().state == "stalled"
    sink.write(result(), None)
    assert sink.snapshot().state == "live"
    clock.seconds += 10.1
    assert sink.snapshot().state == "stalled"
    assert sink.snapshot().silent_seconds == pytest.approx(10.1)


@pytest.mark.parametrize(
    ("outcome", "state"), [("complete", "finished"), ("interrupted", "interrupted"), ("failed", "failed")]
)
def test_the_end_stays_visible(sink: PreviewSink, clock: FakeClock, outcome, state: str) -> None:
    sink.write(result(), None)
    assert sink.close(outcome) == []
    clock.seconds += 1000
    assert sink.snapshot().state == state


def test_frames_are_counted(sink: PreviewSink) -> None:
    sink.write(result(0, width=64, height=48), None)
    sink.write(result(1, width=32, height=20, gap=Gap("size_changed", 0.0)), None)
    snapshot = sink.snapshot()
    assert (snapshot.frames, snapshot.detections, snapshot.gaps) == (2, 2, {"size_changed": 1})
    assert (snapshot.width, snapshot.height) == (32, 20)
    assert set(snapshot.latency) == {"detect", "total"}
    assert snapshot.expert_read_bytes is None


def test_a_snapshot_does_not_change(sink: PreviewSink) -> None:
    sink.write(result(accounting={"bytes_read": 5}), None)
    snapshot = sink.snapshot()
    before = (snapshot.latency["total"].samples(), snapshot.expert_read_bytes.samples())
    sink.write(result(accounting={"bytes_read": 5}), None)
    assert (snapshot.latency["total"].samples(), snapshot.expert_read_bytes.samples()) == before


def test_samples_hold_the_rate_and_quantiles_of_the_last_seconds(sink: PreviewSink, clock: FakeClock) -> None:
    sink.sample(number=1, seconds=1.0)
    assert sink.history.last.values == (None, None, None)  # nothing yet is not zero
    for second in range(2, 5):
        for frame in range(8):
            clock.seconds += 1 / 8
            sink.write(result(total_ms=100 if frame else 300), None)
        sink.sample(number=second, seconds=float(second))
    assert sink.history.last.values == (8.0, 100.0, 300.0)
    for second in range(5, 12):
        clock.seconds += 1
        sink.sample(number=second, seconds=float(second))
    assert sink.history.last.values == (0.0, None, None)  # silent: a rate of zero, and no latency


def test_an_ended_stream_has_no_further_samples(sink: PreviewSink) -> None:
    sink.write(result(), None)
    sink.sample(number=1, seconds=1.0)
    sink.close("complete")
    sink.sample(number=2, seconds=2.0)
    assert sink.history.last.number == 1


def test_a_picture_is_wanted_only_while_somebody_watches(sink: PreviewSink, clock: FakeClock) -> None:
    assert not sink.needs_picture
    sink.pictures.newest(timeout_seconds=0)
    assert sink.needs_picture
    sink.write(result(3), np.zeros((8, 8, 3), np.uint8))
    assert not sink.needs_picture
    sink.pictures.encode(cost_factor=0)
    assert sink.pictures.newest(timeout_seconds=0).frame_index == 3
    clock.seconds += 60
    assert not sink.needs_picture


@pytest.mark.parametrize("drawn_anyway", [False, True])
def test_drawing_counts_where_it_is_done_for_the_preview_alone(
    sink: PreviewSink, clock: FakeClock, drawn_anyway: bool
) -> None:
    picture = np.zeros((8, 8, 3), np.uint8)
    drawn = replace(result(), latency_ms={"render": 20.0, "total": 30.0})
    for _ in range(3):  # before anybody watches
        assert not sink.needs_picture
        sink.write(drawn, picture if drawn_anyway else None)
    sink.pictures.newest(timeout_seconds=0)
    assert sink.needs_picture
    sink.write(drawn, picture)
    sink.pictures.encode(cost_factor=100)  # 20 ms of drawing: a pause of 2 s, half of it at first
    clock.seconds += 0.9
    assert sink.needs_picture is drawn_anyway
    clock.seconds += 0.2
    assert sink.needs_picture
