"""Traces: what each frame wanted of each expert, one JSON line a frame."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.errors import DataError, OutputError

__all__ = ["TRACE_VERSION", "FrameTrace", "TraceWriter", "read_trace"]

TRACE_VERSION = 1


@dataclass
class FrameTrace:
    """One frame: per layer the choices (tokens x top-k) per expert, and their importance."""

    stream: str
    frame: int
    tokens: list[list[int]] = field(default_factory=list)
    importance: list[list[float]] = field(default_factory=list)

    def add(self, tokens: Sequence[int], importance: Sequence[float]) -> None:
        """Append the next layer."""
        self.tokens.append(list(tokens))
        self.importance.append([round(value, 3) for value in importance])


class TraceWriter:
    """Writes a trace; a context manager.

    Raises:
        OutputError: The file cannot be written.
    """

    def __init__(self, path: Path, specs: Sequence[MoELayerSpec]) -> None:
        self.path = path
        header = {
            "trace_version": TRACE_VERSION,
            "layers": [{"name": spec.name, "num_experts": spec.num_experts} for spec in specs],
        }
        try:
            self._file: TextIO = path.open("w", encoding="utf-8")
            self._file.write(json.dumps(header) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write the trace {path}: {error.strerror or error}") from error

    def write(self, frame: FrameTrace) -> None:
        """Append one frame."""
        try:
            self._file.write(json.dumps(vars(frame), separators=(",", ":")) + "\n")
        except OSError as error:
            raise OutputError(f"cannot write the trace {self.path}: {error.strerror or error}") from error

    def close(self) -> None:
        """Finish the file."""
        self._file.close()

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def read_trace(path: Path) -> tuple[dict[str, Any], Iterator[FrameTrace]]:
    """Header and frames of a trace.

    Raises:
        DataError: Missing, no trace, from a newer release, or damaged (names the line).
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"cannot read the trace {path}: {error}") from error
    try:
        header = json.loads(lines[0])
        version = header["trace_version"]
    except (IndexError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no trace; make one with tools/stream.py --trace FILE") from error
    if version > TRACE_VERSION:
        raise DataError(f"{path} is a trace of version {version}; this release reads up to {TRACE_VERSION}")

    def frames() -> Iterator[FrameTrace]:
        for number, line in enumerate(lines[1:], start=2):
            try:
                yield FrameTrace(**json.loads(line))
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}: damaged ({error})") from error

    return header, frames()
