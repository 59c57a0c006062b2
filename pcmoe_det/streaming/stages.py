"""What the three threads of a stream do: read, detect, render.

Each function runs until its input ends or its queue is closed. It raises what went wrong, as a
``PcmoeError`` that names the frame; telling the other threads is the pipeline's part.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import PcmoeError
from pcmoe_det.streaming.metrics import StreamMetrics
from pcmoe_det.streaming.queues import BoundedQueue, QueueEnded
from pcmoe_det.streaming.render import draw_detections
from pcmoe_det.streaming.sinks import ResultSink
from pcmoe_det.streaming.sources import FrameSource
from pcmoe_det.structures import Detections, Frame, FrameDetector, FrameResult

__all__ = ["ReadFrame", "StageError", "StreamLane", "detect_frames", "read_frames", "render_results"]


class StageError(PcmoeError):
    """A stage of a stream failed for a reason that is nobody's input: the cause is attached."""


@dataclass(frozen=True, slots=True, eq=False)
class ReadFrame:
    """A frame on its way to the detector."""

    frame: Frame
    read_ms: float
    read_at_seconds: float


@dataclass(slots=True, eq=False)
class StreamLane:
    """One source with its queues, sinks and counters. Several lanes may share one detector.

    Attributes:
        source: Read by this lane's reader only.
        sinks: Written to in this order by this lane's renderer only, each seeing the latency of those before.
        to_detect: From reader to detector; its policy decides between every frame and the freshest.
        to_render: From detector to renderer; always every result.
        metrics: Counters and latencies.
        clock: Seconds, monotonic; the clock of ``Frame.captured_at_seconds``.
    """

    source: FrameSource
    sinks: Sequence[ResultSink]
    to_detect: BoundedQueue[ReadFrame]
    to_render: BoundedQueue[FrameResult]
    metrics: StreamMetrics = field(default_factory=StreamMetrics)
    clock: Callable[[], float] = time.monotonic

    def timed(self, stage: str, since_seconds: float) -> float:
        """Milliseconds since ``since_seconds``, also added to the latencies of ``stage``."""
        elapsed_ms = (self.clock() - since_seconds) * 1e3
        self.metrics.add_latency(stage, elapsed_ms)
        return elapsed_ms


def read_frames(lane: StreamLane, *, max_frames: int | None = None) -> None:
    """Put the source's frames, at most ``max_frames``, into ``lane.to_detect``."""
    frames = iter(lane.source)
    read_count = 0
    while max_frames is None or read_count < max_frames:
        started_seconds = lane.clock()
        try:
            frame = next(frames, None)
        except PcmoeError:
            raise
        except Exception as error:
            raise StageError(
                f"reading {lane.source.source_id} failed after {read_count} frames: {_named(error)}"
            ) from error
        if frame is None:
            return
        read_ms = lane.timed("read", started_seconds)
        read_count += 1
        lane.metrics.count("read")
        try:
            lane.to_detect.put(ReadFrame(frame=frame, read_ms=read_ms, read_at_seconds=lane.clock()))
        except QueueEnded:
            return


def detect_frames(lane: StreamLane, detector: FrameDetector, *, score_threshold: float = 0.0) -> None:
    """Run the detector on what ``lane.to_detect`` holds and put the results into ``lane.to_render``.

    Detections below ``score_threshold`` are left out.
    """
    class_count = len(detector.class_names)
    for queued in lane.to_detect:
        wait_ms = lane.timed("wait", queued.read_at_seconds)
        started_seconds = lane.clock()
        try:
            detections = _detect_one(detector, queued.frame.image, class_count=class_count)
        except PcmoeError:
            raise
        except Exception as error:
            raise StageError(
                f"the detector failed on frame {queued.frame.frame_index} of {queued.frame.source_id}: "
                f"{_named(error)}"
            ) from error
        latency_ms = {
            "read": queued.read_ms,
            "wait": wait_ms,
            "detect": lane.timed("detect", started_seconds),
        }
        lane.metrics.count("detected")
        kept = _above_threshold(detections, score_threshold)
        try:
            lane.to_render.put(FrameResult(frame=queued.frame, detections=kept, latency_ms=latency_ms))
        except QueueEnded:
            return


def render_results(lane: StreamLane, *, class_names: tuple[str, ...]) -> None:
    """Draw the results in ``lane.to_render`` where a sink needs it, and give them to the sinks."""
    needs_picture = any(sink.needs_picture for sink in lane.sinks)
    for result in lane.to_render:
        frame = result.frame
        latency_ms = dict(result.latency_ms)
        picture: NDArray[np.uint8] | None = None
        if needs_picture:
            started_seconds = lane.clock()
            picture = draw_detections(frame.image, result.detections, class_names=class_names)
            latency_ms["render"] = lane.timed("render", started_seconds)
        for sink in lane.sinks:
            started_seconds = lane.clock()
            total_ms = (started_seconds - frame.captured_at_seconds) * 1e3
            timed_result = replace(result, latency_ms={**latency_ms, "total": total_ms})
            try:
                sink.write(timed_result, picture)
            except PcmoeError:
                raise
            except Exception as error:
                raise StageError(
                    f"the {sink.stage} output failed on frame {frame.frame_index} of {frame.source_id}: "
                    f"{_named(error)}"
                ) from error
            latency_ms[sink.stage] = lane.timed(sink.stage, started_seconds)
        lane.timed("total", frame.captured_at_seconds)
        if lane.sinks:
            lane.metrics.count("written")


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
    return replace(
        detections,
        boxes_xyxy=detections.boxes_xyxy[keep],
        scores=detections.scores[keep],
        class_ids=detections.class_ids[keep],
    )


def _named(error: BaseException) -> str:
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
