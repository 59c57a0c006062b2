"""Reading JSON Lines results, checked line by line.

The schema is in ``jsonl_sink``. Readers ignore fields that they do not know.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pcmoe_det.errors import DataError
from pcmoe_det.streaming.jsonl_sink import SCHEMA_VERSION, result_record
from pcmoe_det.structures import FrameResult

__all__ = ["DetectionRecord", "FrameRecord", "RecordReader"]

# A frame with 10,000 detections takes 1 MB; a longer line is no record, and reading it whole costs memory.
_LONGEST_LINE_BYTES = 64 * 1024 * 1024
_MOST_NAMES_SHOWN = 8


@dataclass(frozen=True, slots=True)
class DetectionRecord:
    """One detection of a record.

    Attributes:
        bbox_xyxy: Left, top, right, bottom in pixels of the source frame.
        category: The class's name.
        score: From 0 to 1.
        track_id: The object's number, or -1 where it is not tracked.
    """

    bbox_xyxy: tuple[float, float, float, float]
    category: str
    score: float
    track_id: int = -1


@dataclass(frozen=True, slots=True)
class FrameRecord:
    """The part of a record that conversions need.

    Attributes:
        source: Name of the source.
        frame_index: 0-based position in the source.
        detections: Best score first.
    """

    source: str
    frame_index: int
    detections: tuple[DetectionRecord, ...]

    @classmethod
    def from_result(cls, result: FrameResult, *, class_names: tuple[str, ...]) -> FrameRecord:
        """What reading back ``result``'s line would give, so that an output written while the stream runs
        and one converted later are the same, rounding included."""
        return cls.from_json(result_record(result, class_names=class_names))

    @classmethod
    def from_json(cls, record: Any) -> FrameRecord:
        """Check a decoded line.

        Raises:
            ValueError: It is no record; the message names the field.
        """
        if not isinstance(record, Mapping):
            raise ValueError(f"a record is a JSON object, not {_shown(record)}")
        version = _field(record, "schema_version", int)
        if not 1 <= version <= SCHEMA_VERSION:
            raise ValueError(f"schema_version is {version}; this release reads 1 to {SCHEMA_VERSION}")
        frame_index = _field(record, "frame_index", int)
        if frame_index < 0:
            raise ValueError(f"frame_index is {frame_index}; it counts from 0")
        return cls(
            source=_field(record, "source", str),
            frame_index=frame_index,
            detections=tuple(
                _detection(item, place) for place, item in enumerate(_field(record, "detections", list))
            ),
        )


class RecordReader:
    """The records of one JSON Lines file, in order, one at a time (memory does not grow with the file).

    A last line without its end, as a killed run or a full disk leaves it, is left out and counted in
    ``unfinished_lines``; a last line that is whole but for its line break is read. Anything else that is no
    record is an error.

    Args:
        path: The file; also a ``.part`` one.
        source: Only records of this source; None demands that all are of one source, because frame numbers
            of two sources would be mixed up.

    Raises:
        DataError: On opening: there is no such file. While iterating: a damaged line, with its number;
            several sources, or none of the name asked for; a frame that does not come after the one before.
    """

    def __init__(self, path: str | Path, *, source: str | None = None) -> None:
        self._path = Path(path)
        self._only_source = source
        self.unfinished_lines = 0
        try:
            with self._path.open("rb"):
                pass
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise self._unreadable(error) from error

    def __iter__(self) -> Iterator[FrameRecord]:
        seen_source: str | None = self._only_source
        last_index = -1
        others: set[str] = set()
        for number, line in enumerate(self._lines(), start=1):
            record = self._parse(line, number)
            if record is None:
                break
            if self._only_source is not None and record.source != self._only_source:
                if len(others) < _MOST_NAMES_SHOWN:
                    others.add(record.source)
                continue
            if seen_source is not None and record.source != seen_source:
                raise self._error(
                    number,
                    f"is of the source {record.source!r}, the lines before are of {seen_source!r}; "
                    "choose one with --source",
                )
            if record.frame_index <= last_index:
                raise self._error(
                    number, f"has frame_index {record.frame_index} after {last_index}; frames must ascend"
                )
            seen_source, last_index = record.source, record.frame_index
            yield record
        if self._only_source is not None and last_index < 0:
            raise DataError(
                f"{self._path} has no record of the source {self._only_source!r}; "
                f"it has: {', '.join(sorted(others)) or 'none at all'}"
            )

    def _lines(self) -> Iterator[bytes]:
        try:
            with self._path.open("rb") as file:
                while line := file.readline(_LONGEST_LINE_BYTES):
                    yield line
        except OSError as error:
            raise self._unreadable(error) from error

    def _parse(self, line: bytes, number: int) -> FrameRecord | None:
        """The record of a line; None for an unfinished last one."""
        if line.endswith(b"\n") and not line.strip():
            raise self._error(number, "is empty")
        try:
            return FrameRecord.from_json(json.loads(line.decode("utf-8"), parse_constant=_refuse_constant))
        except (ValueError, RecursionError) as error:  # of UTF-8, of JSON, of the record
            if not line.endswith(b"\n") and len(line) < _LONGEST_LINE_BYTES:
                self.unfinished_lines += 1
                return None
            raise self._error(number, f"is damaged: {error}") from error

    def _unreadable(self, error: Exception) -> DataError:
        return DataError(f"{self._path} cannot be read: {getattr(error, 'strerror', None) or error}")

    def _error(self, number: int, what: str) -> DataError:
        return DataError(f"{self._path}, line {number} {what}")


def _detection(item: Any, place: int) -> DetectionRecord:
    if not isinstance(item, Mapping):
        raise ValueError(f"detection {place} is an object, not {_shown(item)}")
    try:
        box = _field(item, "bbox_xyxy", list)
        if len(box) != 4:
            raise ValueError(f"bbox_xyxy has 4 numbers, not {_shown(box)}")
        left, top, right, bottom = (_number(value, "bbox_xyxy") for value in box)
        if right < left or bottom < top:
            raise ValueError(f"bbox_xyxy is left, top, right, bottom, not {_shown(box)}")
        score = _number(item.get("score"), "score")
        if not 0 <= score <= 1:
            raise ValueError(f"score is from 0 to 1, not {score}")
        return DetectionRecord(
            bbox_xyxy=(left, top, right, bottom),
            category=_field(item, "category", str),
            score=score,
            track_id=_field(item, "track_id", int) if "track_id" in item else -1,
        )
    except ValueError as error:
        raise ValueError(f"detection {place}: {error}") from None


def _field(record: Mapping[str, Any], name: str, kind: type) -> Any:
    value = record.get(name)
    if not isinstance(value, kind) or isinstance(value, bool):
        names = {int: "a whole number", str: "a text", list: "a list"}
        raise ValueError(f"{name} is {names[kind]}, not {_shown(value)}" if name in record else f"no {name}")
    return value


def _number(value: Any, name: str) -> float:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{name} is made of numbers, not {_shown(value)}")
    try:
        number = float(value)
    except OverflowError:  # a whole number of more than 308 digits
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"{name} is made of finite numbers, not {_shown(value)}")
    return number


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of JSON")


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
