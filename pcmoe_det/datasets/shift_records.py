"""A checked label file as frozen records, and the protocol for teacher labels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, get_args

from pcmoe_det.errors import UsageError

__all__ = [
    "LabelSource",
    "ShiftFrame",
    "ShiftLabel",
    "ShiftLabels",
    "TeacherLabels",
    "apply_teacher_protocol",
]

LabelSource = Literal["annotated", "teacher"]
"""Who made a box: a person (or the simulator), or another detector."""

TeacherLabels = Literal["ignore", "truth", "auto"]
"""What a teacher's boxes are: ignored regions, truth, or ignored only where a frame has annotated boxes."""


@dataclass(frozen=True, slots=True)
class ShiftLabel:
    """One box of one frame.

    Attributes:
        label_id: The file's id; a track id in SHIFT, unique at least within the frame's list.
        category: Name of the class.
        class_id: Its index in the classes asked for.
        box_xyxy: Left, top, right, bottom in pixels, clipped to the image, with a positive area.
        source: Who made the box.
        attributes: The label's attributes; values that are not strings are in JSON notation.
    """

    label_id: str
    category: str
    class_id: int
    box_xyxy: tuple[float, float, float, float]
    source: LabelSource
    attributes: Mapping[str, str]


@dataclass(frozen=True, slots=True)
class ShiftFrame:
    """One frame and its boxes.

    Attributes:
        name: File name of the image.
        video_name: The video it belongs to.
        frame_index: 0-based position in the video.
        width: Of the image in pixels.
        height: Of the image in pixels.
        attributes: Weather, time of day, ...; values that are not strings are in JSON notation.
        annotated_categories: The classes labelled exhaustively enough to be judged; None means all.
        labels: In the order of the file.
        has_annotated_labels: Whether the file gives this frame any annotated label, those of classes not
            asked for included.
    """

    name: str
    video_name: str
    frame_index: int
    width: int
    height: int
    attributes: Mapping[str, str]
    annotated_categories: tuple[str, ...] | None
    labels: tuple[ShiftLabel, ...]
    has_annotated_labels: bool = False

    @property
    def member(self) -> str:
        """Where the image lies in an image store: ``<videoName>/<name>``."""
        return f"{self.video_name}/{self.name}"


@dataclass(frozen=True, slots=True)
class ShiftLabels:
    """A label file.

    Attributes:
        frames: Videos in the order of their first frame in the file, by ``frame_index`` within a video.
        image_size: ``(width, height)`` that the file's config gives for frames without a size of their own.
        categories: The classes that class ids index.
        warnings: How often something was skipped or repaired, by kind.
        path: The file.
    """

    frames: tuple[ShiftFrame, ...]
    image_size: tuple[int, int] | None
    categories: tuple[str, ...]
    warnings: Mapping[str, int] = field(default_factory=dict)
    path: Path | None = None


def apply_teacher_protocol(
    frame: ShiftFrame, mode: TeacherLabels
) -> tuple[tuple[ShiftLabel, ...], tuple[ShiftLabel, ...]]:
    """Split a frame's labels into truth and ignored regions.

    Args:
        frame: The frame.
        mode: ``truth``: a teacher's box is a box like any other; ``ignore``: it is an ignored region (same
            class, neither hit nor miss); ``auto``: ignored where the frame has annotated labels, truth
            elsewhere.

    Returns:
        The true labels and the ignored ones, each in the order of the file.

    Raises:
        UsageError: ``mode`` is none of the three.
    """
    if mode not in get_args(TeacherLabels):
        raise UsageError(f"teacher labels {mode!r}: choose one of {', '.join(get_args(TeacherLabels))}")
    annotated = tuple(label for label in frame.labels if label.source == "annotated")
    if mode == "truth" or (mode == "auto" and not annotated and not frame.has_annotated_labels):
        return frame.labels, ()
    return annotated, tuple(label for label in frame.labels if label.source == "teacher")
