"""Agreement with another model where there are no labels: its confident detections become the truth.

A committee that does what the full model does agrees with it by 100 points. The number says how much a
smaller budget changes the output, not how good the output is.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcmoe_det.errors import UsageError
from pcmoe_det.evaluation.matching import MatchTable, match_frames
from pcmoe_det.evaluation.records import FrameTruth
from pcmoe_det.structures import SHIFT_CLASSES, Detections

__all__ = ["match_with_model", "truth_from_detections"]


def truth_from_detections(
    detections: Detections,
    *,
    frame_id: str,
    video: str,
    width: int,
    height: int,
    score_threshold: float = 0.3,
) -> FrameTruth:
    """A frame whose truth is what a model found with at least ``score_threshold``; all classes are judged.

    Raises:
        UsageError: ``score_threshold`` is not in [0, 1].
        DataError: A detection is not a finite box.
    """
    if not 0.0 <= score_threshold <= 1.0:
        raise UsageError(f"score_threshold is {score_threshold}; scores lie between 0 and 1")
    confident = detections.scores >= score_threshold
    return FrameTruth(
        frame_id=frame_id,
        video=video,
        boxes_xyxy=detections.boxes_xyxy[confident].astype(np.float64),
        class_ids=detections.class_ids[confident],
        ignored=np.zeros(int(confident.sum()), bool),
        width=width,
        height=height,
    )


def match_with_model(
    detections: Sequence[Detections],
    reference: Sequence[Detections],
    *,
    frame_ids: Sequence[str],
    videos: Sequence[str],
    sizes_wh: Sequence[tuple[int, int]],
    class_names: Sequence[str] = SHIFT_CLASSES,
    score_threshold: float = 0.3,
) -> MatchTable:
    """Match one model's detections with those of a reference model on the same frames.

    The reference's detections below the threshold are no truth; since they rank below every other, the
    reference still agrees with itself by 100 points.

    Args:
        detections: Of the model in question, one per frame.
        reference: Of the model taken as truth, one per frame.
        frame_ids: One per frame, unique.
        videos: One per frame.
        sizes_wh: Width and height of each frame in pixels.
        class_names: Names by class id of both models.
        score_threshold: Of the reference.

    Raises:
        DataError: As ``match_frames``.
        UsageError: ``score_threshold`` is not in [0, 1].
    """
    counts = {
        "detections": len(detections),
        "reference": len(reference),
        "frame_ids": len(frame_ids),
        "videos": len(videos),
        "sizes_wh": len(sizes_wh),
    }
    if len(set(counts.values())) > 1:
        listed = ", ".join(f"{count} {name}" for name, count in counts.items())
        raise UsageError(f"agreement needs one of each per frame, not {listed}")
    truths = [
        truth_from_detections(
            found, frame_id=frame_id, video=video, width=width, height=height, score_threshold=score_threshold
        )
        for found, frame_id, video, (width, height) in zip(
            reference, frame_ids, videos, sizes_wh, strict=True
        )
    ]
    return match_frames(truths, detections, class_names=class_names, teacher_labels="truth")
