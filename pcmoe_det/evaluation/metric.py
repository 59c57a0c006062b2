"""The metric of mmengine's validation and test loops.

Importing this module registers ``ShiftMetric`` (and loads torch); a config does so with
``custom_imports = dict(imports=['pcmoe_det.evaluation.metric'])``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from mmengine.dist import all_gather_object, broadcast_object_list, is_main_process
from mmengine.evaluator import BaseMetric
from mmengine.registry import METRICS
from numpy.typing import NDArray

from pcmoe_det.errors import ConfigError, DataError
from pcmoe_det.evaluation.matching import MatchTable, match_frames
from pcmoe_det.evaluation.protocol import TeacherLabels
from pcmoe_det.evaluation.records import FrameTruth
from pcmoe_det.evaluation.report import GROUP_ATTRIBUTES, EvaluationReport, build_report
from pcmoe_det.structures import SHIFT_CLASSES, Detections

__all__ = ["REQUIRED_META_KEYS", "EvaluatedFrame", "ShiftMetric"]

REQUIRED_META_KEYS: tuple[str, ...] = (
    "img_id",
    "ori_shape",
    "instances",
    "video_name",
    "frame_index",
    "attributes",
    "annotated_categories",
)
"""What ``PackDetInputs(meta_keys=...)`` must hand on for ``ShiftMetric``."""


@dataclass(frozen=True, slots=True, eq=False)
class EvaluatedFrame:
    """One frame that a model has seen: position in the data set, labels and detections."""

    img_id: int
    truth: FrameTruth
    detections: Detections

    @property
    def sort_key(self) -> tuple[int, str]:
        """The order of the data set, whatever process evaluated the frame when."""
        return (self.img_id, self.truth.frame_id)


@METRICS.register_module()  # type: ignore[untyped-decorator]
class ShiftMetric(BaseMetric):  # type: ignore[misc]
    """mAP@0.5 and AP@[.5:.95] in points, by class, attribute and video.

    Truth is the frame's ``instances`` among its metainfo, boxes in pixels of the original image, so that it
    does not depend on what the test pipeline does to images. Detections are expected in the same pixels
    (mmdet's ``rescale=True``).

    Works over several processes whatever sampler shares out the data: the frames of all processes are
    gathered whole (mmengine's ``collect_results`` would interleave the shards and cut off the tail of
    the longer ones), frames that a sampler repeated to pad its shards count once, and the order is that of
    the data set. So the result is the same as that of one process.

    After ``evaluate``, ``report`` holds the result in every process, and in the main process ``table`` the
    matches (for ``bootstrap_difference``) and ``frames`` what they were made of.

    Args:
        teacher_labels: How ``instances`` with ``label_source`` "teacher" count: ``ignore``, ``truth`` or
            ``auto`` (see ``protocol``); their ``ignore_flag`` is not used, that of all others is.
        group_attributes: Frame attributes to group results by.
        settings: Added to the report's settings.
        collect_device: Not used, kept for mmengine's interface.
        prefix: Put before the names of the values, with a slash.

    Raises:
        ConfigError: Unknown ``teacher_labels``.
    """

    default_prefix = ""

    def __init__(
        self,
        *,
        teacher_labels: TeacherLabels = "auto",
        group_attributes: Sequence[str] = GROUP_ATTRIBUTES,
        settings: Mapping[str, object] | None = None,
        collect_device: Literal["cpu", "gpu"] = "cpu",
        prefix: str | None = None,
    ) -> None:
        if teacher_labels not in get_args(TeacherLabels):
            raise ConfigError(
                f"teacher_labels is {teacher_labels!r}; choose one of {', '.join(get_args(TeacherLabels))}"
            )
        super().__init__(collect_device=collect_device, prefix=prefix)
        self.teacher_labels: TeacherLabels = teacher_labels
        self.group_attributes = tuple(group_attributes)
        self.settings = dict(settings or {})
        self.report: EvaluationReport | None = None
        self.table: MatchTable | None = None
        self.frames: tuple[EvaluatedFrame, ...] = ()

    @property
    def class_names(self) -> tuple[str, ...]:
        """Of the data set, SHIFT's six where it has not said."""
        return tuple((self.dataset_meta or {}).get("classes", SHIFT_CLASSES))

    def process(self, data_batch: Any, data_samples: Sequence[dict[str, Any]]) -> None:  # noqa: ARG002
        """Keep labels and detections of a batch.

        Args:
            data_batch: Not used.
            data_samples: ``DetDataSample.to_dict()`` of each frame.

        Raises:
            DataError: A key is missing that ``REQUIRED_META_KEYS`` lists, or a label is not a box.
        """
        self.results.extend(self._frame(sample) for sample in data_samples)

    def evaluate(self, size: int) -> dict[str, float]:
        """Gather the frames of all processes and score them.

        Args:
            size: Frames of the data set.

        Returns:
            ``EvaluationReport.scalars()`` with the prefix, in every process.

        Raises:
            DataError: Not every frame of the data set was evaluated, or labels and detections do not fit.
        """
        frames = [frame for part in all_gather_object(self.results) for frame in part]
        self.results.clear()
        report: EvaluationReport | None = None
        failure: Exception | None = None
        if is_main_process():
            try:
                report = self._report(_in_dataset_order(frames), size=size)
            except Exception as error:  # the other processes wait in the broadcast: they must hear of it
                failure = error
        message: list[Any] = [report, str(failure)]
        broadcast_object_list(message)
        report, reason = message
        if failure is not None:
            raise failure
        if report is None:
            raise DataError(f"the evaluation failed in the main process: {reason}")
        self.report = report
        scalars = report.scalars()
        return {f"{self.prefix}/{name}" if self.prefix else name: value for name, value in scalars.items()}

    def compute_metrics(self, results: Sequence[EvaluatedFrame]) -> dict[str, float]:
        """Score frames; sets ``table`` and ``report``."""
        self.report = self._report(_in_dataset_order(results), size=None)
        return self.report.scalars()

    def _report(self, frames: Sequence[EvaluatedFrame], *, size: int | None) -> EvaluationReport:
        if size is not None and len(frames) != size:
            raise DataError(
                f"{len(frames)} frames were evaluated but the data set has {size}; "
                "the sampler must give every frame to some process, and no two frames may share "
                "img_id, video_name and frame_index (evaluate views one at a time)"
            )
        self.frames = tuple(frames)
        self.table = match_frames(
            [frame.truth for frame in frames],
            [frame.detections for frame in frames],
            class_names=self.class_names,
            teacher_labels=self.teacher_labels,
        )
        return build_report(self.table, settings=self.settings, group_attributes=self.group_attributes)

    def _frame(self, sample: Mapping[str, Any]) -> EvaluatedFrame:
        missing = [key for key in REQUIRED_META_KEYS if key not in sample]
        if missing:
            raise DataError(
                f"frame {sample.get('img_id', '?')} comes without {', '.join(missing)}; "
                f"PackDetInputs(meta_keys=...) must list {', '.join(REQUIRED_META_KEYS)}"
            )
        if "pred_instances" not in sample:
            raise DataError(
                f"frame {sample['img_id']} comes without pred_instances; the model found no way to predict"
            )
        return EvaluatedFrame(
            img_id=int(sample["img_id"]),
            truth=_truth(sample, self.class_names),
            detections=_detections(sample["pred_instances"]),
        )


def _truth(sample: Mapping[str, Any], class_names: Sequence[str]) -> FrameTruth:
    instances = sample["instances"]
    categories = sample["annotated_categories"]
    height, width = (int(side) for side in sample["ori_shape"][:2])
    video, index = str(sample["video_name"]), sample["frame_index"]
    return FrameTruth(
        frame_id=f"{video}/{int(index):08d}",
        video=video,
        boxes_xyxy=np.array([instance["bbox"] for instance in instances], np.float64).reshape(-1, 4),
        class_ids=np.array([instance["bbox_label"] for instance in instances], np.int64),
        ignored=np.array([bool(instance.get("ignore_flag", 0)) for instance in instances], bool),
        from_teacher=np.array([instance.get("label_source") == "teacher" for instance in instances], bool),
        judged_classes=None
        if categories is None
        else frozenset(class_id for class_id, name in enumerate(class_names) if name in categories),
        groups={str(name): str(value) for name, value in (sample["attributes"] or {}).items()},
        width=width,
        height=height,
    )


def _detections(instances: Mapping[str, Any]) -> Detections:
    return Detections(
        boxes_xyxy=_array(instances["bboxes"]).astype(np.float32).reshape(-1, 4),
        scores=_array(instances["scores"]).astype(np.float32),
        class_ids=_array(instances["labels"]).astype(np.int64),
    )


def _array(values: Any) -> NDArray[Any]:
    """A tensor of any device and dtype (NumPy has no bfloat16), mmdet's boxes, or an array."""
    tensor = getattr(values, "tensor", values)
    if hasattr(tensor, "detach"):
        tensor = tensor.detach().cpu()
        return np.asarray((tensor.float() if tensor.is_floating_point() else tensor).numpy())
    return np.asarray(tensor)


def _in_dataset_order(frames: Sequence[EvaluatedFrame]) -> list[EvaluatedFrame]:
    """Sorted, and each frame once: samplers that pad their shards repeat frames."""
    once: dict[tuple[int, str], EvaluatedFrame] = {}
    for frame in frames:
        once.setdefault(frame.sort_key, frame)
    return [once[key] for key in sorted(once)]
