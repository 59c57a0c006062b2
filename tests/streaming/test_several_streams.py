"""Several streams through one detector: fairness, independence, what the detector is told."""

from __future__ import annotations

import logging
import threading
from dataclasses import replace

import numpy as np
import pytest

from pcmoe_det.errors import OutputError, SourceError
from pcmoe_det.streaming import Stream, StreamPipeline
from pcmoe_det.structures import Gap
from tests.streaming.stand_ins import StandInDetector, StandInSink, StandInSource

pytestmark = pytest.mark.timeout(30)
FOREVER = 20.0  # far above what any step needs; reached only by a hang


class StreamKeepingDetector(StandInDetector):
    """Notes what it is told; waits for ``released`` before its first frame."""

    def __init__(self, *, released: bool = True) -> None:
        super().__init__()
        self.calls: list[tuple[str, object]] = []
        self.entered, self.released = threading.Event(), threading.Event()
        if released:
            self.released.set()

    def select_stream(self, source_id: str) -> None:
        self.calls.append(("select", source_id))

    def forget_stream(self, source_id: str) -> None:
        self.calls.append(("forget", source_id))

    def detect(self, images):
        self.entered.set()
        self.released.wait()
        found = super().detect(images)
        self.calls.append(("detect", self.seen[-1]))
        return found


def _waiting(pipeline: StreamPipeline, frames: int) -> None:
    """Until so many frames of every stream wait for the detector or are in it."""
    while any(counts["read"] < frames for counts in pipeline.counts):
        assert not pipeline.wait(0.01)


def test_each_stream_has_its_own_frames_outputs_and_counters() -> None:
    first, second = StandInSink("first"), StandInSink("second")
    sources = [StandInSource(5, source_id="a"), StandInSource(9, source_id="b")]
    summaries = StreamPipeline(
        [Stream(sources[0], [first]), Stream(sources[1], [second], max_frames=7)], StandInDetector()
    ).run()
    assert [summary.source for summary in summaries] == ["a", "b"]
    assert [summary.frames_written for summary in summaries] == [5, 7]
    assert [[str(path) for path in summary.outputs] for summary in summaries] == [["first"], ["second"]]
    assert (first.results, second.results) == (list(range(5)), list(range(7)))
    assert [source.closed for source in sources] == [1, 1]


def test_streams_with_waiting_frames_take_turns() -> None:
    detector = StreamKeepingDetector(released=False)
    pipeline = StreamPipeline(
        [Stream(StandInSource(4, source_id=name), [StandInSink()]) for name in "abc"], detector
    )
    pipeline.start()
    _waiting(pipeline, 4)
    detector.released.set()
    pipeline.close()
    selected = [name for call, name in detector.calls if call == "select"]
    assert len(selected) == 12
    turns = [set(selected[start : start + 3]) for start in range(0, 12, 3)]
    assert turns == [{"a", "b", "c"}] * 4


def test_a_busy_file_leaves_a_live_stream_every_second_turn() -> None:
    detector = StreamKeepingDetector(released=False)
    live = StandInSource(6, source_id="live", is_live=True)
    pipeline = StreamPipeline(
        [Stream(StandInSource(12, source_id="file"), []), Stream(live, [], mode="every-frame")], detector
    )
    pipeline.start()
    _waiting(pipeline, 5)
    detector.released.set()
    pipeline.close()
    selected = [name for call, name in detector.calls if call == "select"]
    assert selected[2:8].count("live") == 3


def test_a_stream_aware_detector_is_told_whose_frame_it_is_and_to_forget_at_the_end() -> None:
    detector = StreamKeepingDetector()
    StreamPipeline([Stream(StandInSource(3, source_id="a")), Stream(StandInSource(2, source_id="b"))],
                   detector).run()  # fmt: skip
    for position, (call, _) in enumerate(detector.calls):
        if call == "detect":
            assert detector.calls[position - 1][0] == "select"
    assert sorted(name for call, name in detector.calls if call == "forget") == ["a", "b"]
    ends = {name: position for position, (call, name) in enumerate(detector.calls) if call == "forget"}
    for name, end in ends.items():
        assert ("select", name) not in detector.calls[end:]


@pytest.mark.parametrize("mode", ["every-frame", "freshest"])
def test_a_gap_resets_the_stream_even_when_its_frame_is_dropped(mode: str) -> None:
    detector, sink, tracker = StreamKeepingDetector(released=mode == "every-frame"), GapSink(), Tracker()
    gaps = {2: Gap("reconnected", 3.0), 4: Gap("size_changed", 0.5)}
    source = StandInSource(7, source_id="a", is_live=True, gaps=gaps, wait_at=6,
                           gate=None if mode == "every-frame" else detector.entered)  # fmt: skip
    pipeline = StreamPipeline([Stream(source, [sink], mode=mode, tracker=tracker)], detector)
    pipeline.start()
    assert source.waiting.wait(FOREVER)
    detector.released.set()
    source.released.set()
    pipeline.close()
    forgotten = [position for position, call in enumerate(detector.calls) if call[0] == "forget"]
    if mode == "every-frame":
        assert sink.gaps == {2: gaps[2], 4: gaps[4]}
        assert tracker.calls == [0, 1, "reset", 2, 3, "reset", 4, 5]
        assert len(forgotten) == 3
    else:  # frames 1 to 4 were replaced by newer ones
        assert sink.gaps == {5: Gap("reconnected", 3.5)}
        assert tracker.calls == [0, "reset", 5]
        assert len(forgotten) == 2
    assert detector.calls[forgotten[0] + 1] == ("select", "a")


class GapSink(StandInSink):
    def __init__(self) -> None:
        super().__init__()
        self.gaps: dict[int, Gap] = {}

    def write(self, result, picture) -> None:
        super().write(result, picture)
        if result.frame.gap is not None:
            self.gaps[result.frame.frame_index] = result.frame.gap


class Tracker:
    def __init__(self) -> None:
        self.calls: list[int | str] = []

    def update(self, frame, found):
        self.calls.append(frame.frame_index)
        return replace(found, track_ids=np.full(len(found), 7))

    def reset(self) -> None:
        self.calls.append("reset")


def test_track_ids_reach_the_outputs() -> None:
    sink = StandInSink()
    (summary,) = StreamPipeline(
        [Stream(StandInSource(2), [sink], tracker=Tracker())], StandInDetector(), score_threshold=0.3
    ).run()
    assert [found.track_ids.tolist() for found in sink.detections] == [[7], [7]]
    assert list(summary.latency)[:4] == ["read", "wait", "detect", "track"]


class PickyDetector(StandInDetector):
    """Fails on frames of one source."""

    def __init__(self, refused: str) -> None:
        super().__init__()
        self.refused, self.stream = refused, ""

    def select_stream(self, source_id: str) -> None:
        self.stream = source_id

    def forget_stream(self, source_id: str) -> None:
        pass

    def detect(self, images):
        if self.stream == self.refused and len(self.seen) > 4:
            raise RuntimeError("cannot see that")
        return super().detect(images)


@pytest.mark.parametrize("fault", ["source", "sink", "close", "detector"])
def test_a_failing_stream_disturbs_no_other(fault: str, caplog: pytest.LogCaptureFixture) -> None:
    good, bad = StandInSink("good"), StandInSink("bad", fail_at=3 if fault == "sink" else None)
    if fault == "close":
        bad.fail_in_close = OutputError("the disk of b is full")
    failing = StandInSource(
        20, source_id="b", fail_at=5 if fault == "source" else None, error=SourceError("camera b is gone")
    )
    detector = PickyDetector("b" if fault == "detector" else "")
    pipeline = StreamPipeline([Stream(StandInSource(20, source_id="a"), [good]), Stream(failing, [bad])],
                              detector)  # fmt: skip
    pipeline.start()
    with pytest.raises(Exception, match=r"camera b|the bad output .* of b|disk of b|detector .* of b"):
        pipeline.close()
    summaries = pipeline.summaries()
    assert [summary.outcome for summary in summaries] == ["complete", "failed"]
    assert summaries[0].error is None
    assert "b" in str(summaries[1].error)
    assert (good.results, good.outcomes) == (list(range(20)), ["complete"])
    # A sink that fails in closing was told before that all is well.
    assert bad.outcomes == (["complete"] if fault == "close" else ["failed"])
    assert failing.closed == 1
    assert pipeline.threads_left == []
    for summary in summaries:
        assert summary.frames_read == summary.frames_written + sum(summary.frames_dropped.values())


def test_a_source_is_closed_when_its_stream_ends_and_not_with_the_last() -> None:
    short, long = StandInSource(2, source_id="a"), StandInSource(5, source_id="b", wait_at=3)
    pipeline = StreamPipeline([Stream(short, [StandInSink()]), Stream(long, [StandInSink()])],
                              StandInDetector())  # fmt: skip
    pipeline.start()
    assert long.waiting.wait(FOREVER)
    while not short.closed or pipeline.summaries()[0].outputs == ():
        assert not pipeline.wait(0.01)
    assert long.closed == 0
    pipeline.stop()
    outcomes = [summary.outcome for summary in pipeline.close()]
    assert outcomes == ["complete", "interrupted"]


def test_a_slow_output_of_one_stream_holds_up_no_other() -> None:
    slow, quick = StandInSink("slow", block=True), StandInSink("quick")
    pipeline = StreamPipeline(
        [Stream(StandInSource(50, source_id="a"), [slow]), Stream(StandInSource(50, source_id="b"), [quick])],
        StandInDetector(),
    )
    pipeline.start()
    while pipeline.counts[1]["written"] < 50:
        assert not pipeline.wait(0.01)
    assert pipeline.counts[0]["written"] == 0
    slow.released.set()
    assert [summary.frames_written for summary in pipeline.close()] == [50, 50]


def test_two_failing_streams_raise_the_first_and_log_the_other(caplog: pytest.LogCaptureFixture) -> None:
    gate = threading.Event()
    second = StandInSource(9, source_id="b", fail_at=1, error=SourceError("b is gone"), gate=gate)
    pipeline = StreamPipeline(
        [Stream(StandInSource(9, source_id="a", fail_at=1, error=SourceError("a is gone"))), Stream(second)],
        StandInDetector(),
    )
    with caplog.at_level(logging.ERROR):
        pipeline.start()
        while pipeline.summaries()[0].error is None:
            assert not pipeline.wait(0.01)
        gate.set()
        with pytest.raises(SourceError, match="a is gone"):
            pipeline.close()
    assert "b is gone" in caplog.text


def test_a_pipeline_needs_a_stream_and_modes_that_exist() -> None:
    with pytest.raises(ValueError, match="at least one"):
        StreamPipeline([], StandInDetector())
    with pytest.raises(ValueError, match="not 'fresh'"):
        StreamPipeline([Stream(StandInSource(1), mode="fresh")], StandInDetector())  # type: ignore[arg-type]


def test_an_output_that_never_comes_back_is_left_behind_after_a_stop() -> None:
    stuck, good = StandInSink("stuck", block=True), StandInSink("good")
    pipeline = StreamPipeline(
        [Stream(StandInSource(9, source_id="a"), [stuck]), Stream(StandInSource(9, source_id="b"), [good])],
        StandInDetector(), stop_grace_seconds=0.01, stuck_seconds=0.05,
    )  # fmt: skip
    pipeline.start()
    assert stuck.writing.wait(FOREVER)
    pipeline.stop()
    assert pipeline.wait(FOREVER)
    with pytest.raises(Exception, match="the stuck output of a did not take a frame"):
        pipeline.close()
    assert pipeline.summaries()[0].outcome == "failed"
    assert pipeline.threads_left == ["pcmoe-renderer-1"]
    stuck.released.set()
