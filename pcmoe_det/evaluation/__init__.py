"""Mean average precision of detections, its uncertainty, and agreement with another model.

Importing this package loads neither torch nor mmengine; ``pcmoe_det.evaluation.metric``, the metric of
mmengine's loops, does and is imported on its own.
"""

from pcmoe_det.evaluation.agreement import match_with_model, truth_from_detections
from pcmoe_det.evaluation.bootstrap import Interval, bootstrap_difference, bootstrap_interval
from pcmoe_det.evaluation.matching import MatchTable, match_frames
from pcmoe_det.evaluation.mean_average_precision import AveragePrecisions, score_table
from pcmoe_det.evaluation.protocol import TeacherLabels, resolve_teacher_labels
from pcmoe_det.evaluation.records import FrameTruth
from pcmoe_det.evaluation.report import (
    ClassScore,
    EvaluationReport,
    SubsetScore,
    build_report,
    format_table,
)

__all__ = [
    "AveragePrecisions",
    "ClassScore",
    "EvaluationReport",
    "FrameTruth",
    "Interval",
    "MatchTable",
    "SubsetScore",
    "TeacherLabels",
    "bootstrap_difference",
    "bootstrap_interval",
    "build_report",
    "format_table",
    "match_frames",
    "match_with_model",
    "resolve_teacher_labels",
    "score_table",
    "truth_from_detections",
]
