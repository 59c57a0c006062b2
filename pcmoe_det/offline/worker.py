"""One file in a worker, and what a worker does around it."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pcmoe_det.errors import OutputError, PcmoeError, SourceError
from pcmoe_det.offline.job import fingerprint_of
from pcmoe_det.offline.status import FAILED_LOAD, Fingerprint
from pcmoe_det.structures import FrameDetector, RestartableDetector

if TYPE_CHECKING:
    from pcmoe_det.streaming import ResultSink, StreamPipeline

__all__ = ["FileOutcome", "FileTask", "check_place", "process_file"]

_log = logging.getLogger(__name__)

_REPORT_SECONDS = 0.25


@dataclass(frozen=True)
class FileTask:
    """One attempt at one file.

    Attributes:
        attempt: Its name.
        source: The video, or a folder of pictures.
        staging: An empty folder of its own; gets ``result.jsonl`` and, with ``video``, ``result.mp4``.
        video: Whether to write the annotated video.
        score_threshold: Detections below are left out.
        max_frames: None is all.
    """

    attempt: str
    source: Path
    staging: Path
    video: bool
    score_threshold: float
    max_frames: int | None


@dataclass(frozen=True)
class FileOutcome:
    """How an attempt ended.

    Attributes:
        error: None if the results are whole and on the disk; else one sentence.
        frames: Written.
        seconds: From opening the source to closing the results.
        faults: Damage in the source that did not end it, by cause; ``failed_load`` is an expert that could
            not be read when the policy wanted it.
        fingerprint: The source as it was read.
        worn: The worker's process must not be used again: something is still running in it, or an error that
            nobody foresaw may have left the device or a library in a bad state.
    """

    error: str | None
    frames: int
    seconds: float
    faults: dict[str, int] = field(default_factory=dict)
    fingerprint: Fingerprint | None = None
    worn: bool = False


def process_file(task: FileTask, detector: FrameDetector) -> Iterator[int | FileOutcome]:
    """Run one file through the detector, whose results do not depend on the files before.

    Yields:
        Now and then the number of frames done; at last how it ended. What goes wrong with the file is in
        the outcome, not raised.
    """
    started_seconds = time.monotonic()
    fingerprint = fingerprint_of(task.source)
    try:
        failed_loads = _start_anew(detector)
    except PcmoeError as error:  # a read that hangs
        yield FileOutcome(
            str(error), 0, time.monotonic() - started_seconds, fingerprint=fingerprint, worn=True
        )
        return
    try:
        pipeline = _open_pipeline(task, detector)
    except PcmoeError as error:
        yield FileOutcome(str(error), 0, time.monotonic() - started_seconds, fingerprint=fingerprint)
        return
    error_text: str | None = None
    unforeseen = False
    pipeline.start()
    while not pipeline.wait(_REPORT_SECONDS):
        yield _frames_written(pipeline)
    try:
        pipeline.close()
        if fingerprint_of(task.source) != fingerprint:
            raise SourceError(f"{task.source} changed while it was read; it is done again in the next run")
        _put_on_disk(task)
    except PcmoeError as error:
        from pcmoe_det.streaming import StageError

        error_text, unforeseen = str(error), isinstance(error, StageError)
        if error.__cause__ is not None:
            _log.info("%s", error_text, exc_info=error)
    yield FileOutcome(
        error_text,
        _frames_written(pipeline),
        time.monotonic() - started_seconds,
        faults=_faults(pipeline, failed_loads=_failed_loads(detector) - failed_loads),
        fingerprint=fingerprint,
        worn=unforeseen or bool(pipeline.threads_left),
    )


def check_place(*, folder: Path, proof_path: Path, run_id: str) -> None:
    """Make sure that this process sees the job's folders; on another machine it may not.

    Raises:
        OutputError, SourceError: It does not.
    """
    try:
        seen = json.loads(proof_path.read_text(encoding="utf-8"))["run"]
    except (OSError, ValueError, KeyError, TypeError):
        seen = None
    if seen != run_id:
        raise OutputError(
            f"the worker on {os.uname().nodename} does not see the output folder of this run at "
            f"{proof_path.parent.parent}; it must lie on a file system that all machines share, under the "
            "same path"
        )
    if not folder.is_dir():
        raise SourceError(
            f"the worker on {os.uname().nodename} does not see the folder {folder}; it must lie on a file "
            "system that all machines share, under the same path"
        )


def _open_pipeline(task: FileTask, detector: FrameDetector) -> StreamPipeline:
    """The only place that knows how a pipeline is put together."""
    from pcmoe_det.streaming import FileSource, JsonLinesSink, OutputFile, Stream, StreamPipeline, VideoSink
    from pcmoe_det.streaming.image_source import ImageSource

    # Not by ``open_source``: a name here is a file's, also where it looks like an address or a pattern.
    source = ImageSource(task.source) if task.source.is_dir() else FileSource(task.source)
    with ExitStack() as on_failure:
        on_failure.callback(source.close)
        sinks: list[ResultSink] = []
        if task.video:
            target = OutputFile(task.staging / "result.mp4", overwrite=True)
            sinks.append(VideoSink(target, frame_rate=source.frame_rate, time_base=source.time_base))
        target = OutputFile(task.staging / "result.jsonl", overwrite=True)
        sinks.append(JsonLinesSink(target, class_names=detector.class_names))
        stream = Stream(source, sinks, mode="every-frame", max_frames=task.max_frames)
        pipeline = StreamPipeline([stream], detector, score_threshold=task.score_threshold)
        on_failure.pop_all()  # from here on the pipeline closes the source
    return pipeline


def _frames_written(pipeline: StreamPipeline) -> int:
    return pipeline.counts[0]["written"]


def _faults(pipeline: StreamPipeline, *, failed_loads: int) -> dict[str, int]:
    of_experts = {FAILED_LOAD: failed_loads} if failed_loads else {}
    return {**pipeline.summaries()[0].source_faults, **of_experts}


def _start_anew(detector: FrameDetector) -> int:
    """Forget earlier files; the number of failed loads so far."""
    if isinstance(detector, RestartableDetector):
        detector.start_anew()
    return _failed_loads(detector)


def _failed_loads(detector: FrameDetector) -> int:
    return detector.failed_loads() if isinstance(detector, RestartableDetector) else 0


def _put_on_disk(task: FileTask) -> None:
    """The results reach the disk before the status says that they are there."""
    for name in ("result.jsonl", "result.mp4") if task.video else ("result.jsonl",):
        path = task.staging / name
        try:
            with path.open("rb") as file:
                os.fsync(file.fileno())
        except OSError as error:
            raise OutputError(f"{path} cannot be written: {error.strerror or error}") from error
