"""Runs on the same frames beside a baseline: accuracy, and what the difference may owe to chance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, get_args

from pcmoe_det.errors import DataError
from pcmoe_det.evaluation.agreement import match_with_model
from pcmoe_det.evaluation.bootstrap import Interval, Unit, bootstrap_difference
from pcmoe_det.evaluation.detection_files import DetectionFile
from pcmoe_det.evaluation.matching import MatchTable, match_frames
from pcmoe_det.evaluation.mean_average_precision import score_table
from pcmoe_det.evaluation.protocol import TeacherLabels

__all__ = ["ComparedRun", "compare_runs", "format_comparison"]


@dataclass(frozen=True, slots=True)
class ComparedRun:
    """One line of the table.

    Attributes:
        name: Of the run.
        map50: mAP@0.5 in points.
        difference: mAP@0.5 minus the baseline's, with its interval.
        frames: How many were compared.
        settings: Of the run.
    """

    name: str
    map50: float
    difference: Interval
    frames: int
    settings: Mapping[str, Any]

    def to_json_dict(self) -> dict[str, Any]:
        """The fields by name."""
        return {
            "name": self.name,
            "mAP50": self.map50,
            "difference": self.difference.to_json_dict(),
            "frames": self.frames,
            "settings": dict(self.settings),
        }


def compare_runs(
    runs: Mapping[str, DetectionFile],
    baseline: DetectionFile,
    *,
    reference: DetectionFile | None = None,
    unit: Unit = "frame",
    resamples: int = 1000,
) -> list[ComparedRun]:
    """Score each run, and its difference from the baseline.

    Args:
        runs: By name.
        baseline: Of the same frames.
        reference: A run whose confident detections are the truth (agreement: with itself 100 points); None
            is the labels.
        unit: What the bootstrap draws.
        resamples: How many draws.

    Raises:
        DataError: A run is of other frames than the baseline or counts teacher labels in another way, or
            nothing can be scored.
    """
    if reference is not None:
        _check_frames("the run that is the truth", reference, baseline)
    base = _table(baseline, reference)
    rows = []
    for name, run in runs.items():
        _check_frames(name, run, baseline)
        if reference is None and _teacher_labels(run) != _teacher_labels(baseline):
            raise DataError(
                f"{name} counts teacher labels as {_teacher_labels(run)}, the baseline as "
                f"{_teacher_labels(baseline)}; run one of them again with the other's --teacher-labels"
            )
        table = _table(run, reference)
        rows.append(
            ComparedRun(
                name=name,
                map50=score_table(table).mAP50,
                difference=bootstrap_difference(table, base, unit=unit, resamples=resamples),
                frames=len(table),
                settings=run.settings,
            )
        )
    return rows


def format_comparison(rows: Sequence[ComparedRun]) -> str:
    """The table for a terminal."""
    width = max(len("run"), *(len(row.name) for row in rows))
    lines = [f"{'run':<{width}} {'mAP@0.5':>8} {'difference':>11}  95 % interval"]
    lines += [
        f"{row.name:<{width}} {row.map50:>8.2f} {row.difference.value:>+11.2f}  "
        f"[{row.difference.low:+.2f}, {row.difference.high:+.2f}]"
        for row in rows
    ]
    return "\n".join(lines)


def _check_frames(name: str, run: DetectionFile, baseline: DetectionFile) -> None:
    if [each.frame_id for each in run.truths] != [each.frame_id for each in baseline.truths]:
        raise DataError(
            f"{name} has {len(run.truths)} frames that are not the baseline's {len(baseline.truths)}; "
            "compare runs of one data set, subset and split"
        )


def _table(run: DetectionFile, reference: DetectionFile | None) -> MatchTable:
    if reference is None:
        return match_frames(
            run.truths, run.detections, class_names=run.class_names, teacher_labels=_teacher_labels(run)
        )
    return match_with_model(
        run.detections,
        reference.detections,
        frame_ids=[each.frame_id for each in run.truths],
        videos=[each.video for each in run.truths],
        sizes_wh=[(each.width, each.height) for each in run.truths],
        class_names=run.class_names,
    )


def _teacher_labels(run: DetectionFile) -> TeacherLabels:
    """As the run counted them; files that do not say are taken for the default."""
    value = run.settings.get("teacher_labels", "auto")
    if value not in get_args(TeacherLabels):
        raise DataError(f"a run counts teacher labels as {value!r}, which this release does not know")
    choice: TeacherLabels = value
    return choice
