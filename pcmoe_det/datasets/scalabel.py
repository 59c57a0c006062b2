"""Scalabel label files (``det_2d.json``) as checked, frozen records. Needs neither torch nor mmdet."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from pcmoe_det.datasets.scalabel_frames import FrameReader, SizeReader
from pcmoe_det.datasets.scalabel_json import walk_frames
from pcmoe_det.datasets.shift_records import (
    LabelSource,
    ShiftFrame,
    ShiftLabel,
    ShiftLabels,
    TeacherLabels,
    apply_teacher_protocol,
)
from pcmoe_det.errors import DataError
from pcmoe_det.structures import SHIFT_CLASSES

__all__ = [
    "LabelSource",
    "ShiftFrame",
    "ShiftLabel",
    "ShiftLabels",
    "SizeReader",
    "TeacherLabels",
    "apply_teacher_protocol",
    "load_frames",
]


def load_frames(
    path: str | Path, *, classes: Sequence[str] = SHIFT_CLASSES, read_size: SizeReader | None = None
) -> ShiftLabels:
    """Read and check a label file.

    Args:
        path: The ``det_2d.json``.
        classes: Classes to keep, in the order of their ids. Labels of SHIFT's other classes are left out
            silently, labels of any other category are counted as ``unknown_category``.
        read_size: Called for frames whose size is neither in the frame nor in the config; without it the
            header of the image beside the label file is read.

    Raises:
        DataError: The file or a frame of it cannot be used. The message names both.
    """
    path = Path(path)
    reader = FrameReader(path, tuple(classes))
    rest = walk_frames(path, reader.consume)
    if not reader.frames:
        raise DataError(f"{path}: the list of frames is empty; there is nothing to read")
    image_size = reader.config_size(rest.get("config"))
    frames = reader.finish(image_size, read_size or _size_reader_beside(path))
    reader.log_warnings()
    return ShiftLabels(
        frames=frames,
        image_size=image_size,
        categories=tuple(classes),
        warnings=dict(reader.warnings),
        path=path,
    )


def _size_reader_beside(path: Path) -> SizeReader:
    def read_size(member: str) -> tuple[int, int]:
        from pcmoe_det.datasets.archives import find_image_store, shared_image_store

        return shared_image_store(find_image_store(path.parent)).read_size(member)

    return read_size
