"""Results as JSON Lines, the canonical output.

One line a frame, in order, each an object of schema version 1 (``RECORD_SCHEMA`` says the same as a JSON
Schema; within a version fields may be added, never changed or taken away):

========================  =======================================================================
``schema_version``        1
``source``                the source's name (a path as given, an address without credentials, or
                          ``camera:0``)
``frame_index``           0-based position in the source; numbers left out are frames that were
                          dropped or could not be decoded
``pts_seconds``           presentation time in the source, or null where it has none
``captured_at_seconds``   when the frame was read, on this machine's monotonic clock; only
                          differences mean something
``gap``                   only on the first record after a live source was lost: ``cause``
                          (``reconnected``, ``size_changed``) and ``seconds`` that nothing came
``latency_ms``            milliseconds by stage: ``read``, ``wait`` (queued before the detector),
                          ``detect``, ``track`` where objects are followed, ``render`` and ``encode``
                          where a picture or video is made, and ``total`` from capture to this record
``detections``            list, best score first, of ``bbox_xyxy`` (four numbers, pixels of the source
                          frame), ``category`` (name), ``score`` (0 to 1) and, for an object that is
                          followed, ``track_id`` (its number in every frame of this source)
``accounting``            only from a detector that counts: what this frame cost it (a committee: hits
                          and misses in tokens, swaps taken in, bytes read, resident expert bytes)
========================  =======================================================================

Numbers are finite; boxes have two decimals, scores four, times in seconds six, milliseconds three.
"""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.streaming.append_file import AppendFile
from pcmoe_det.streaming.output_files import OutputFile
from pcmoe_det.streaming.record_schema import RECORD_SCHEMA, SCHEMA_VERSION
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.structures import Detections, FrameResult

__all__ = ["RECORD_SCHEMA", "SCHEMA_VERSION", "JsonLinesSink", "result_record"]


def result_record(result: FrameResult, *, class_names: tuple[str, ...]) -> dict[str, Any]:
    """One result as the object that the module's docstring describes.

    Raises:
        ValueError: A number is not finite.
    """
    frame = result.frame
    record: dict[str, Any] = {
        "schema_version": SCHEMA_VERSION,
        "source": frame.source_id,
        "frame_index": frame.frame_index,
        "pts_seconds": None if frame.pts_seconds is None else _rounded(frame.pts_seconds, 6),
        "captured_at_seconds": _rounded(frame.captured_at_seconds, 6),
    }
    if frame.gap is not None:
        record["gap"] = {"cause": frame.gap.cause, "seconds": _rounded(frame.gap.seconds, 3)}
    record["latency_ms"] = {stage: _rounded(value, 3) for stage, value in result.latency_ms.items()}
    record["detections"] = _detection_records(result.detections, class_names)
    if result.detections.accounting:
        record["accounting"] = dict(result.detections.accounting)
    return record


class JsonLinesSink:
    """Writes each record at once, so that a crash costs no finished line.

    Args:
        target: Where to write; see ``OutputFile`` for what a failure leaves behind.
        class_names: Names by class id.
    """

    stage = "jsonl"
    needs_picture = False

    def __init__(self, target: OutputFile, *, class_names: tuple[str, ...]) -> None:
        self._class_names = class_names
        self._file = AppendFile(target, unit="lines")

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:  # noqa: ARG002
        record = result_record(result, class_names=self._class_names)
        self._file.append((json.dumps(record, allow_nan=False, ensure_ascii=False) + "\n").encode())

    def close(self, outcome: SinkOutcome) -> list[Path]:
        return self._file.close(outcome)


def _detection_records(found: Detections, class_names: tuple[str, ...]) -> list[dict[str, Any]]:
    records: list[dict[str, Any]] = [
        {
            "bbox_xyxy": [_rounded(value, 2) for value in box],
            "category": class_names[class_id],
            "score": _rounded(score, 4),
        }
        for box, class_id, score in zip(
            found.boxes_xyxy.tolist(), found.class_ids.tolist(), found.scores.tolist(), strict=True
        )
    ]
    if found.track_ids is not None:
        for record, track_id in zip(records, found.track_ids.tolist(), strict=True):
            if track_id >= 0:
                record["track_id"] = track_id
    return records


def _rounded(value: float, decimals: int) -> float:
    if not math.isfinite(value):
        raise ValueError(f"a record holds finite numbers only, not {value}")
    return round(value, decimals) + 0.0  # + 0.0 turns -0.0 into 0.0
