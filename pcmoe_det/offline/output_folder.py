"""The folder that a job writes to: one process at a time, and results appear whole or not at all.

Beside the results it holds ``status.jsonl`` (see ``status``) and ``.pcmoe-process`` with the lock, one
folder for each attempt and, in ``kept``, what could be put nowhere else. A worker writes into its attempt's
folder only; a finished attempt is first noted as done and then moved to its place. So a crash between the
two loses nothing: the next run finds the note and finishes the move. A worker that outlives its job by a
moment can spoil nothing either.
"""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import socket
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from uuid import uuid4

from pcmoe_det.errors import OutputError
from pcmoe_det.offline.job import printable
from pcmoe_det.offline.status import StatusJournal, WrittenFile

__all__ = ["OutputFolder", "staged_name"]

_STATUS_NAME = "status.jsonl"
_OWN_FOLDER = ".pcmoe-process"


class OutputFolder:
    """The output folder of a job, locked while it is open.

    The lock is the kernel's (``flock``): it goes away with the process, however that ends, and a lock file
    left behind means nothing.

    Args:
        path: Made if it is not there, with the folders above it.

    Raises:
        OutputError: It cannot be made or written to, another process uses it, or its status is damaged.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.run_id = uuid4().hex
        self._attempts = path / _OWN_FOLDER / "attempts"
        try:
            self._attempts.mkdir(parents=True, exist_ok=True)
            self._lock_fd = os.open(path / _OWN_FOLDER / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise OutputError(
                f"the output folder {printable(path)} cannot be written to: {reason}"
            ) from error
        try:
            self._lock()
            self.journal = StatusJournal(path / _STATUS_NAME)
        except BaseException:
            os.close(self._lock_fd)
            raise

    @property
    def proof_path(self) -> Path:
        """A file that holds ``run_id``: whoever reads it there sees the same folder."""
        return self.path / _OWN_FOLDER / "lock"

    def close(self) -> None:
        """Let others use the folder."""
        self.journal.close()
        os.close(self._lock_fd)

    def __enter__(self) -> OutputFolder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def start_attempt(self, attempt: str) -> Path:
        """A new, empty folder for what an attempt writes.

        Raises:
            OutputError: It cannot be made.
        """
        folder = self._attempts / attempt
        try:
            folder.mkdir()
        except OSError as error:
            raise OutputError(f"{folder} cannot be made: {error.strerror or error}") from error
        return folder

    def staged(self, attempt: str, names: Sequence[str]) -> tuple[WrittenFile, ...]:
        """What an attempt has written for the outputs ``names``.

        Raises:
            OutputError: Something is missing.
        """
        found = []
        for name in names:
            path = self._attempts / attempt / staged_name(name)
            try:
                status = path.stat()
            except OSError as error:
                raise OutputError(f"the result for {printable(name)} is missing: {error}") from error
            found.append(WrittenFile(name, status.st_size, status.st_mtime_ns))
        return tuple(found)

    def obstacle(self, name: str, *, overwrite: bool) -> str | None:
        """Why the output ``name`` cannot be put into its place, as a sentence; None if it can."""
        path = self.path / name
        try:
            status = path.lstat()
        except FileNotFoundError:
            return None
        except OSError as error:
            return f"{printable(path)} cannot be written: {error.strerror or error}"
        if not path.is_file() or path.is_symlink():
            return f"{printable(path)} exists and is no regular file"
        if overwrite or self.journal.has_written(WrittenFile(name, status.st_size, status.st_mtime_ns)):
            return None
        return f"{printable(path)} exists and was not made by this job"

    def make_parents(self, names: Sequence[str]) -> None:
        """Make the folders that outputs go to.

        Raises:
            OutputError: One cannot be made.
        """
        for name in names:
            folder = (self.path / name).parent
            try:
                folder.mkdir(parents=True, exist_ok=True)
            except OSError as error:
                raise OutputError(
                    f"the folder {printable(folder)} cannot be made: {error.strerror or error}"
                ) from error

    def move_into_place(self, attempt: str, outputs: Sequence[WrittenFile]) -> None:
        """Give an attempt's results their names. What was moved already stays moved.

        Raises:
            OutputError: One cannot be moved; it stays with the attempt, where ``keep_partial`` finds it.
        """
        for output in outputs:
            source = self._attempts / attempt / staged_name(output.name)
            if source.exists():
                self._rename(source, output.name)

    def keep_partial(self, attempt: str, names: Sequence[str], before: Sequence[str] = ()) -> tuple[str, ...]:
        """Keep what an attempt has of the outputs ``names``: unfinished results, and whole ones that could
        not be moved into place.

        They get names beside the outputs, ``<name>.part<ending>``. Where that cannot be, or would replace
        something else, they go to ``.pcmoe-process/kept``.

        Args:
            before: What this returned for an earlier attempt. It goes when this attempt has something, and
                stays when not.

        Returns:
            The names of what is there now. An attempt's file that cannot be moved at all is left behind.
        """
        kept = []
        for name in names:
            staged = self._attempts / attempt / staged_name(name)
            for source in (staged, staged.with_stem("result.part")):
                if source.is_file() and source.stat().st_size:
                    kept += self._keep(source, attempt, name, before)
                    break
        if not kept:
            return tuple(before)
        self.drop_partial([name for name in before if name not in kept])
        return tuple(kept)

    def drop_partial(self, names: Sequence[str]) -> None:
        """Remove what ``keep_partial`` kept: there is something better now."""
        for name in names:
            with suppress(OSError):  # it is in nobody's way
                (self.path / name).unlink()

    def end_attempt(self, attempt: str) -> None:
        """Remove the attempt's folder with what is still in it."""
        shutil.rmtree(self._attempts / attempt, ignore_errors=True)

    def unended_attempts(self) -> frozenset[str]:
        """Attempts whose folders are still there."""
        return frozenset(folder.name for folder in self._attempts.iterdir())

    def _keep(self, source: Path, attempt: str, name: str, before: Sequence[str]) -> list[str]:
        """Move ``source`` to the first place that takes it; its name there, or none."""
        beside = str(Path(name).with_name(f"{Path(name).stem}.part{source.suffix}"))
        for place in (beside, f"{_OWN_FOLDER}/kept/{attempt}{source.suffix}"):
            if os.path.lexists(self.path / place) and place not in before:
                continue
            try:
                self.make_parents([place])
                self._rename(source, place)
            except OutputError:
                continue
            return [place]
        return []

    def _rename(self, source: Path, name: str) -> None:
        try:
            source.replace(self.path / name)
        except OSError as error:
            raise OutputError(
                f"the result cannot be moved to {printable(self.path / name)}: {error.strerror or error}"
            ) from error

    def _lock(self) -> None:
        try:
            fcntl.flock(self._lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise OutputError(
                f"{printable(self.path)} is being written by another process{self._holder()}; wait for it, "
                "or name another --output"
            ) from None
        except OSError as error:
            raise OutputError(
                f"{printable(self.path)} lies on a file system without locks ({error.strerror or error}); "
                "name another --output"
            ) from error
        holder = {"process": os.getpid(), "host": socket.gethostname(), "run": self.run_id}
        os.ftruncate(self._lock_fd, 0)
        os.pwrite(self._lock_fd, json.dumps(holder).encode(), 0)

    def _holder(self) -> str:
        try:
            holder = json.loads(os.pread(self._lock_fd, 4096, 0))
            return f" ({int(holder['process'])} on {printable(str(holder['host']))})"
        except (OSError, ValueError, KeyError, TypeError):
            return ""


def staged_name(output_name: str) -> str:
    """What an output is called in its attempt's folder: short, whatever the source is called."""
    return "result" + Path(output_name).suffix
