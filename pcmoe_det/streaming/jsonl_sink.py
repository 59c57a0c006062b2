"""Results as JSON Lines, the canonical output.

One line a frame, in order, each an object of schema version 1:

========================  =======================================================================
``schema_version``        1
``source``                the source's name (a path as given, or ``camera:0``)
``frame_index``           0-based position in the source; gaps are dropped or undecodable frames
``pts_seconds``           presentation time in the source, or null where it has none
``captured_at_seconds``   when the frame was read, on this machine's monotonic clock; only
                          differences mean something
``latency_ms``            milliseconds by stage: ``read``, ``wait`` (queued before the detector),
                          ``detect``, ``render`` and ``encode`` where a picture or video is made, and
                          ``total`` from capture to this record
``detections``            list, best score first, of ``bbox_xyxy`` (four numbers, pixels of the source
                          frame), ``category`` (name) and ``score`` (0 to 1)
``accounting``            only from a detector that counts: what this frame cost it (a committee: hits
                          and misses in tokens, swaps taken in, bytes read, resident expert bytes)
========================  =======================================================================

Numbers are finite; boxes have two decimals, scores four, times in seconds six, milliseconds three.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from io import BufferedWriter
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming.output_files import OutputFile
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.structures import FrameResult

__all__ = ["SCHEMA_VERSION", "JsonLinesSink", "result_record"]

SCHEMA_VERSION = 1


def result_record(result: FrameResult, *, class_names: tuple[str, ...]) -> dict[str, Any]:
    """One result as the object that the module's docstring describes.

    Raises:
        ValueError: A number is not finite.
    """
    frame, found = result.frame, result.detections
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "source": frame.source_id,
        "frame_index": frame.frame_index,
        "pts_seconds": None if frame.pts_seconds is None else _rounded(frame.pts_seconds, 6),
        "captured_at_seconds": _rounded(frame.captured_at_seconds, 6),
        "latency_ms": {stage: _rounded(value, 3) for stage, value in result.latency_ms.items()},
        "detections": [
            {
                "bbox_xyxy": [_rounded(value, 2) for value in box],
                "category": class_names[class_id],
                "score": _rounded(score, 4),
            }
            for box, class_id, score in zip(
                found.boxes_xyxy.tolist(), found.class_ids.tolist(), found.scores.tolist(), strict=True
            )
        ],
    }
    if found.accounting:
        record["accounting"] = dict(found.accounting)
    return record


class JsonLinesSink:
    """Writes each record at once, so that a crash costs no finished line.

    Args:
        target: Where to write; see ``OutputFile`` for what a failure leaves behind.
        class_names: Names by class id.

    Raises:
        OutputError: The file cannot be created.
    """

    stage = "jsonl"
    needs_picture = False

    def __init__(self, target: OutputFile, *, class_names: tuple[str, ...]) -> None:
        self._target = target
        self._class_names = class_names
        self._count = 0
        self._whole_bytes = 0
        try:
            self._file: BufferedWriter = target.partial_path.open("wb")
        except OSError as error:
            raise OutputError(f"{target.partial_path} cannot be written: {error}") from error

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:  # noqa: ARG002
        record = result_record(result, class_names=self._class_names)
        line = (json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode()
        try:
            self._file.write(line)
            self._file.flush()
        except OSError as error:
            raise OutputError(
                f"{self._target.path} cannot be written after {self._count} lines: {error.strerror or error}"
            ) from error
        self._count += 1
        self._whole_bytes += len(line)

    def close(self, outcome: SinkOutcome) -> list[Path]:
        try:
            self._file.close()
        except OSError as error:
            # A line that did not fit is still in the buffer: ``write`` has reported it.
            if outcome != "failed":
                raise OutputError(f"{self._target.partial_path} cannot be closed: {error}") from error
        if self._count == 0 and outcome != "complete":
            self._target.discard()
        elif outcome == "failed":
            self._cut_unfinished_line()
        path = self._target.finish(outcome)
        return [] if path is None else [path]

    def _cut_unfinished_line(self) -> None:
        with contextlib.suppress(OSError):
            os.truncate(self._target.partial_path, self._whole_bytes)


def _rounded(value: float, decimals: int) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a record holds finite numbers only, not {value}")
    return round(value, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
