"""Results in COCO's results format, for pycocotools and whatever else reads it.

The file is one JSON array with an object per detection, frames in order and best score first:

===============  ========================================================================
``image_id``     the frame's index in the source, from 0; dropped frames leave gaps
``category_id``  the class: its place in the class list, from 1, unless ids are given
``bbox``         left, top, width, height in pixels of the source frame, two decimals
``score``        0 to 1, four decimals
``track_id``     only of a tracked object: the same number in every frame
===============  ========================================================================

``<stem>.categories.json`` beside it holds ``{"categories": [{"id", "name"}, ...]}``. A frame without
detections has no object. Ground truth must number its images the same way.

The array is closed after every frame and the next one is written over the bracket, so the file, also the
``.part`` of a killed run, is valid JSON at every moment, and nothing is kept in memory.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming.append_file import AppendFile
from pcmoe_det.streaming.output_files import OutputFile
from pcmoe_det.streaming.record_files import FrameRecord
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.structures import FrameResult

__all__ = ["CocoResultsFile", "CocoSink", "categories_target", "category_ids_of"]


def categories_target(target: OutputFile) -> OutputFile:
    """``<stem>.categories.json`` beside ``target``, checked like every output.

    Call it before the model loads to find an existing file early; ``CocoSink`` does it again.

    Raises:
        OutputError: See ``OutputFile``.
    """
    path = target.path.with_name(f"{target.path.stem}.categories.json")
    return OutputFile(path, overwrite=target.overwrite)


def category_ids_of(class_names: Sequence[str]) -> dict[str, int]:
    """COCO's ids by name: places in the list, from 1."""
    return {name: class_id + 1 for class_id, name in enumerate(class_names)}


class CocoResultsFile:
    """The two files, filled from records.

    Args:
        target: The results file.
        category_ids: Ids by class name.

    Raises:
        OutputError: A file cannot be created.
    """

    def __init__(self, target: OutputFile, *, category_ids: Mapping[str, int]) -> None:
        self._category_ids = dict(category_ids)
        self._categories = categories_target(target)
        self._file = AppendFile(target, head=b"[", tail=b"\n]\n", unit="detections")

    @property
    def count(self) -> int:
        """Detections written."""
        return self._file.count

    def append(self, record: FrameRecord) -> None:
        """Add a frame's detections.

        Raises:
            ValueError: A class has no id.
            OutputError: The file cannot be written.
        """
        rows = []
        for found in record.detections:
            if found.category not in self._category_ids:
                known = ", ".join(self._category_ids)
                raise ValueError(f"the class {found.category!r} is none of {known}")
            left, top, right, bottom = found.bbox_xyxy
            row: dict[str, object] = {
                "image_id": record.frame_index,
                "category_id": self._category_ids[found.category],
                "bbox": [left, top, round(right - left, 2), round(bottom - top, 2)],
                "score": found.score,
            }
            if found.track_id >= 0:
                row["track_id"] = found.track_id
            rows.append("\n" + json.dumps(row))
        separator = "," if rows and self._file.count else ""
        self._file.append((separator + ",".join(rows)).encode(), count=len(rows))

    def close(self, outcome: SinkOutcome) -> list[Path]:
        """See ``ResultSink.close``. The categories are written for every results file that is kept."""
        paths = self._file.close(outcome)
        if paths:
            paths += self._write_categories(outcome)
        return paths

    def discard(self) -> None:
        """Leave no results file; the categories were not written yet."""
        self._file.discard()

    def _write_categories(self, outcome: SinkOutcome) -> list[Path]:
        content = {"categories": [{"id": id_, "name": name} for name, id_ in self._category_ids.items()]}
        try:
            with self._categories.create() as file:
                file.write((json.dumps(content, indent=2, ensure_ascii=False) + "\n").encode())
        except OSError as error:
            self._categories.discard()
            raise OutputError(
                f"{self._categories.path} cannot be written: {error.strerror or error}"
            ) from error
        path = self._categories.finish(outcome)
        return [] if path is None else [path]


class CocoSink:
    """Writes COCO results while the stream runs; category ids are places in ``class_names``, from 1.

    Args:
        target: The results file; see ``OutputFile`` for what a failure leaves behind.
        class_names: Names by class id.

    Raises:
        OutputError: A file cannot be created.
    """

    stage = "coco"
    needs_picture = False

    def __init__(self, target: OutputFile, *, class_names: Sequence[str]) -> None:
        self._class_names = tuple(class_names)
        self._file = CocoResultsFile(target, category_ids=category_ids_of(class_names))

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:  # noqa: ARG002
        self._file.append(FrameRecord.from_result(result, class_names=self._class_names))

    def close(self, outcome: SinkOutcome) -> list[Path]:
        return self._file.close(outcome)
