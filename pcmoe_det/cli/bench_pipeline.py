"""What the rest of a stream costs: the whole pipeline against the detector alone."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.streaming import (
    FileSource,
    JsonLinesSink,
    OutputFile,
    ResultSink,
    Stream,
    StreamPipeline,
    VideoSink,
)
from pcmoe_det.structures import SHIFT_CLASSES, Detections, FrameDetector

__all__ = ["StandInDetector", "compare_pipeline"]

_BOXES = 8


class StandInDetector:
    """Keeps one core busy for a given time a frame and finds the same boxes in each.

    Unlike a model it is the same on every machine and does not share the work among threads, so the other
    core belongs to the rest of the pipeline.

    Args:
        milliseconds: Of processor time a frame takes.
    """

    class_names = SHIFT_CLASSES

    def __init__(self, milliseconds: float) -> None:
        self._seconds = milliseconds / 1e3
        random = np.random.default_rng(0)
        first = random.uniform(0, 0.8, (_BOXES, 2))
        self._boxes = np.hstack([first, first + np.array((0.1, 0.15))])
        self._work = random.standard_normal((192, 192)).astype(np.float32)

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Burn the time, then give the boxes in pixels of each image."""
        return [self._detect(image) for image in images]

    def _detect(self, image: NDArray[np.uint8]) -> Detections:
        end_seconds = time.thread_time() + self._seconds
        while time.thread_time() < end_seconds:
            np.einsum("ij,jk->ik", self._work, self._work)  # a plain loop in C: no BLAS threads
        height, width = image.shape[:2]
        boxes = self._boxes * (width, height, width, height)
        return Detections(
            boxes_xyxy=boxes.astype(np.float32),
            scores=np.linspace(0.95, 0.4, _BOXES, dtype=np.float32),
            class_ids=np.arange(_BOXES, dtype=np.int64) % len(SHIFT_CLASSES),
        )


@dataclass
class _Times:
    """Of the rounds of one variant: frames per second, and processor time of all threads per frame, which
    other programs on the machine change less."""

    per_second: list[float] = field(default_factory=list)
    processor_ms: list[float] = field(default_factory=list)

    @contextmanager
    def measured(self, frames: int) -> Iterator[None]:
        wall_seconds, processor_seconds = time.perf_counter(), time.process_time()
        yield
        self.per_second.append(frames / (time.perf_counter() - wall_seconds))
        self.processor_ms.append(1e3 * (time.process_time() - processor_seconds) / frames)


def compare_pipeline(
    clip: Path, *, detector: FrameDetector, frames: int, rounds: int, score_threshold: float = 0.3
) -> dict[str, Any]:
    """Frames per second of the detector on decoded pictures in memory, and of decoding, detecting, drawing
    and writing H.264 and JSON Lines of the same frames, in turn ``rounds`` times.

    Opening and closing the files is part of the pipeline's time.

    Raises:
        PcmoeError: The clip cannot be read.
    """
    source = FileSource(clip)
    try:
        images = [frame.image for frame in islice(source, frames)]
    finally:
        source.close()
    alone, whole = _Times(), _Times()
    stages: dict[str, float] = {}
    detector.detect(images[:1])  # warm
    with tempfile.TemporaryDirectory(prefix="pcmoe-bench-") as folder:
        for _ in range(rounds):
            with alone.measured(len(images)):
                for image in images:
                    detector.detect([image])
            with whole.measured(len(images)):
                stages = _run_pipeline(clip, detector, len(images), Path(folder), score_threshold)
    height, width = images[0].shape[:2]
    return {
        "clip": clip.name,
        "size": f"{height}x{width}",
        "frames": len(images),
        "detector_frames_per_second": alone.per_second,
        "pipeline_frames_per_second": whole.per_second,
        "median_detector_frames_per_second": float(np.median(alone.per_second)),
        "median_pipeline_frames_per_second": float(np.median(whole.per_second)),
        "pipeline / detector": float(np.median(whole.per_second) / np.median(alone.per_second)),
        "detector_processor_ms_per_frame": float(np.median(alone.processor_ms)),
        "pipeline_processor_ms_per_frame": float(np.median(whole.processor_ms)),
        "median_ms_by_stage": stages,
    }


def _run_pipeline(
    clip: Path, detector: FrameDetector, frames: int, folder: Path, score_threshold: float
) -> dict[str, float]:
    source = FileSource(clip)
    video = OutputFile(folder / "out.mp4", overwrite=True)
    lines = OutputFile(folder / "out.jsonl", overwrite=True)
    sinks: list[ResultSink] = [
        VideoSink(video, frame_rate=source.frame_rate, time_base=source.time_base),
        JsonLinesSink(lines, class_names=detector.class_names),
    ]
    stream = Stream(source, sinks, max_frames=frames)
    (summary,) = StreamPipeline([stream], detector, score_threshold=score_threshold).run()
    return {stage: round(quantiles.p50_ms, 2) for stage, quantiles in summary.latency.items()}
