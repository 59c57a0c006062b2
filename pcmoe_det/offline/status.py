"""What became of each file: an append-only journal that survives a crash at any moment.

``status.jsonl`` has one JSON object a line, of schema version 1. A line with ``run`` opens a run and holds
its settings; every other line is one state of one file, the last line of a file being its present one:

===================  ============================================================================
``schema_version``   1
``at``               when, in UTC
``source``           the file, relative to the folder that is processed
``state``            ``started``, ``done``, ``failed`` or ``interrupted``
``attempt``          names this attempt
``settings``         the settings it ran with: ``id`` of a ``run`` line
``source_bytes``,    the file as it was; null where it could not be looked at
``source_mtime_ns``
``frames``,          what was processed, and how long it took
``seconds``
``error``            of a failed or interrupted file: one sentence
``faults``           what did not end the file, counted by cause, only where there is some: damage in it,
                     and ``failed_load``, experts that could not be read when the policy wanted them
``outputs``          of a done file: ``name`` (relative to the output folder), ``bytes``, ``mtime_ns``
``partial``          names of outputs that were kept outside their places: unfinished ones of a failed
                     file, whole ones that could not be moved
``retry``            true where a failed file is to be tried again without being asked
===================  ============================================================================

Characters beyond ASCII are escaped, so that names that are no valid Unicode come back as they were.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

from pcmoe_det.errors import OutputError

__all__ = [
    "FAILED_LOAD",
    "FileState",
    "FileStatus",
    "Fingerprint",
    "StatusJournal",
    "WrittenFile",
    "settings_id",
]

_log = logging.getLogger(__name__)

_SCHEMA_VERSION = 1
FAILED_LOAD = "failed_load"
FileState = Literal["started", "done", "failed", "interrupted"]


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What tells a file from a changed one.

    Attributes:
        size_bytes: Its length; of a folder, its files' together.
        mtime_ns: When it was last written; of a folder, its newest file.
    """

    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class WrittenFile:
    """An output as it was written; ``name`` is relative to the output folder."""

    name: str
    size_bytes: int
    mtime_ns: int


@dataclass(frozen=True, slots=True)
class FileStatus:
    """One state of one file; the module's docstring describes the fields."""

    source: str
    state: FileState
    attempt: str
    settings: str
    fingerprint: Fingerprint | None = None
    frames: int = 0
    seconds: float = 0.0
    error: str | None = None
    faults: Mapping[str, int] = field(default_factory=dict)
    outputs: tuple[WrittenFile, ...] = ()
    partial: tuple[str, ...] = ()
    retry: bool = False

    def as_record(self) -> dict[str, Any]:
        """The line of the journal, without its time."""
        print_of = self.fingerprint
        record: dict[str, Any] = {
            "source": self.source,
            "state": self.state,
            "attempt": self.attempt,
            "settings": self.settings,
            "source_bytes": None if print_of is None else print_of.size_bytes,
            "source_mtime_ns": None if print_of is None else print_of.mtime_ns,
            "frames": self.frames,
            "seconds": round(self.seconds, 3),
        }
        if self.outputs:
            record["outputs"] = [
                {"name": file.name, "bytes": file.size_bytes, "mtime_ns": file.mtime_ns}
                for file in self.outputs
            ]
        optional = {
            "error": self.error,
            "faults": dict(self.faults),
            "partial": list(self.partial),
            "retry": self.retry,
        }
        return record | {name: value for name, value in optional.items() if value}

    @classmethod
    def from_record(cls, record: Mapping[str, Any]) -> FileStatus:
        """The reverse of ``as_record``.

        Raises:
            KeyError, TypeError, ValueError: It is no such record.
        """
        if record["state"] not in get_args(FileState):
            raise ValueError(f"there is no state {record['state']!r}")
        size, mtime = record["source_bytes"], record["source_mtime_ns"]
        return cls(
            source=_inside(record["source"]),
            state=record["state"],
            attempt=_plain_name(record["attempt"]),
            settings=str(record["settings"]),
            fingerprint=None if size is None or mtime is None else Fingerprint(int(size), int(mtime)),
            frames=int(record["frames"]),
            seconds=float(record["seconds"]),
            error=record.get("error"),
            faults=dict(record.get("faults", {})),
            outputs=tuple(
                WrittenFile(_inside(file["name"]), int(file["bytes"]), int(file["mtime_ns"]))
                for file in record.get("outputs", ())
            ),
            partial=tuple(_inside(name) for name in record.get("partial", ())),
            retry=bool(record.get("retry", False)),
        )


class StatusJournal:
    """The journal of one output folder, opened by one process (see ``OutputFolder``).

    A last line that a crash cut off is taken away; it never counted. Every append is on the disk before it
    returns.

    Args:
        path: Made if it is not there.

    Raises:
        OutputError: It cannot be read or written, or a line before the last one is damaged.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._latest: dict[str, FileStatus] = {}
        self._written: set[WrittenFile] = set()
        self._partial: dict[str, tuple[str, ...]] = {}
        self._settings: dict[str, dict[str, Any]] = {}
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o666)
        except OSError as error:
            raise OutputError(f"the status {path} cannot be opened: {error.strerror or error}") from error
        try:
            self._whole_bytes = self._read(path.read_bytes())
            os.ftruncate(self._fd, self._whole_bytes)
        except OSError as error:
            os.close(self._fd)
            raise OutputError(f"the status {path} cannot be read: {error.strerror or error}") from error
        except BaseException:
            os.close(self._fd)
            raise

    @property
    def path(self) -> Path:
        """Where it is."""
        return self._path

    @property
    def latest(self) -> Mapping[str, FileStatus]:
        """The present state of every file that was ever started, by its name."""
        return self._latest

    def has_written(self, file: WrittenFile) -> bool:
        """Whether exactly this file is an output that was recorded as done, in any run."""
        return file in self._written

    def partial_of(self, source: str) -> tuple[str, ...]:
        """Names of the outputs outside their places that earlier attempts at this file left."""
        return self._partial.get(source, ())

    def settings_of(self, identifier: str) -> Mapping[str, Any] | None:
        """The settings of an earlier run, or None if no run had these."""
        return self._settings.get(identifier)

    def append_run(self, settings: Mapping[str, Any]) -> str:
        """Note that a run begins; returns the name of its settings."""
        identifier = settings_id(settings)
        self._settings[identifier] = dict(settings)
        self._append([{"run": {"id": identifier, "settings": dict(settings)}}])
        return identifier

    def append(self, *statuses: FileStatus) -> None:
        """Note the new state of one or more files, all or none of them after a crash of this process.

        Raises:
            OutputError: The journal cannot be written, for example because the disk is full.
        """
        self._append([status.as_record() for status in statuses])
        for status in statuses:
            self._take(status)

    def close(self) -> None:
        """Close the file."""
        os.close(self._fd)

    def _take(self, status: FileStatus) -> None:
        self._latest[status.source] = status
        self._written.update(status.outputs)
        if status.state in ("done", "failed") or status.partial:
            self._partial[status.source] = status.partial

    def _append(self, records: list[dict[str, Any]]) -> None:
        head = {
            "schema_version": _SCHEMA_VERSION,
            "at": datetime.now(timezone.utc).isoformat(timespec="milliseconds"),
        }
        lines = "".join(json.dumps(head | record, allow_nan=False) + "\n" for record in records).encode()
        try:
            rest = memoryview(lines)
            while rest:
                rest = rest[os.write(self._fd, rest) :]
            os.fsync(self._fd)
        except OSError as error:
            with contextlib.suppress(OSError):
                os.ftruncate(self._fd, self._whole_bytes)
            raise OutputError(
                f"the status {self._path} cannot be written: {error.strerror or error}; what is done so far "
                "is kept, and the same command goes on from there"
            ) from error
        self._whole_bytes += len(lines)

    def _read(self, content: bytes) -> int:
        """Take in all whole lines; returns how many bytes they are."""
        whole = content.rfind(b"\n") + 1
        lines = [line + b"\n" for line in content[:whole].split(b"\n")[:-1]]
        read_bytes = 0
        for number, line in enumerate(lines, start=1):
            try:
                self._read_line(line)
            except (KeyError, TypeError, ValueError, AttributeError) as error:
                if number < len(lines):
                    raise OutputError(
                        f"line {number} of {self._path} is damaged ({error}); put it right, or use another "
                        "output folder"
                    ) from error
                break  # the disk, too, can lose the end of what was written last
            read_bytes += len(line)
        if read_bytes < len(content):
            _log.warning(
                "the last line of %s was cut off, %d bytes are dropped",
                self._path,
                len(content) - read_bytes,
            )
        return read_bytes

    def _read_line(self, line: bytes) -> None:
        record = json.loads(line)
        if record["schema_version"] != _SCHEMA_VERSION:
            raise OutputError(
                f"{self._path} has schema version {record['schema_version']}, this program knows "
                f"{_SCHEMA_VERSION}; use the program that wrote it, or another output folder"
            )
        if "run" in record:
            self._settings[str(record["run"]["id"])] = dict(record["run"]["settings"])
        else:
            self._take(FileStatus.from_record(record))


def settings_id(settings: Mapping[str, Any]) -> str:
    """A short name for settings, the same for the same ones."""
    text = json.dumps(settings, sort_keys=True, allow_nan=False)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()


def _inside(name: object) -> str:
    """``name`` if it stays inside the folder it belongs to: a journal is data that others can edit."""
    if not isinstance(name, str) or PurePosixPath(name).is_absolute() or ".." in PurePosixPath(name).parts:
        raise ValueError(f"{name!r} is no name inside the folder")
    return name


def _plain_name(name: object) -> str:
    if not isinstance(name, str) or not name.isalnum():
        raise ValueError(f"{name!r} is no name of an attempt")
    return name
