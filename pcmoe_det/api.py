"""The stream as a Python iterator.

    import pcmoe_det

    for result in pcmoe_det.stream("street.mp4", score_threshold=0.5):
        print(result["frame_index"], [found["category"] for found in result["detections"]])

``with`` ends a stream that is left early at once; without it that happens when the iterator is collected::

    with pcmoe_det.stream(0) as results:  # the first camera
        for result in results:
            if any(found["category"] == "pedestrian" for found in result["detections"]):
                break

On small machines set ``OMP_WAIT_POLICY=PASSIVE`` in the environment before Python starts, as the commands
do: OpenMP workers that spin starve the threads that read. A library does not set it for its caller.
"""

from __future__ import annotations

import argparse
import logging
from collections import Counter
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from inspect import GEN_CREATED, getgeneratorstate
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.cli.committee_choice import MISS_HANDLINGS, POLICY_NAMES, check_committee_options
from pcmoe_det.cli.committee_options import add_committee_options, open_detector
from pcmoe_det.errors import PcmoeError, UsageError
from pcmoe_det.streaming.jsonl_sink import result_record
from pcmoe_det.streaming.lanes import Stream
from pcmoe_det.streaming.modes import STREAM_MODES, StreamMode, choose_policy
from pcmoe_det.streaming.pipeline import DETECTOR_THREAD, StreamPipeline
from pcmoe_det.streaming.queues import BoundedQueue, QueueEnded
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.streaming.source_factory import open_camera, open_source
from pcmoe_det.streaming.sources import FrameSource, SourceOptions
from pcmoe_det.streaming.summary import StreamSummary
from pcmoe_det.streaming.tracking import TRACKER_NAMES, make_tracker
from pcmoe_det.structures import FrameDetector, FrameResult

__all__ = ["ResultStream", "StreamResult", "stream"]

_log = logging.getLogger(__name__)


class StreamResult(dict[str, Any]):
    """One frame's record: the object of one JSON line, see ``pcmoe_det.streaming.jsonl_sink``.

    Attributes:
        result: What the record was made of: ``result.frame.image`` is the picture (``[height, width, 3]``
            uint8 BGR, not to be written to), ``result.detections`` holds arrays.
    """

    def __init__(self, record: dict[str, Any], result: FrameResult) -> None:
        super().__init__(record)
        self.result = result


def stream(
    source: str | Path | int | FrameSource,
    *,
    model: str | Path | FrameDetector | None = None,
    config: str | Path | None = None,
    device: str = "cpu",
    threads: int | None = None,
    dtype: str = "auto",
    policy: str | None = None,
    expert_budget: str | float | None = None,
    on_miss: str | None = None,
    score_threshold: float = 0.3,
    mode: StreamMode = "auto",
    max_latency_seconds: float | None = None,
    max_frames: int | None = None,
    track: str | None = None,
    source_options: SourceOptions | None = None,
) -> ResultStream:
    """Detect objects in one source, frame by frame.

    Nothing is opened before the first result is asked for. A slow caller holds up
    the reading of a file; of a live source it gets the freshest results, and what it had no time for is
    counted as ``replaced_by_newer``.

    Args:
        source: A file, a folder or pattern of pictures, an address, a camera's index, or an open source (then
            closed at the end).
        model: Weights or a packed folder; None is the shipped weights. Or a detector, which stays open: give
            the same one to several streams, one after the other, to load it once.
        config: The model's configuration, where the weights do not name it.
        device: Where the model runs.
        threads: Threads of the detector; sets torch's number for the process.
        dtype: ``auto``, ``float32`` or ``bfloat16``.
        policy: Which experts are resident; None is all of them. See ``pcmoe-stream --help`` for this and the
            next two.
        expert_budget: Memory for experts, such as ``0.5`` or ``"300MiB"``.
        on_miss: What a token does whose expert is absent.
        score_threshold: Detections below are left out, 0 to 1.
        mode: ``every-frame``, ``freshest`` or ``auto`` (files the former, live sources the latter).
        max_latency_seconds: Frames of live sources that would be answered later are dropped.
        max_frames: Stop after reading so many.
        track: A tracker's name (``bytetrack``, ``sort``, ``ocsort``) to number objects.
        source_options: Time-outs and reconnecting.

    Returns:
        An iterator over ``StreamResult``. It raises the errors of the stream, after the results before them.

    Raises:
        UsageError: A value that cannot be met whatever the source is.
    """
    _check_choice("mode", mode, STREAM_MODES)
    if not 0.0 <= score_threshold <= 1.0:
        raise UsageError(f"score_threshold is {score_threshold}; give a number from 0 to 1")
    if max_frames is not None and max_frames < 1:
        raise UsageError(f"max_frames is {max_frames}; give a whole number from 1, or None")
    if max_latency_seconds is not None and not max_latency_seconds > 0:
        raise UsageError(f"max_latency_seconds is {max_latency_seconds}; give seconds above 0, or None")
    _check_choice("policy", policy, POLICY_NAMES)
    _check_choice("on_miss", on_miss, MISS_HANDLINGS)
    _check_choice("dtype", dtype, ("auto", "float32", "bfloat16"))
    _check_choice("track", track, TRACKER_NAMES)
    if threads is not None and threads < 1:
        raise UsageError(f"threads is {threads}; give a whole number from 1, or None")
    of_model = dict(config=config, policy=policy, expert_budget=expert_budget, on_miss=on_miss)
    if model is not None and not isinstance(model, (str, Path)):
        for name, value in of_model.items():
            if value is not None:
                raise UsageError(f"{name} is for a model to open, and model is open already; leave one out")
    arguments = _model_arguments({**of_model, "device": device, "threads": threads, "dtype": dtype})
    return ResultStream(
        _Plan(
            source=source,
            source_options=source_options or SourceOptions(),
            open_detector=lambda stack: _open_detector(model, arguments, score_threshold, stack),
            score_threshold=score_threshold,
            mode=mode,
            max_latency_seconds=max_latency_seconds,
            max_frames=max_frames,
            track=track,
        )
    )


class ResultStream(Iterator[StreamResult]):
    """Results in the order of frames; made by ``stream``. Used by one thread.

    ``close`` may be called at any time and again; afterwards the iteration is over.
    """

    def __init__(self, plan: _Plan) -> None:
        self._plan = plan
        self._results = _results(plan)

    def __next__(self) -> StreamResult:
        return next(self._results)

    def __enter__(self) -> ResultStream:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Stop reading and detecting, and close the source and the model."""
        never_asked = getgeneratorstate(self._results) == GEN_CREATED
        self._results.close()
        if never_asked and not isinstance(self._plan.source, (str, Path, int)):
            self._plan.source.close()  # no part of the generator has run, so its end neither

    @property
    def summary(self) -> StreamSummary | None:
        """What was done so far; None before the first result was asked for."""
        pipeline, queue = self._plan.pipeline, self._plan.queue
        if pipeline is None or queue is None:
            return None
        (summary,) = pipeline.summaries()
        not_taken = queue.dropped  # by the caller
        return replace(
            summary,
            frames_written=summary.frames_written - sum(not_taken.values()),
            frames_dropped=dict(Counter(summary.frames_dropped) + Counter(not_taken)),
        )


@dataclass
class _Plan:
    """What a stream is to do, and its pipeline once there is one."""

    source: str | Path | int | FrameSource
    source_options: SourceOptions
    open_detector: Callable[[ExitStack], FrameDetector]
    score_threshold: float
    mode: StreamMode
    max_latency_seconds: float | None
    max_frames: int | None
    track: str | None
    pipeline: StreamPipeline | None = None
    queue: BoundedQueue[StreamResult] | None = None


_MODELS_LEFT_OPEN: list[ExitStack] = []
"""Of streams that were left while their detector hung in a frame; held until the process ends."""


class _HandOver:
    """A sink whose results another thread takes, one at a time.

    Live results replace each other: the caller gets the newest, and the detector never waits for it.
    """

    stage = "hand_over"
    needs_picture = False

    def __init__(self, queue: BoundedQueue[StreamResult], class_names: tuple[str, ...]) -> None:
        self._queue = queue
        self._class_names = class_names

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:  # noqa: ARG002
        record = result_record(result, class_names=self._class_names)
        try:
            self._queue.put(StreamResult(record, result))
        except QueueEnded:  # the caller has left; the pipeline is being stopped
            return

    def close(self, outcome: SinkOutcome) -> list[Path]:  # noqa: ARG002
        self._queue.finish()
        return []


def _results(plan: _Plan) -> Generator[StreamResult, None, None]:
    """The life of a stream. A generator's ``finally`` runs however its caller leaves it."""
    with ExitStack() as stack:
        with ExitStack() as on_failure:
            source = _open_source(plan)
            on_failure.callback(source.close)
            rate = source.frame_rate
            tracker = None
            if plan.track is not None:
                tracker = make_tracker(plan.track, frame_rate=None if rate is None else float(rate))
            detector = plan.open_detector(stack)
            policy = choose_policy(plan.mode, is_live=source.is_live)
            queue = plan.queue = BoundedQueue(1, policy=policy)
            sink = _HandOver(queue, detector.class_names)
            pipeline = plan.pipeline = StreamPipeline(
                [Stream(source, [sink], mode=plan.mode, max_frames=plan.max_frames, tracker=tracker)],
                detector,
                score_threshold=plan.score_threshold,
                max_latency_seconds=plan.max_latency_seconds,
            )
            on_failure.pop_all()
        came_to_its_end = False
        try:
            pipeline.start()
            yield from queue
            came_to_its_end = True
        finally:
            pipeline.stop()  # without effect after the end
            queue.close(cause="stopped")
            try:
                pipeline.close()
            except PcmoeError as error:
                if came_to_its_end:
                    raise
                _log.warning("while ending early: %s", error)
            finally:
                if DETECTOR_THREAD in pipeline.threads_left:
                    _log.warning("the detector is still busy with a frame; the model stays open")
                    _MODELS_LEFT_OPEN.append(stack.pop_all())  # dropped, it would close the model


def _model_arguments(settings: Mapping[str, Any]) -> argparse.Namespace:
    """Settings of a model as the commands have them, with the others' defaults; checked."""
    parser = argparse.ArgumentParser()
    add_committee_options(parser, loading="background")
    arguments = parser.parse_args([])
    for name, value in settings.items():
        setattr(arguments, name, value)
    check_committee_options(arguments)
    return arguments


def _check_choice(name: str, value: str | None, choices: Sequence[str]) -> None:
    if value is not None and value not in choices:
        raise UsageError(f"{name} is {value!r}; choose one of {', '.join(choices)}")


def _open_source(plan: _Plan) -> FrameSource:
    if isinstance(plan.source, int):
        return open_camera(plan.source, options=plan.source_options)
    if isinstance(plan.source, (str, Path)):
        return open_source(str(plan.source), options=plan.source_options)
    return plan.source


def _open_detector(
    model: str | Path | FrameDetector | None,
    arguments: argparse.Namespace,
    score_threshold: float,
    stack: ExitStack,
) -> FrameDetector:
    """A detector given is used; one opened here is closed by ``stack``."""
    if model is not None and not isinstance(model, (str, Path)):
        return model
    opened = stack.enter_context(
        open_detector(None if model is None else str(model), arguments, score_threshold=score_threshold)
    )
    return opened.for_frames()
