"""What evaluation knows of one frame's labels: its own small record, whatever data set it came from."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import DataError

__all__ = ["FrameTruth"]


@dataclass(frozen=True, slots=True, eq=False, kw_only=True)
class FrameTruth:
    """The labels of one frame and how to judge them.

    Attributes:
        frame_id: Unique name of the frame, such as ``video/00000012``.
        video: The video that the frame belongs to; the unit of a bootstrap over videos.
        boxes_xyxy: ``[n, 4]`` float64 in pixels of the original image.
        class_ids: ``[n]`` int64, indices into the class names of the evaluation.
        ignored: ``[n]`` bool; an ignored box is a region of its class, neither hit nor miss.
        from_teacher: ``[n]`` bool; labels that another model made instead of a person. None: no label is.
            Whether they count is decided by ``resolve_teacher_labels``, not by ``ignored``.
        judged_classes: Classes whose labels are complete enough in this frame to be judged; the labels and
            detections of all other classes are left out. None: all classes.
        groups: The frame's attributes to group results by, such as ``{"timeofday_coarse": "night"}``.
        width: Of the original image, in pixels.
        height: Of the original image, in pixels.

    Raises:
        DataError: The arrays differ in length, or a box is not finite or ends before it starts.
    """

    frame_id: str
    video: str
    boxes_xyxy: NDArray[np.float64]
    class_ids: NDArray[np.int64]
    ignored: NDArray[np.bool_]
    from_teacher: NDArray[np.bool_] | None = None
    judged_classes: frozenset[int] | None = None
    groups: Mapping[str, str] = field(default_factory=dict)
    width: int
    height: int

    def __post_init__(self) -> None:
        count = len(self.class_ids)
        teacher_shape = (count,) if self.from_teacher is None else self.from_teacher.shape
        if self.boxes_xyxy.shape != (count, 4) or self.ignored.shape != (count,) or teacher_shape != (count,):
            raise DataError(
                f"frame {self.frame_id}: labels need as many boxes and flags as classes: "
                f"boxes {self.boxes_xyxy.shape}, classes {self.class_ids.shape}, "
                f"ignored {self.ignored.shape}, from_teacher {teacher_shape}"
            )
        usable = np.isfinite(self.boxes_xyxy).all(axis=1)
        usable &= (self.boxes_xyxy[:, 2:] >= self.boxes_xyxy[:, :2]).all(axis=1)
        if not usable.all():
            box = self.boxes_xyxy[~usable][0].tolist()
            raise DataError(
                f"frame {self.frame_id}: the label {box} is not a box; it must be finite numbers "
                "x1, y1, x2, y2 with x1 <= x2 and y1 <= y2. Correct or remove the label."
            )

    def judges(self, class_id: int) -> bool:
        """Whether labels and detections of ``class_id`` count in this frame."""
        return self.judged_classes is None or class_id in self.judged_classes
