"""Files that grow by whole records and are sound at every moment."""

from __future__ import annotations

import contextlib
import os
from io import FileIO
from pathlib import Path

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming.output_files import OutputFile
from pcmoe_det.streaming.sinks import SinkOutcome

__all__ = ["AppendFile"]


class AppendFile:
    """Appends records to an ``OutputFile``'s temporary file, each one whole or not at all.

    The file is created with the first record, or by the end of a stream that had none.

    A record goes to the system in one call, so that a crash of this process costs none that was appended.
    Where the disk is full, what was written of the last record is cut off again.

    Args:
        target: Where to write; see ``OutputFile`` for what a failure leaves behind.
        head: What the file begins with.
        tail: What the file ends with, at every moment: the next record is written over it.
        unit: What a record is called in messages.
    """

    def __init__(
        self, target: OutputFile, *, head: bytes = b"", tail: bytes = b"", unit: str = "records"
    ) -> None:
        self._target = target
        self._tail = tail
        self._unit = unit
        self._head = head
        self._end = 0
        self._file: FileIO | None = None
        self.count = 0

    def append(self, records: bytes, *, count: int = 1) -> None:
        """Append ``count`` records; none (of a frame without detections) still makes the file worth keeping.

        Raises:
            OutputError: They cannot be written, or the file cannot be created; the records before them are in
                it.
        """
        file = self._file or self._create()
        if records:
            self._write(file, records)
            self.count += count

    def close(self, outcome: SinkOutcome) -> list[Path]:
        """Finish the file; see ``ResultSink.close``. A stream that got no result and not to its end leaves
        no file."""
        if self._file is None and outcome == "complete":
            self._create()
        try:
            if self._file is not None:
                self._file.close()
        except OSError as error:  # network folders report late
            if outcome != "failed":
                raise OutputError(
                    f"{self._target.path} cannot be finished: {_reason(error)}; "
                    f"what there is: {self._target.partial_path}"
                ) from error
        path = self._target.finish(outcome)
        return [] if path is None else [path]

    def discard(self) -> None:
        """Close the file and remove it."""
        if self._file is not None:
            with contextlib.suppress(OSError):
                self._file.close()
        self._target.discard()

    def _create(self) -> FileIO:
        """An earlier run's unfinished file stays until there is something to replace it with."""
        self._file = file = self._target.create()
        try:
            self._write(file, self._head)
        except BaseException:
            self.discard()
            raise
        return file

    def _write(self, file: FileIO, data: bytes) -> None:
        try:
            _write_at(file.fileno(), data + self._tail, self._end)
        except OSError as error:
            self._take_back(file)
            raise OutputError(
                f"{self._target.path} cannot be written: {_reason(error)}; the {self.count} {self._unit} "
                f"before that are kept in {self._target.partial_path}"
            ) from error
        self._end += len(data)

    def _take_back(self, file: FileIO) -> None:
        """Cut off what did not fit; the tail takes the room that it had before."""
        with contextlib.suppress(OSError):
            os.truncate(file.fileno(), self._end)
            _write_at(file.fileno(), self._tail, self._end)


def _write_at(descriptor: int, data: bytes, offset: int) -> None:
    view = memoryview(data)
    while view:
        written = os.pwrite(descriptor, view, offset)
        view, offset = view[written:], offset + written


def _reason(error: OSError) -> str:
    return error.strerror or str(error)
