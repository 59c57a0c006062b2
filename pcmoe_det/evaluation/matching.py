"""Detections matched with labels, once per frame, so that any set of frames can be scored from it.

The matching is that of COCO (``COCOeval.evaluateImg``, area "all", 100 detections per class and frame): best
score first, each detection takes the free label that it overlaps most, if that reaches the IoU
threshold. What a frame contributes (scores, hit or false alarm or ignored, number of labels) does not depend
on other frames, so the average precision of a group or of a bootstrap resample is a matter of counting.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray
from pycocotools import mask as coco_mask

from pcmoe_det.errors import DataError
from pcmoe_det.evaluation.protocol import TeacherLabels, resolve_teacher_labels
from pcmoe_det.evaluation.records import FrameTruth
from pcmoe_det.structures import SHIFT_CLASSES, Detections

__all__ = ["IOU_THRESHOLDS", "MAX_DETECTIONS", "ClassMatches", "MatchTable", "match_boxes", "match_frames"]

IOU_THRESHOLDS: tuple[float, ...] = tuple(np.linspace(0.5, 0.95, 10).tolist())
"""COCO's ten thresholds; the first one is that of mAP@0.5."""

MAX_DETECTIONS = 100
"""Detections of one class in one frame that are looked at, best first."""


@dataclass(frozen=True, slots=True, eq=False)
class ClassMatches:
    """All detections of one class, best score first (equal scores: in the order of the frames).

    Attributes:
        scores: ``[d]`` float64.
        frames: ``[d]`` int64, position of the detection's frame in the table.
        hits: ``[thresholds, d]`` bool, took a counted label.
        ignored: ``[thresholds, d]`` bool, neither hit nor false alarm.
        truth_counts: ``[frames]`` int64, counted labels of each frame.
    """

    scores: NDArray[np.float64]
    frames: NDArray[np.int64]
    hits: NDArray[np.bool_]
    ignored: NDArray[np.bool_]
    truth_counts: NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class MatchTable:
    """What is left of truth and detections once they are matched; small, picklable, complete for mAP.

    Attributes:
        frame_ids: One per frame, unique.
        videos: The video of each frame.
        groups: The attributes of each frame.
        class_names: Names by class id.
        classes: The matches of each class.
        teacher_labels: How teacher labels were counted.
    """

    frame_ids: tuple[str, ...]
    videos: tuple[str, ...]
    groups: tuple[Mapping[str, str], ...]
    class_names: tuple[str, ...]
    classes: tuple[ClassMatches, ...]
    teacher_labels: TeacherLabels

    def __len__(self) -> int:
        return len(self.frame_ids)

    def subset(self, selected: NDArray[np.bool_]) -> MatchTable:
        """The table of some of the frames, in the same order.

        Args:
            selected: ``[frames]`` bool.
        """
        new_positions = np.cumsum(selected) - 1
        classes = []
        for matches in self.classes:
            kept = selected[matches.frames]
            classes.append(
                ClassMatches(
                    scores=matches.scores[kept],
                    frames=new_positions[matches.frames[kept]],
                    hits=matches.hits[:, kept],
                    ignored=matches.ignored[:, kept],
                    truth_counts=matches.truth_counts[selected],
                )
            )
        chosen = np.flatnonzero(selected).tolist()
        return replace(
            self,
            frame_ids=tuple(self.frame_ids[i] for i in chosen),
            videos=tuple(self.videos[i] for i in chosen),
            groups=tuple(self.groups[i] for i in chosen),
            classes=tuple(classes),
        )


def match_boxes(
    boxes_xyxy: NDArray[np.float64], *, truth_xyxy: NDArray[np.float64], truth_ignored: NDArray[np.bool_]
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Match the detections of one class in one frame at every IoU threshold.

    Args:
        boxes_xyxy: ``[d, 4]`` detections, best score first.
        truth_xyxy: ``[n, 4]`` labels of the class.
        truth_ignored: ``[n]`` labels that are ignored regions.

    Returns:
        ``hits`` and ``ignored``, both ``[thresholds, d]``; a detection that is neither is a false alarm.
    """
    hits = np.zeros((len(IOU_THRESHOLDS), len(boxes_xyxy)), bool)
    if len(boxes_xyxy) == 0 or len(truth_xyxy) == 0:
        return hits, np.zeros_like(hits)
    # pycocotools' own IoU, in its own box format: at an IoU of exactly the threshold the last bit decides.
    overlaps = coco_mask.iou(_to_xywh(boxes_xyxy), _to_xywh(truth_xyxy), truth_ignored.astype(np.uint8))
    counted = overlaps[:, ~truth_ignored]
    # Most detections overlap no label or one: plain loops over these few pairs are faster than array code.
    near: dict[int, list[tuple[int, float]]] = {}
    for detection, label in np.argwhere(counted >= IOU_THRESHOLDS[0]).tolist():
        near.setdefault(detection, []).append((label, float(counted[detection, label])))
    for row, threshold in enumerate(IOU_THRESHOLDS):
        taken: set[int] = set()
        for detection, candidates in near.items():
            best, choice = threshold, -1
            for label, overlap in candidates:
                if overlap >= best and label not in taken:  # >=: of equals the last one, as COCO does
                    best, choice = overlap, label
            if choice >= 0:
                taken.add(choice)
                hits[row, detection] = True
    in_region = np.max(overlaps[:, truth_ignored], axis=1, initial=0.0)
    return hits, ~hits & (in_region >= np.asarray(IOU_THRESHOLDS)[:, None])


def match_frames(
    truths: Sequence[FrameTruth],
    detections: Sequence[Detections],
    *,
    class_names: Sequence[str] = SHIFT_CLASSES,
    teacher_labels: TeacherLabels = "auto",
) -> MatchTable:
    """Match every frame; the rules are those of ``pcmoe_det.evaluation.protocol``.

    Args:
        truths: One per frame. Their order decides between detections of equal score in different frames.
        detections: One per frame, in pixels of the original image.
        class_names: Names by class id.
        teacher_labels: How labels count that another model made.

    Raises:
        DataError: Not one set of detections for each frame, a frame twice, a class without a name, or a box
            or score that is not a finite number.
        UsageError: Unknown ``teacher_labels``.
    """
    _check_frames(truths, detections, class_count=len(class_names))
    resolved = [resolve_teacher_labels(truth, teacher_labels=teacher_labels) for truth in truths]
    return MatchTable(
        frame_ids=tuple(truth.frame_id for truth in truths),
        videos=tuple(truth.video for truth in truths),
        groups=tuple(dict(truth.groups) for truth in truths),
        class_names=tuple(class_names),
        classes=tuple(_match_class(resolved, detections, class_id) for class_id in range(len(class_names))),
        teacher_labels=teacher_labels,
    )


def _match_class(
    truths: Sequence[FrameTruth], detections: Sequence[Detections], class_id: int
) -> ClassMatches:
    truth_counts = np.zeros(len(truths), np.int64)
    no_flags = np.zeros((len(IOU_THRESHOLDS), 0), bool)
    scores: list[NDArray[np.float64]] = [np.zeros(0)]
    frames: list[NDArray[np.int64]] = [np.zeros(0, np.int64)]
    hits, ignored = [no_flags], [no_flags]
    for position, (truth, found) in enumerate(zip(truths, detections, strict=True)):
        if not truth.judges(class_id):
            continue
        labels = truth.class_ids == class_id
        truth_counts[position] = np.count_nonzero(labels & ~truth.ignored)
        own = np.flatnonzero(found.class_ids == class_id)
        if len(own) == 0:
            continue
        own = own[np.argsort(-found.scores[own], kind="stable")][:MAX_DETECTIONS]
        frame_hits, frame_ignored = match_boxes(
            found.boxes_xyxy[own].astype(np.float64),
            truth_xyxy=truth.boxes_xyxy[labels].astype(np.float64),
            truth_ignored=truth.ignored[labels],
        )
        scores.append(found.scores[own].astype(np.float64))
        frames.append(np.full(len(own), position, np.int64))
        hits.append(frame_hits)
        ignored.append(frame_ignored)
    all_scores = np.concatenate(scores)
    order = np.argsort(-all_scores, kind="stable")
    return ClassMatches(
        scores=all_scores[order],
        frames=np.concatenate(frames)[order],
        hits=np.concatenate(hits, axis=1)[:, order],
        ignored=np.concatenate(ignored, axis=1)[:, order],
        truth_counts=truth_counts,
    )


def _to_xywh(boxes_xyxy: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.concatenate([boxes_xyxy[:, :2], boxes_xyxy[:, 2:] - boxes_xyxy[:, :2]], axis=1)


def _check_frames(
    truths: Sequence[FrameTruth], detections: Sequence[Detections], *, class_count: int
) -> None:
    if len(truths) != len(detections):
        raise DataError(
            f"{len(truths)} frames with labels but {len(detections)} with detections; "
            "give one Detections per frame, an empty one where nothing was found"
        )
    seen: set[str] = set()
    for truth, found in zip(truths, detections, strict=True):
        if truth.frame_id in seen:
            raise DataError(f"frame {truth.frame_id} occurs twice; evaluate each frame once")
        seen.add(truth.frame_id)
        for what, ids in (("label", truth.class_ids), ("detection", found.class_ids)):
            unnamed = ids[(ids < 0) | (ids >= class_count)]
            if len(unnamed):
                raise DataError(
                    f"frame {truth.frame_id}: a {what} has class {unnamed[0]}; "
                    f"there are {class_count} class names, so classes are 0 to {class_count - 1}"
                )
        if not (np.isfinite(found.scores).all() and np.isfinite(found.boxes_xyxy).all()):
            raise DataError(
                f"frame {truth.frame_id}: a detection has a score or box that is not a finite number; "
                "the model has overflowed, or its weights are damaged"
            )
