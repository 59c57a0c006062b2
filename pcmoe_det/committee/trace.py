"""Traces: what each frame wanted of each expert, one JSON line a frame."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from io import FileIO
from pathlib import Path
from types import TracebackType
from typing import Any

from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.errors import DataError, OutputError
from pcmoe_det.models.description import parse_json

__all__ = ["TRACE_VERSION", "FrameTrace", "TraceWriter", "read_trace"]

TRACE_VERSION = 1
_LARGEST_NUMBER = 2**63
_log = logging.getLogger(__name__)


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

    The file is called ``<stem>.part<suffix>`` until it is whole. Each line goes to the system in one piece,
    so that a killed run leaves whole lines. Where one cannot be written (a full disk) the trace stops there
    with one logged warning, because a live stream is worth more than its trace; ``close`` tells it again.

    Args:
        path: The final name; an existing file is replaced when the trace is whole.
        specs: Every MoE layer.

    Raises:
        OutputError: The file cannot be created.
    """

    def __init__(self, path: Path, specs: Sequence[MoELayerSpec]) -> None:
        self.path = path
        self.partial_path = _partial_path(path)
        self.frames = 0
        self._end = 0
        self._failure: str | None = None
        header = {
            "trace_version": TRACE_VERSION,
            "layers": [{"name": spec.name, "num_experts": spec.num_experts} for spec in specs],
        }
        try:
            self._file = FileIO(self.partial_path, "w")
            self._append(header)
        except OSError as error:
            raise OutputError(f"cannot write the trace {path}: {error.strerror or error}") from error

    def write(self, frame: FrameTrace) -> None:
        """Append one frame, unless the trace has stopped."""
        if self._failure is not None:
            return
        try:
            self._append(vars(frame))
        except OSError as error:
            self._failure = error.strerror or str(error)
            with suppress(OSError):
                self._file.truncate(self._end)
            _log.warning("%s", self._stopped())
        else:
            self.frames += 1

    def close(self) -> None:
        """Finish the file and give it its name.

        Raises:
            OutputError: The trace is incomplete, or cannot be finished; what there is has the temporary name.
        """
        self._file.close()
        if self._failure is not None:
            raise OutputError(self._stopped())
        try:
            self.partial_path.replace(self.path)
        except OSError as error:
            raise OutputError(
                f"cannot write the trace {self.path}: {error.strerror or error}; "
                f"what there is: {self.partial_path}"
            ) from error

    def __enter__(self) -> TraceWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()
            return
        # Unfinished: it keeps the temporary name, and the error on its way is the one to tell.
        self._file.close()
        if not self.frames:
            self.partial_path.unlink(missing_ok=True)

    def _append(self, content: Mapping[str, Any]) -> None:
        line = memoryview((json.dumps(content, separators=(",", ":")) + "\n").encode())
        offset = self._end
        while line:
            written = os.pwrite(self._file.fileno(), line, offset)
            line, offset = line[written:], offset + written
        self._end = offset

    def _stopped(self) -> str:
        return (
            f"the trace {self.path} stops after {self.frames} frames: {self._failure}; "
            f"what there is: {self.partial_path}"
        )


def _partial_path(path: Path) -> Path:
    return path.with_name(f"{path.stem}.part{path.suffix}")


def read_trace(path: Path) -> tuple[dict[str, Any], Iterator[FrameTrace]]:
    """Header and frames of a trace.

    A last line without its end is what a killed run leaves: the frames before it are the trace, and a
    warning is logged.

    Raises:
        DataError: Missing, no trace, from a newer release, or damaged (names the line).
    """
    try:
        lines = path.read_bytes().split(b"\n")
    except OSError as error:
        unfinished = _partial_path(path)
        hint = f"; there is an unfinished one, {unfinished}" if unfinished.is_file() else ""
        raise DataError(f"cannot read the trace {path}: {error.strerror or error}{hint}") from error
    is_ended = not lines[-1]
    if is_ended:
        lines.pop()
    header = _header(path, lines[0] if lines else b"")
    sizes = [layer["num_experts"] for layer in header["layers"]]

    def frames() -> Iterator[FrameTrace]:
        for number, line in enumerate(lines[1:], start=2):
            try:
                content = parse_json(line.decode())
            except ValueError as error:
                if number == len(lines) and number > 2 and not is_ended:
                    _log.warning("%s was cut short in line %d; the %d frames before are read",
                                 path, number, number - 2)  # fmt: skip
                    return
                raise DataError(f"{path}, line {number}: damaged ({error})") from error
            try:
                frame = FrameTrace(**content)
                _check_frame(frame, sizes)
            except (ValueError, TypeError) as error:
                raise DataError(f"{path}, line {number}: damaged ({error})") from error
            yield frame

    return header, frames()


def _header(path: Path, line: bytes) -> dict[str, Any]:
    """The first line of a trace, checked."""
    try:
        header = parse_json(line.decode())
        version = header["trace_version"]
        if not _is_whole(version) or version < 1:
            raise ValueError(f"its version is {version!r}")
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path} is no trace; make one with tools/stream.py --trace FILE") from error
    if version > TRACE_VERSION:
        raise DataError(f"{path} is a trace of version {version}; this release reads up to {TRACE_VERSION}")
    layers = header.get("layers")
    is_sound = isinstance(layers, list) and all(
        isinstance(layer, dict)
        and isinstance(layer.get("name"), str)
        and _is_whole(layer.get("num_experts"))
        and layer["num_experts"] > 0
        for layer in layers
    )
    if not layers or not is_sound:
        raise DataError(
            f"{path}, line 1: damaged (its layers are no list of names with their numbers of experts)"
        )
    return dict(header)


def _check_frame(frame: FrameTrace, sizes: Sequence[int]) -> None:
    """Raise ValueError unless a frame has a row for each layer and a number for each expert."""
    if not isinstance(frame.stream, str) or not _is_whole(frame.frame):
        raise ValueError("stream is no text, or frame no whole number")
    for name in ("tokens", "importance"):
        rows = getattr(frame, name)
        if not isinstance(rows, list) or len(rows) != len(sizes):
            raise ValueError(f"{name} has no row for each of {len(sizes)} layers")
        for layer, (row, size) in enumerate(zip(rows, sizes, strict=True)):
            if not isinstance(row, list) or len(row) != size:
                raise ValueError(f"{name} of layer {layer} are not those of {size} experts")
            # NaN and infinity, which Python's JSON takes, fail the comparison.
            if not all(isinstance(value, (int, float)) and 0 <= value < _LARGEST_NUMBER for value in row):
                raise ValueError(f"{name} of layer {layer} holds something else than numbers from 0")


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
