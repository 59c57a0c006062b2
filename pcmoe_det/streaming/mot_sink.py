"""Results as MOT Challenge text, for TrackEval, motmetrics and whatever else reads it.

One line per detection, frames in order: ``frame,id,left,top,width,height,score,-1,-1,-1``. As that format
wants it, frames and pixels count from 1 (the picture's first pixel is 1, 1), ids, too; a detection without a
track has the id -1. Frame ``n`` is the one with index ``n - 1`` in the source; an id is the ``track_id`` of
the JSON Lines. Boxes have two decimals, scores four. There is no column for the class: choose classes
beforehand.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

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
    """

    def __init__(self, target: OutputFile) -> None:
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
    """

    stage = "mot"
    needs_picture = False

    def __init__(self, target: OutputFile, *, class_names: Sequence[str]) -> None:
        self._class_names = tuple(class_names)
        self._file = MotFile(target)

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:  # noqa: ARG002
        self._file.append(FrameRecord.from_result(result, class_names=self._class_names))

    def close(self, outcome: SinkOutcome) -> list[Path]:
        return self._file.close(outcome)
