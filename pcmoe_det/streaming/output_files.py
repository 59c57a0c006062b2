"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
from io import FileIO
from pathlib import Path

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming.sinks import SinkOutcome

__all__ = ["OutputFile"]

# What is written as a trial before the model loads. A disk with less room than this is full.
_TRIAL_BYTES = 64 * 1024


class OutputFile:
    """A target name and the temporary name beside it, ``<stem>.part<suffix>``.

    What becomes of the temporary file:

    * the stream ended, or somebody interrupted it: it gets the final name (an interrupted file is sound,
      only shorter, and the exit code tells);
    * a stage failed: it keeps the temporary name, so that nobody takes it for the whole and an older
      result under the final name stays; the message says where it is.

    A temporary file that an earlier run left (it failed, or it was killed) may hold the only copy of hours
    of work: like an existing result it is replaced only with ``overwrite``, and only when the new run has
    something to write. It never counts as a result of this run.

    Everything that can be found out before the first frame is checked here, also that the disk has room.

    Args:
        path: The final name.
        overwrite: Whether existing files of these names may be replaced.
        source: The file being read, if it is one; refused as a target.

    Raises:
        OutputError: The file or a leftover exists (without ``overwrite``), is no regular file, is the source,
            its folder is missing or cannot be written to, or the disk is full.
    """

    def __init__(self, path: str | Path, *, overwrite: bool, source: str | Path | None = None) -> None:
        self.path = Path(path)
        self.partial_path = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        self.overwrite = overwrite
        self._created = False
        try:
            self._check(source)
            self._leftover = _identity(self.partial_path)
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise OutputError(f"{self.path} cannot be written: {error}") from error

    def create(self) -> FileIO:
        """Create the temporary file, or empty an earlier run's, for writing and reading, unbuffered.

        Raises:
            OutputError: It cannot be created, or another run has created it meanwhile.
        """
        mode = "w+" if self._leftover is not None else "x+"
        try:
            file = FileIO(self.partial_path, mode)
        except FileExistsError:
            raise OutputError(
                f"{self.partial_path} appeared while this was starting: another run writes the same output; "
                "give this one another name"
            ) from None
        except OSError as error:
            raise OutputError(f"{self.partial_path} cannot be written: {error.strerror or error}") from error
        self._created = True
        return file

    def finish(self, outcome: SinkOutcome) -> Path | None:
        """Give the closed temporary file the name that ``outcome`` deserves.

        Returns:
            Where the file is now, or None if nothing was written.

        Raises:
            OutputError: It cannot be renamed, or somebody has removed it; the message says where the data is.
        """
        identity = _identity(self.partial_path)
        if identity is None and self._created and outcome != "failed":
            raise OutputError(f"{self.partial_path} was removed or renamed while it was being written")
        if identity is None or identity == self._leftover:
            return None
        if outcome == "failed":
            return self.partial_path
        if self.path.exists() and not self.overwrite:
            raise OutputError(
                f"{self.path} appeared while this was running; the result is kept as {self.partial_path}"
            )
        try:
            self.partial_path.replace(self.path)
        except OSError as error:
            raise OutputError(
                f"{self.partial_path} holds the result but cannot be renamed to {self.path}: {error}"
            ) from error
        return self.path

    def discard(self) -> None:
        """Remove the temporary file of this run, if any; an earlier run's stays."""
        self._created = False
        if _identity(self.partial_path) != self._leftover:
            with contextlib.suppress(OSError):
                self.partial_path.unlink(missing_ok=True)

    def _check(self, source: str | Path | None) -> None:
        folder = self.path.parent
        if not folder.exists():
            raise OutputError(f"the folder {folder} for {self.path.name} does not exist; create it first")
        if not folder.is_dir():
            raise OutputError(f"{folder} is not a folder, so {self.path} cannot be written")
        if source is not None and self.path.exists() and Path(source).exists() and self.path.samefile(source):
            raise OutputError(f"the output {self.path} is the source itself; choose another name")
        for path in (self.path, self.partial_path):
            if path.exists() and not path.is_file():
                raise OutputError(f"{path} exists and is not a regular file; choose another name")
        if self.path.exists() and not self.overwrite:
            raise OutputError(f"{self.path} already exists; use --overwrite to replace it")
        if not self.overwrite and self.partial_path.exists() and self.partial_path.stat().st_size:
            raise OutputError(
                f"{self.partial_path} is what an earlier run that did not finish has left; rename it to keep "
                "it, or use --overwrite to replace it"
            )
        self._try_to_write(folder)

    def _try_to_write(self, folder: Path) -> None:
        """Permission bits do not tell (root, read-only mounts, network folders, quotas): try it."""
        existed = self.partial_path.exists()
        try:
            # A leftover stays as it is until there is something to replace it with.
            with self.partial_path.open("ab") as file:
                if not existed:
                    file.write(bytes(_TRIAL_BYTES))
        except OSError as error:
            raise OutputError(
                f"the folder {folder} cannot be written to: {error.strerror or error}"
            ) from error
        finally:
            if not existed:
                with contextlib.suppress(OSError):
                    self.partial_path.unlink()


def _identity(path: Path) -> tuple[int, int, int] | None:
    """Tells a file from what it was before something was written to it; None where there is none."""
    try:
        status = path.stat()
    except FileNotFoundError:
        return None
    return status.st_ino, status.st_mtime_ns, status.st_size
