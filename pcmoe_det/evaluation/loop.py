"""Runs a detector over a data set, video by video, and scores it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

from mmengine.dist import all_gather_object
from mmengine.structures import BaseDataElement
from torch import nn

from pcmoe_det.errors import DataError
from pcmoe_det.evaluation.metric import ShiftMetric
from pcmoe_det.evaluation.report import EvaluationReport

__all__ = ["run_evaluation"]


def run_evaluation(
    model: nn.Module,
    batches: Iterable[dict[str, Any]],
    metric: ShiftMetric,
    *,
    num_frames: int,
    on_frame: Callable[[str], None] | None = None,
) -> EvaluationReport:
    """Evaluate an mmdet detector.

    Args:
        model: In evaluation mode.
        batches: Collated batches of this process's frames, whole videos in order.
        metric: Collects and scores.
        num_frames: Frames of the whole data set, over all processes.
        on_frame: Called with the video's name before each batch (to notice a new video).

    Returns:
        The report, in every process. ``fps`` is frames over the seconds spent in the detector (from the
        decoded image to boxes; decoding is left out), of the slowest process.

    Raises:
        DataError: No frame was evaluated.
    """
    import torch

    busy_seconds = 0.0
    frames = 0
    with torch.inference_mode():
        for batch in batches:
            if on_frame is not None:
                on_frame(str(batch["data_samples"][0].metainfo["video_name"]))
            start = time.perf_counter()
            outputs = model.test_step(batch)  # type: ignore[operator]
            busy_seconds += time.perf_counter() - start
            frames += len(outputs)
            metric.process(batch, [_as_dict(sample) for sample in outputs])
    metric.evaluate(num_frames)
    if metric.report is None:
        raise DataError("no frame was evaluated")
    slowest = max(seconds for _, seconds in all_gather_object((frames, busy_seconds)))
    return replace(metric.report, fps=num_frames / slowest if slowest > 0 else None)


def _as_dict(sample: BaseDataElement) -> dict[str, Any]:
    fields: dict[str, Any] = sample.to_dict()
    return fields
