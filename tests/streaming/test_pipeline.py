"""The pipeline: order, errors, stops, counts."""

from __future__ import annotations

import logging
import threading

import numpy as np
import pytest

from pcmoe_det.errors import OutputError, SourceError
from pcmoe_det.streaming import StageError, Stream, StreamPipeline
from pcmoe_det.streaming.summary import StreamSummary
from tests.streaming.stand_ins import StandInDetector, StandInSink, StandInSource, detections

pytestmark = pytest.mark.timeout(30)
FOREVER = 20.0  # far above what any step needs; reached only by a hang


def _assert_adds_up(summary: StreamSummary) -> None:
    assert summary.frames_read == summary.frames_written + sum(summary.frames_dropped.values())


def _wait_and_close(pipeline: StreamPipeline) -> StreamSummary:
    assert pipeline.wait(FOREVER)
    return pipeline.close()[0]


class BlockingDetector(StandInDetector):
    """Waits for ``released`` in the frame ``block_at``."""

    def __init__(self, block_at: int = 0) -> None:
        super().__init__()
        self.block_at = block_at
        self.entered, self.released = threading.Event(), threading.Event()

    def detect(self, images):
        if len(self.seen) == self.block_at:
            self.entered.set()
            self.released.wait()
        return super().detect(images)


def test_every_frame_arrives_once_and_in_order() -> None:
    source, detector = StandInSource(24), StandInDetector()
    first, second = StandInSink("first"), StandInSink("second")
    (summary,) = StreamPipeline([Stream(source, [first, second])], detector).run()
    assert detector.seen == first.results == second.results == list(range(24))
    assert (summary.frames_read, summary.frames_detected, summary.frames_written) == (24, 24, 24)
    assert (summary.outcome, summary.frames_dropped) == ("complete", {})
    assert [str(path) for path in summary.outputs] == ["first", "second"]
    assert first.outcomes == second.outcomes == ["complete"]
    assert source.closed == 1
    assert list(summary.latency) == ["read", "wait", "detect", "first", "second", "total"]
    assert {quantiles.count for quantiles in summary.latency.values()} == {24}


def test_records_carry_the_latency_of_the_stages_before() -> None:
    first, second = StandInSink("first"), StandInSink("second")
    StreamPipeline([Stream(StandInSource(2), [first, second])], StandInDetector()).run()
    assert set(first.latencies[0]) == {"read", "wait", "detect", "total"}
    assert set(second.latencies[0]) == {"read", "wait", "detect", "first", "total"}


def test_latencies_are_measured_on_the_given_clock() -> None:
    now = [0.0]

    class SlowDetector(StandInDetector):
        def detect(self, images):
            now[0] += 0.25
            return super().detect(images)

    (summary,) = StreamPipeline(
        [Stream(StandInSource(1), [StandInSink()])], SlowDetector(), clock=lambda: now[0]
    ).run()
    assert summary.latency["detect"].p50_ms == pytest.approx(250)
    assert summary.elapsed_seconds == pytest.approx(0.25)
    assert summary.frames_per_second == pytest.approx(4)


def test_detections_below_the_threshold_are_left_out() -> None:
    sink = StandInSink()
    StreamPipeline([Stream(StandInSource(1), [sink])], StandInDetector(), score_threshold=0.3).run()
    assert sink.detections[0].scores.tolist() == pytest.approx([0.9])
    assert sink.detections[0].class_ids.tolist() == [1]


def test_max_frames_ends_complete() -> None:
    sink = StandInSink()
    (summary,) = StreamPipeline([Stream(StandInSource(20), [sink], max_frames=3)], StandInDetector()).run()
    assert sink.results == [0, 1, 2]
    assert (summary.frames_read, summary.outcome) == (3, "complete")


def test_pictures_are_drawn_only_for_a_sink_that_needs_them() -> None:
    class PictureSink(StandInSink):
        needs_picture = True

        def write(self, result, picture) -> None:
            assert picture.shape == result.frame.image.shape
            assert (picture != result.frame.image).any()
            super().write(result, picture)

    plain, drawn = StandInSink(), PictureSink("drawn")
    assert (
        "render"
        not in StreamPipeline([Stream(StandInSource(2), [plain])], StandInDetector()).run()[0].latency
    )
    assert "render" in StreamPipeline([Stream(StandInSource(2), [drawn])], StandInDetector()).run()[0].latency


def test_a_picture_is_asked_for_before_every_frame() -> None:
    class Watched(StandInSink):
        """Somebody watches frames 2 and 3."""

        def __init__(self) -> None:
            super().__init__()
            self.pictures: list[bool] = []

        @property
        def needs_picture(self) -> bool:
            return len(self.pictures) in (2, 3)

        def write(self, result, picture) -> None:
            self.pictures.append(picture is not None)

    sink = Watched()
    (summary,) = StreamPipeline([Stream(StandInSource(6), [sink])], StandInDetector()).run()
    assert sink.pictures == [False, False, True, True, False, False]
    assert summary.latency["render"].count == 2


def test_a_live_source_keeps_the_freshest_and_counts_the_rest() -> None:
    detector, sink = BlockingDetector(), StandInSink()
    source = StandInSource(20, is_live=True, wait_at=10, gate=detector.entered)
    pipeline = StreamPipeline([Stream(source, [sink])], detector)
    pipeline.start()
    assert detector.entered.wait(FOREVER)
    assert source.waiting.wait(FOREVER)  # the reader was never held up by the detector
    detector.released.set()
    source.released.set()
    summary = _wait_and_close(pipeline)
    assert sink.results == [0, 9]
    assert summary.frames_dropped == {"replaced_by_newer": 8}
    _assert_adds_up(summary)


def test_a_file_waits_for_the_detector() -> None:
    source, detector, sink = StandInSource(20), BlockingDetector(), StandInSink()
    pipeline = StreamPipeline([Stream(source, [sink])], detector)
    pipeline.start()
    assert detector.entered.wait(FOREVER)
    detector.released.set()
    assert _wait_and_close(pipeline).frames_dropped == {}
    assert sink.results == list(range(20))


def test_the_policy_can_be_chosen() -> None:
    sink = StandInSink()
    StreamPipeline(
        [Stream(StandInSource(20, is_live=True), [sink], mode="every-frame")], StandInDetector()
    ).run()
    assert sink.results == list(range(20))


@pytest.mark.parametrize(
    ("error", "raised", "message"),
    [
        (
            OSError("the disk went away"),
            StageError,
            "reading made failed after 5 frames: OSError: the disk went",
        ),
        (SourceError("camera 3 is gone"), SourceError, "^camera 3 is gone$"),
    ],
)
def test_a_reader_error_reaches_the_caller_after_what_was_read(error, raised, message: str) -> None:
    source, sink = StandInSource(20, fail_at=5, error=error), StandInSink()
    pipeline = StreamPipeline([Stream(source, [sink])], StandInDetector())
    with pytest.raises(raised, match=message):
        pipeline.run()
    assert sink.results == [0, 1, 2, 3, 4]
    assert sink.outcomes == ["failed"]
    assert source.closed == 1
    assert pipeline.threads_left == []
    _assert_adds_up(pipeline.summaries()[0])


def test_a_detector_error_reaches_the_caller_and_frees_the_reader() -> None:
    class FailingDetector(StandInDetector):
        def detect(self, images):
            if len(self.seen) == 3:
                raise RuntimeError("out of memory")
            return super().detect(images)

    sink = StandInSink()
    pipeline = StreamPipeline([Stream(StandInSource(1000), [sink])], FailingDetector())
    with pytest.raises(
        StageError, match="the detector failed on frame 3 of made: RuntimeError: out of memory"
    ):
        pipeline.run()
    assert sink.results == [0, 1, 2]
    assert sink.outcomes == ["failed"]
    assert pipeline.threads_left == []
    summary = pipeline.summaries()[0]
    assert summary.outcome == "failed"
    assert set(summary.frames_dropped) == {"failed"}
    _assert_adds_up(summary)


def test_a_detector_error_ends_a_reader_that_waits_for_its_source() -> None:
    class FailingDetector(StandInDetector):
        def detect(self, images):
            raise RuntimeError("no")

    source = StandInSource(20, wait_at=1)
    pipeline = StreamPipeline([Stream(source, [])], FailingDetector())
    with pytest.raises(StageError):
        pipeline.run()
    assert pipeline.threads_left == []
    assert source.closed == 1


def test_a_sink_error_reaches_the_caller_and_the_other_sinks_are_closed() -> None:
    good, bad, late = StandInSink("good"), StandInSink("bad", fail_at=2), StandInSink("late")
    pipeline = StreamPipeline([Stream(StandInSource(1000), [good, bad, late])], StandInDetector())
    with pytest.raises(
        StageError, match="the bad output failed on frame 2 of made: ValueError: the sink is full"
    ):
        pipeline.run()
    assert (good.results, bad.results, late.results) == ([0, 1, 2], [0, 1], [0, 1])
    assert good.outcomes == bad.outcomes == late.outcomes == ["failed"]
    assert pipeline.threads_left == []
    _assert_adds_up(pipeline.summaries()[0])


def test_an_error_in_closing_a_sink_reaches_the_caller_and_the_rest_is_closed() -> None:
    first, second = StandInSink("first"), StandInSink("second")
    first.fail_in_close = OutputError("the disk is full")
    with pytest.raises(OutputError, match="the disk is full"):
        StreamPipeline([Stream(StandInSource(3), [first, second])], StandInDetector()).run()
    assert second.outcomes == ["failed"]


def test_the_first_error_wins_and_later_ones_are_logged(caplog: pytest.LogCaptureFixture) -> None:
    sink = StandInSink("bad", fail_at=0)
    sink.fail_in_close = OutputError("cannot be closed either")
    with caplog.at_level(logging.ERROR), pytest.raises(StageError, match="frame 0"):
        StreamPipeline([Stream(StandInSource(3), [sink])], StandInDetector()).run()
    assert "cannot be closed either" in caplog.text


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ([], "0 answers came back"),
        ([detections((np.nan, 0, 1, 1, 0.5, 0))], "not a finite number"),
        ([detections((0, 0, 1, 1, np.inf, 0))], "not a finite number"),
        ([detections((0, 0, 1, 1, 0.5, 6))], r"outside 0\.\.5"),
        ([detections((0, 0, 1, 1, 0.5, -1))], r"outside 0\.\.5"),
    ],
    ids=["no-answer", "nan-box", "infinite-score", "class-too-high", "class-negative"],
)
def test_a_detector_that_breaks_its_contract_is_an_error(answer, message: str) -> None:
    class BrokenDetector(StandInDetector):
        def detect(self, images):
            return answer

    with pytest.raises(StageError, match=message):
        StreamPipeline([Stream(StandInSource(1), [StandInSink()])], BrokenDetector()).run()


def test_stop_while_the_reader_waits_for_its_source() -> None:
    source, sink = StandInSource(20, is_live=True, wait_at=1), StandInSink()
    pipeline = StreamPipeline([Stream(source, [sink])], StandInDetector())
    pipeline.start()
    assert source.waiting.wait(FOREVER)
    assert sink.writing.wait(FOREVER)
    pipeline.stop()
    summary = _wait_and_close(pipeline)
    assert (summary.outcome, sink.outcomes, sink.results) == ("interrupted", ["interrupted"], [0])
    assert pipeline.threads_left == []


def test_stop_does_not_wait_for_a_source_that_ignores_it() -> None:
    source, sink = StandInSource(20, is_live=True, wait_at=1, heeds_interrupt=False), StandInSink()
    pipeline = StreamPipeline([Stream(source, [sink])], StandInDetector())
    pipeline.start()
    assert source.waiting.wait(FOREVER)
    pipeline.stop()
    assert _wait_and_close(pipeline).outcome == "interrupted"
    assert pipeline.threads_left == ["pcmoe-reader-1"]
    assert source.closed == 0  # not under a thread that still reads
    source.released.set()


def test_stop_finishes_the_frame_in_the_detector_and_drops_those_that_wait() -> None:
    detector, sink = BlockingDetector(block_at=2), StandInSink()
    pipeline = StreamPipeline([Stream(StandInSource(1000), [sink])], detector, stop_grace_seconds=FOREVER)
    pipeline.start()
    assert detector.entered.wait(FOREVER)
    pipeline.stop()
    detector.released.set()
    summary = _wait_and_close(pipeline)
    assert sink.results == [0, 1, 2]
    assert set(summary.frames_dropped) == {"stopped"}
    assert pipeline.threads_left == []
    _assert_adds_up(summary)


def test_stop_leaves_a_detector_behind_that_takes_too_long() -> None:
    detector, sink = BlockingDetector(block_at=2), StandInSink()
    pipeline = StreamPipeline([Stream(StandInSource(1000), [sink])], detector, stop_grace_seconds=0.05)
    pipeline.start()
    assert detector.entered.wait(FOREVER)
    pipeline.stop()
    summary = _wait_and_close(pipeline)
    assert sink.results == [0, 1]
    assert sink.outcomes == ["interrupted"]
    assert pipeline.threads_left == ["pcmoe-detector"]
    _assert_adds_up(summary)
    detector.released.set()


def test_stop_drops_results_behind_a_slow_sink_and_closes_it() -> None:
    sink = StandInSink(block=True)
    pipeline = StreamPipeline(
        [Stream(StandInSource(1000), [sink])], StandInDetector(), stop_grace_seconds=0.05
    )
    pipeline.start()
    assert sink.writing.wait(FOREVER)
    while pipeline.counts[0]["detected"] < 5:  # one is being written, four wait
        assert not pipeline.wait(0.01)
    pipeline.stop()
    while not pipeline._lanes[0].to_render.dropped:  # they are given up while the sink still writes
        assert not pipeline.wait(0.01)
    sink.released.set()
    summary = _wait_and_close(pipeline)
    assert sink.results == [0]
    assert sink.outcomes == ["interrupted"]
    _assert_adds_up(summary)


def test_stop_is_idempotent_and_harmless_in_every_state() -> None:
    sink = StandInSink()
    pipeline = StreamPipeline([Stream(StandInSource(3), [sink])], StandInDetector())
    pipeline.start()
    assert pipeline.wait(FOREVER)
    pipeline.stop()
    pipeline.stop()
    assert pipeline.close()[0].outcome == "complete"
    pipeline.stop()


def test_stop_before_start_reads_nothing() -> None:
    detector, sink = StandInDetector(), StandInSink()
    pipeline = StreamPipeline([Stream(StandInSource(3), [sink])], detector)
    pipeline.stop()
    assert pipeline.run()[0].outcome == "interrupted"
    assert (detector.seen, sink.outcomes) == ([], ["interrupted"])


def test_close_without_start_closes_everything() -> None:
    source, sink = StandInSource(3), StandInSink()
    pipeline = StreamPipeline([Stream(source, [sink])], StandInDetector())
    assert pipeline.close()[0].frames_read == 0
    assert pipeline.close()[0].outcome == "interrupted"
    assert (source.closed, sink.outcomes) == (1, ["interrupted"])


@pytest.mark.parametrize("seed", range(12))
def test_stop_at_a_random_moment_never_hangs_or_miscounts(seed: int) -> None:
    source, detector, sink = StandInSource(100_000), StandInDetector(), StandInSink()
    pipeline = StreamPipeline([Stream(source, [sink])], detector)
    pipeline.start()
    while pipeline.counts[0]["written"] < seed * 7:
        assert not pipeline.wait(0.001)
    pipeline.stop()
    summary = _wait_and_close(pipeline)
    assert sink.results == list(range(len(sink.results)))
    assert summary.outcome == "interrupted"
    assert pipeline.threads_left == []
    _assert_adds_up(summary)


def test_as_a_context_manager_it_stops_and_closes() -> None:
    source, sink = StandInSource(100_000), StandInSink()
    with StreamPipeline([Stream(source, [sink])], StandInDetector()) as pipeline:
        assert sink.writing.wait(FOREVER)
    assert pipeline.threads_left == []
    assert (source.closed, sink.outcomes) == (1, ["interrupted"])


def test_as_a_context_manager_it_lets_the_callers_error_pass() -> None:
    sink = StandInSink(fail_at=0)

    def fail_inside() -> None:
        with StreamPipeline([Stream(StandInSource(5), [sink])], StandInDetector()) as pipeline:
            assert pipeline.wait(FOREVER)
            raise KeyError("ours")

    with pytest.raises(KeyError, match="ours"):
        fail_inside()
    assert sink.outcomes == ["failed"]


def test_without_sinks_nothing_counts_as_written() -> None:
    (summary,) = StreamPipeline([Stream(StandInSource(5), [])], StandInDetector()).run()
    assert (summary.frames_detected, summary.frames_written, summary.frames_dropped) == (5, 0, {})


def test_summary_as_text_and_record_tell_the_same() -> None:
    source = StandInSource(5)
    source.faults = {"undecodable": 2}
    (summary,) = StreamPipeline([Stream(source, [StandInSink("encode")])], StandInDetector()).run()
    record, text = summary.as_record(), summary.as_text()
    assert record["schema_version"] == 1
    assert record["frames_read"] == record["frames_written"] == 5
    assert record["source_faults"] == {"undecodable": 2}
    assert set(record["latency_ms"]["encode"]) == {"count", "mean", "p50", "p95", "p99", "max"}
    assert "5 read, 5 detected, 5 written, 0 dropped" in text
    assert "2 undecodable" in text
    assert "wrote encode" in text
