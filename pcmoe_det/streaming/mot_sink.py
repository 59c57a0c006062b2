"""Results as MOT Challenge text, for TrackEval, motmetrics and whatever else reads it.

One line per detection, frames in order: ``frame,id,left,top,width,height,score,-1,-1,-1``. As that format
wants it, frames and pixels count from 1 (the picture's first pixel is 1, 1), ids, too; a detection without a
track has the id -1. Frame ``n`` is the one with index ``n - 1`` in the source; an id is the ``track_id`` of
the JSON Lines. Boxes have two decimals, scores four. There is no column for the class: choose classes
beforehand.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import UsageError
from pcmoe_det.streaming.append_file import AppendFile
from pcmoe_det.streaming.output_files import OutputFile
from pcmoe_det.streaming.record_files import FrameRecord
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.structures import FrameResult

__all__ = ["MotFile", "MotSink"]


class MotFile:
    """The text file, filled from records.

    Args:
        target: Where to write.
        only_classes: Leave out detections of all other classes; None keeps all.

    Raises:
        OutputError: The file cannot be created.
    """

    def __init__(self, target: OutputFile, *, only_classes: Collection[str] | None = None) -> None:
        self._only_classes = None if only_classes is None else frozenset(only_classes)
        self._file = AppendFile(target, unit="lines")

    @property
    def count(self) -> int:
        """Detections written."""
        return self._file.count

    def append(self, record: FrameRecord) -> None:
        """Add a frame's detections.

        Raises:
            OutputError: The file cannot be written.
        """
        lines = []
        for found in record.detections:
            if self._only_classes is not None and found.category not in self._only_classes:
                continue
            left, top, right, bottom = found.bbox_xyxy
            lines.append(
                f"{record.frame_index + 1},{found.track_id},{left + 1:.2f},{top + 1:.2f},"
                f"{right - left:.2f},{bottom - top:.2f},{found.score:.4f},-1,-1,-1\n"
            )
        self._file.append("".join(lines).encode(), count=len(lines))

    def close(self, outcome: SinkOutcome) -> list[Path]:
        """See ``ResultSink.close``."""
        return self._file.close(outcome)

    def discard(self) -> None:
        """Leave no file."""
        self._file.discard()


class MotSink:
    """Writes MOT Challenge text while the stream runs.

    Args:
        target: Where to write; see ``OutputFile`` for what a failure leaves behind.
        class_names: Names by class id.
        only_classes: Leave out detections of all other classes; None keeps all.

    Raises:
        OutputError: The file cannot be created.
        UsageError: One of ``only_classes`` is not in ``class_names``.
    """

    stage = "mot"
    needs_picture = False

    def __init__(
        self, target: OutputFile, *, class_names: Sequence[str], only_classes: Collection[str] | None = None
    ) -> None:
        self._class_names = tuple(class_names)
        for name in only_classes or ():
            if name not in self._class_names:
                raise UsageError(f"the class {name!r} is none of {', '.join(self._class_names)}")
        self._file = MotFile(target, only_classes=only_classes)

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:  # noqa: ARG002
        self._file.append(FrameRecord.from_result(result, class_names=self._class_names))

    def close(self, outcome: SinkOutcome) -> list[Path]:
        return self._file.close(outcome)
