"""The result of an evaluation as a record, as JSON and as a table."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.evaluation.bootstrap import Interval
from pcmoe_det.evaluation.matching import IOU_THRESHOLDS, MAX_DETECTIONS, MatchTable
from pcmoe_det.evaluation.mean_average_precision import score_table

__all__ = [
    "GROUP_ATTRIBUTES",
    "ClassScore",
    "EvaluationReport",
    "SubsetScore",
    "build_report",
    "format_table",
]

GROUP_ATTRIBUTES: tuple[str, ...] = ("timeofday_coarse", "weather_coarse")
"""SHIFT's attributes that results are grouped by."""


@dataclass(frozen=True, slots=True)
class ClassScore:
    """One class, in points; None where it has no counted label (``num_boxes`` 0)."""

    mAP50: float | None
    mAP: float | None
    num_boxes: int


@dataclass(frozen=True, slots=True)
class SubsetScore:
    """Some of the frames, in points; None where no class has a counted label in them."""

    mAP50: float | None
    mAP: float | None
    frames: int


@dataclass(frozen=True, slots=True)
class EvaluationReport:
    """What an evaluation found. All average precisions are in points, 0-100.

    Attributes:
        mAP50: Mean over the classes that have labels, at IoU 0.5; None where no class has.
        mAP: The same over the IoU thresholds 0.5 to 0.95.
        per_class: By class name.
        groups: By attribute, then by value; frames without the attribute are in none.
        per_video: By video.
        frames: How many were evaluated.
        fps: Frames per second of the evaluated run, where the caller measured it.
        intervals: Bootstrap intervals by a name of the caller's.
        settings: What the numbers depend on, the protocol among it.
        accounting: What the model reports of itself: hits, misses, bytes.
    """

    mAP50: float | None
    mAP: float | None
    per_class: Mapping[str, ClassScore]
    groups: Mapping[str, Mapping[str, SubsetScore]]
    per_video: Mapping[str, SubsetScore]
    frames: int
    fps: float | None = None
    intervals: Mapping[str, Interval] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    accounting: Mapping[str, object] = field(default_factory=dict)

    def to_json_dict(self) -> dict[str, object]:
        """Plain dicts, lists, strings, numbers and None; a number that is not finite becomes None."""
        fields = {
            "mAP50": self.mAP50,
            "mAP": self.mAP,
            "per_class": {name: _subset_dict(score) for name, score in self.per_class.items()},
            "groups": {
                attribute: {value: _subset_dict(score) for value, score in scores.items()}
                for attribute, scores in self.groups.items()
            },
            "per_video": {video: _subset_dict(score) for video, score in self.per_video.items()},
            "fps": self.fps,
            "frames": self.frames,
            "intervals": {name: interval.to_json_dict() for name, interval in self.intervals.items()},
            "settings": self.settings,
            "accounting": self.accounting,
        }
        return {name: _plain(value) for name, value in fields.items()}

    def scalars(self) -> dict[str, float]:
        """``mAP50``, ``mAP``, ``mAP50/<class>`` and ``mAP/<class>``; what has no value is left out."""
        named = {"mAP50": self.mAP50, "mAP": self.mAP}
        for name, score in self.per_class.items():
            named[f"mAP50/{name}"] = score.mAP50
            named[f"mAP/{name}"] = score.mAP
        return {name: value for name, value in named.items() if value is not None}


def build_report(
    table: MatchTable,
    *,
    fps: float | None = None,
    intervals: Mapping[str, Interval] | None = None,
    settings: Mapping[str, object] | None = None,
    accounting: Mapping[str, object] | None = None,
    group_attributes: Sequence[str] = GROUP_ATTRIBUTES,
) -> EvaluationReport:
    """Score a table of matches overall, by class, by attribute and by video.

    Args:
        table: Of all frames.
        fps: Frames per second, if measured.
        intervals: From ``bootstrap_interval`` or ``bootstrap_difference``, under any name.
        settings: Added to the protocol's own settings.
        accounting: What the model reports of itself.
        group_attributes: Frame attributes to group by; one that no frame has is left out.
    """
    scores = score_table(table)
    per_class = {
        name: ClassScore(
            mAP50=_number(scores.points[class_id, 0]),
            mAP=_number(scores.points[class_id].mean()),
            num_boxes=int(scores.num_boxes[class_id]),
        )
        for class_id, name in enumerate(table.class_names)
    }
    values_by_attribute = {name: [group.get(name) for group in table.groups] for name in group_attributes}
    return EvaluationReport(
        mAP50=_number(scores.mAP50),
        mAP=_number(scores.mAP),
        per_class=per_class,
        groups={
            name: _score_parts(table, values)
            for name, values in values_by_attribute.items()
            if any(value is not None for value in values)
        },
        per_video=_score_parts(table, list(table.videos)),
        frames=len(table),
        fps=fps,
        intervals=dict(intervals or {}),
        settings={**_protocol_settings(table), **(settings or {})},
        accounting=dict(accounting or {}),
    )


def format_table(report: EvaluationReport) -> str:
    """The report as text: one line per class, group and video, average precisions with one decimal."""
    rows: list[tuple[str, str, str, str]] = [("", "mAP50", "mAP", "boxes")]
    rows += [
        (name, _points(score.mAP50), _points(score.mAP), str(score.num_boxes))
        for name, score in report.per_class.items()
    ]
    total = sum(score.num_boxes for score in report.per_class.values())
    rows.append(("all classes", _points(report.mAP50), _points(report.mAP), str(total)))
    parts = [*report.groups.items(), ("video", report.per_video)]
    for attribute, scores in parts:
        if attribute == "video" and len(scores) < 2:
            continue
        rows.append((attribute, "", "", "frames"))
        rows += [
            (f"  {value}", _points(score.mAP50), _points(score.mAP), str(score.frames))
            for value, score in scores.items()
        ]
    width = max(len(row[0]) for row in rows)
    lines = [f"{a:<{width}}  {b:>6}  {c:>6}  {d:>7}".rstrip() for a, b, c, d in rows]
    lines += [
        f"{name}: {item.value:.1f}, {100 * item.level:g} % interval {item.low:.1f} to {item.high:.1f} "
        f"({item.units} {item.unit}s, {item.resamples} resamples)"
        for name, item in report.intervals.items()
    ]
    speed = "" if report.fps is None else f", {report.fps:.1f} frames per second"
    lines.append(f"{report.frames} frames{speed}")
    return "\n".join(lines)


def _score_parts(table: MatchTable, values: Sequence[str | None]) -> dict[str, SubsetScore]:
    """Score the frames of each value, values in alphabetical order."""
    result = {}
    for value in sorted({value for value in values if value is not None}):
        selected: NDArray[np.bool_] = np.array([other == value for other in values])
        scores = score_table(table.subset(selected))
        result[value] = SubsetScore(
            mAP50=_number(scores.mAP50), mAP=_number(scores.mAP), frames=int(selected.sum())
        )
    return result


def _protocol_settings(table: MatchTable) -> dict[str, object]:
    return {
        "teacher_labels": table.teacher_labels,
        "ignored_regions": "same class, COCO crowd rule",
        "judged_classes": "annotated_categories of each frame",
        "iou_thresholds": [round(threshold, 2) for threshold in IOU_THRESHOLDS],
        "max_detections_per_class": MAX_DETECTIONS,
        "class_names": list(table.class_names),
    }


def _subset_dict(score: ClassScore | SubsetScore) -> dict[str, object]:
    return {name: getattr(score, name) for name in score.__slots__}


def _number(value: float) -> float | None:
    return float(value) if math.isfinite(value) else None


def _points(value: float | None) -> str:
    return "-" if value is None else f"{value:.1f}"


def _plain(value: object) -> object:
    """What ``json`` writes without surprises: numpy scalars and arrays unpacked, NaN and infinity None."""
    if isinstance(value, Mapping):
        return {str(name): _plain(item) for name, item in value.items()}
    if isinstance(value, np.ndarray):
        return _plain(value.tolist())
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    if isinstance(value, np.generic):
        return _plain(value.item())
    if isinstance(value, float):
        return _number(value)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    return str(value)
