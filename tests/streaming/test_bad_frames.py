"""What a live stream survives and a file job does not."""

from __future__ import annotations

import logging

import pytest

from pcmoe_det.errors import CheckpointError, OutputError
from pcmoe_det.streaming import StageError, Stream, StreamPipeline
from pcmoe_det.streaming.failures import FailureStreak
from tests.streaming.stand_ins import StandInDetector, StandInSink, StandInSource, index_of

pytestmark = pytest.mark.timeout(30)


class Detector(StandInDetector):
    """Fails on the frames listed."""

    def __init__(self, bad: set[int], error: Exception) -> None:
        super().__init__()
        self.bad, self.error = bad, error

    def detect(self, images):
        if index_of(images[0]) in self.bad:
            raise self.error
        return super().detect(images)


class Sink(StandInSink):
    """Fails on the frames listed."""

    def __init__(self, bad: set[int], error: Exception) -> None:
        super().__init__("picky")
        self.bad, self.error = bad, error

    def write(self, result, picture) -> None:
        if result.frame.frame_index in self.bad:
            raise self.error
        super().write(result, picture)


def _live(count: int = 20) -> StandInSource:
    return StandInSource(count, is_live=True)


def _run(source: StandInSource, sinks, detector=None):
    stream = Stream(source, sinks, mode="every-frame")
    pipeline = StreamPipeline([stream], detector or StandInDetector())
    return pipeline, pipeline.run


@pytest.mark.parametrize("error", [RuntimeError("bad picture"), CheckpointError("an expert is damaged")])
def test_a_live_stream_survives_a_frame_that_the_detector_cannot_take(
    error: Exception, caplog: pytest.LogCaptureFixture
) -> None:
    sink = StandInSink()
    with caplog.at_level(logging.WARNING):
        (summary,) = _run(_live(), [sink], Detector({3, 4}, error))[1]()
    assert sink.results == [index for index in range(20) if index not in (3, 4)]
    assert (summary.outcome, summary.frames_dropped) == ("complete", {"bad_frame": 2})
    assert summary.frames_read == 20
    assert caplog.text.count("a frame is lost") == 1  # not once a frame
    assert str(error) in caplog.text


def test_a_live_stream_survives_a_frame_that_an_output_cannot_take() -> None:
    before, picky, after = StandInSink(), Sink({7}, ValueError("no such colour")), StandInSink()
    (summary,) = _run(_live(), [before, picky, after])[1]()
    assert before.results == after.results == list(range(20))
    assert picky.results == [index for index in range(20) if index != 7]
    assert (summary.frames_written, summary.frames_dropped) == (19, {"bad_frame": 1})


@pytest.mark.parametrize("stage", ["detector", "sink"])
def test_a_live_stream_ends_when_ten_frames_in_a_row_fail(stage: str) -> None:
    bad, error = set(range(3, 12)) | set(range(13, 23)), RuntimeError("no memory")  # nine, then ten
    detector = Detector(bad if stage == "detector" else set(), error)
    sink = Sink(bad if stage == "sink" else set(), error)
    pipeline, run = _run(_live(24), [sink], detector)
    with pytest.raises(StageError, match=r"frame 22 of made: RuntimeError: no memory \(10 times in a row"):
        run()
    assert sink.results == [0, 1, 2, 12]
    (summary,) = pipeline.summaries()
    assert (summary.outcome, sink.outcomes) == ("failed", ["failed"])
    assert summary.frames_read == summary.frames_written + sum(summary.frames_dropped.values())


def test_a_file_ends_with_its_first_bad_frame() -> None:
    sink = Sink({2}, ValueError("no such colour"))
    with pytest.raises(StageError, match=r"the picky output failed on frame 2 of made: ValueError: no such"):
        _run(StandInSource(20), [sink])[1]()
    with pytest.raises(CheckpointError, match=r"^an expert is damaged$"):
        _run(StandInSource(20), [StandInSink()], Detector({2}, CheckpointError("an expert is damaged")))[1]()


def test_an_output_that_cannot_be_written_ends_a_live_stream_at_once() -> None:
    sink = Sink({2}, OutputError("the disk is full"))
    with pytest.raises(OutputError, match=r"^the disk is full$"):
        _run(_live(), [sink])[1]()
    assert sink.results == [0, 1]


def test_warnings_come_every_ten_seconds_and_say_how_many_were_left_out(
    caplog: pytest.LogCaptureFixture,
) -> None:
    now = [0.0]
    streak = FailureStreak(10**6, clock=lambda: now[0])
    with caplog.at_level(logging.WARNING):
        for _ in range(21):
            streak.failed(StageError("frame 1"))
            now[0] += 1.0
    assert [record.getMessage() for record in caplog.records] == [
        "a frame is lost: frame 1",
        "a frame is lost: frame 1 (9 more of these since the last warning)",
        "a frame is lost: frame 1 (9 more of these since the last warning)",
    ]
