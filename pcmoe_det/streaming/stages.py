"""What the threads of a pipeline do: read, detect, render.

Each function runs until its input ends or its queue is closed. It raises what went wrong, as a
``PcmoeError`` that names the frame; telling the other threads is the pipeline's part. On a live stream a
frame that the detector or an output cannot take is counted as ``bad_frame`` and left out, until too many in
a row fail. An output that says itself that it cannot be written (``OutputError``) ends its stream at once:
the disk does not become empty by the next frame.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import OutputError, PcmoeError
from pcmoe_det.streaming.failures import as_stage_error
from pcmoe_det.streaming.lanes import ReadFrame, StreamLane, merged_gap
from pcmoe_det.streaming.queues import QueueEnded
from pcmoe_det.streaming.render import draw_detections
from pcmoe_det.structures import Detections, FrameDetector, FrameResult, StreamAwareDetector

__all__ = ["detect_in_turn", "read_frames", "render_results"]


def read_frames(lane: StreamLane) -> None:
    """Put the source's frames, at most ``lane.max_frames``, into ``lane.to_detect``."""
    frames = iter(lane.source)
    read_count = 0
    while lane.max_frames is None or read_count < lane.max_frames:
        started_seconds = lane.clock()
        try:
            frame = next(frames, None)
        except Exception as error:
            raise as_stage_error(f"reading {lane.name} failed after {read_count} frames", error) from error
        if frame is None:
            return
        read_ms = lane.timed("read", started_seconds)
        read_count += 1
        lane.metrics.count("read")
        lane.note_gap(frame)
        try:
            lane.to_detect.put(ReadFrame(frame=frame, read_ms=read_ms, read_at_seconds=lane.clock()))
        except QueueEnded:
            return


def detect_in_turn(
    turns: Iterable[tuple[StreamLane, ReadFrame | None]],
    detector: FrameDetector,
    *,
    score_threshold: float,
    on_failure: Callable[[StreamLane, BaseException], None],
) -> None:
    """Answer frames of several lanes as they come, one at a time, and send each its own way.

    Args:
        turns: A lane and its next frame, or None once when the lane has ended.
        detector: Used by this thread only.
        score_threshold: Detections below are left out.
        on_failure: Told about a lane that cannot go on; the others do.
    """
    stream_aware = detector if isinstance(detector, StreamAwareDetector) else None
    class_count = len(detector.class_names)
    for lane, queued in turns:
        try:
            if queued is not None:
                _detect_next(
                    lane,
                    queued,
                    detector,
                    stream_aware,
                    class_count=class_count,
                    score_threshold=score_threshold,
                )
                continue
            if stream_aware is not None:
                stream_aware.forget_stream(lane.name)
        except BaseException as error:
            on_failure(lane, error)
        if queued is None:
            lane.to_render.finish()


def _detect_next(
    lane: StreamLane,
    queued: ReadFrame,
    detector: FrameDetector,
    stream_aware: StreamAwareDetector | None,
    *,
    class_count: int,
    score_threshold: float,
) -> None:
    wait_ms = lane.timed("wait", queued.read_at_seconds)
    frame = queued.frame
    started_seconds = lane.clock()
    if lane.latency_limit is not None and lane.latency_limit.is_too_late(
        frame.captured_at_seconds, started_seconds
    ):
        lane.metrics.drop("too_late")
        return
    gaps = lane.gaps_before(frame)
    latency_ms = {"read": queued.read_ms, "wait": wait_ms}
    try:
        if gaps and lane.tracker is not None:
            lane.tracker.reset()
        if stream_aware is not None:
            if gaps:
                stream_aware.forget_stream(frame.source_id)
            stream_aware.select_stream(frame.source_id)
        found = _detect_one(detector, frame.image, class_count=class_count)
        latency_ms["detect"] = lane.timed("detect", started_seconds)
        found = _above_threshold(found, score_threshold)
        frame = merged_gap(frame, gaps)
        if lane.tracker is not None:
            track_started_seconds = lane.clock()
            found = lane.tracker.update(frame, found)
            latency_ms["track"] = lane.timed("track", track_started_seconds)
    except Exception as error:
        what = f"the detector failed on frame {frame.frame_index} of {lane.name}"
        lane.detect_failures.failed(as_stage_error(what, error))
        lane.metrics.drop("bad_frame")
        return
    lane.detect_failures.succeeded()
    lane.gaps_told(frame)
    if lane.latency_limit is not None:
        lane.latency_limit.add(latency_ms["detect"] / 1e3)
    lane.metrics.count("detected")
    try:
        lane.to_render.put(FrameResult(frame=frame, detections=found, latency_ms=latency_ms))
    except QueueEnded:
        return


def render_results(lane: StreamLane, *, class_names: tuple[str, ...]) -> None:
    """Draw the results in ``lane.to_render`` where a sink needs it, and give them to the sinks."""
    for result in lane.to_render:
        problem = _render_one(lane, result, class_names)
        if problem is not None:
            lane.render_failures.failed(problem)
            lane.metrics.drop("bad_frame")
            continue
        lane.render_failures.succeeded()
        lane.timed("total", result.frame.captured_at_seconds)
        if lane.sinks:
            lane.metrics.count("written")


def _render_one(lane: StreamLane, result: FrameResult, class_names: tuple[str, ...]) -> PcmoeError | None:
    """One result through every sink that can take it; the first problem, if any.

    Raises:
        OutputError: An output cannot be written any more.
    """
    frame = result.frame
    latency_ms = dict(result.latency_ms)
    picture: NDArray[np.uint8] | None = None
    problem: PcmoeError | None = None
    if any(sink.needs_picture for sink in lane.sinks):  # a preview wants one while somebody watches
        started_seconds = lane.clock()
        try:
            picture = draw_detections(frame.image, result.detections, class_names=class_names)
        except Exception as error:
            return as_stage_error(f"drawing frame {frame.frame_index} of {lane.name} failed", error)
        latency_ms["render"] = lane.timed("render", started_seconds)
    for sink in lane.sinks:
        started_seconds = lane.clock()
        total_ms = (started_seconds - frame.captured_at_seconds) * 1e3
        timed_result = replace(result, latency_ms={**latency_ms, "total": total_ms})
        lane.writing_to = sink.stage
        try:
            sink.write(timed_result, picture)
        except OutputError:
            raise
        except Exception as error:
            what = f"the {sink.stage} output failed on frame {frame.frame_index} of {lane.name}"
            error = as_stage_error(what, error)
            if not lane.source.is_live:
                raise error from error.__cause__
            problem = problem or error
        else:
            latency_ms[sink.stage] = lane.timed(sink.stage, started_seconds)
        finally:
            lane.writing_to = None
    return problem


def _detect_one(detector: FrameDetector, image: NDArray[np.uint8], *, class_count: int) -> Detections:
    """One picture's detections, checked, because a wrong number in an output is found too late."""
    answers = detector.detect([image])
    if len(answers) != 1:
        raise ValueError(f"one picture was given and {len(answers)} answers came back")
    found = answers[0]
    if not (np.isfinite(found.boxes_xyxy).all() and np.isfinite(found.scores).all()):
        raise ValueError("a box or a score is not a finite number")
    if len(found) and not (found.class_ids.min() >= 0 and found.class_ids.max() < class_count):
        raise ValueError(f"a class id is outside 0..{class_count - 1}")
    return found


def _above_threshold(detections: Detections, score_threshold: float) -> Detections:
    keep = detections.scores >= score_threshold
    if keep.all():
        return detections
    track_ids = detections.track_ids
    return replace(
        detections,
        boxes_xyxy=detections.boxes_xyxy[keep],
        scores=detections.scores[keep],
        class_ids=detections.class_ids[keep],
        track_ids=None if track_ids is None else track_ids[keep],
    )
