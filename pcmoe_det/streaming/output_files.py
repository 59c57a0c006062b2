"""Files that appear under their name only when they are whole."""

from __future__ import annotations

import contextlib
from pathlib import Path

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming.sinks import SinkOutcome

__all__ = ["OutputFile"]


class OutputFile:
    """A target name and the temporary name beside it, ``<stem>.part<suffix>``.

    What becomes of the temporary file:

    * the stream ended, or somebody interrupted it: it gets the final name (an interrupted file is sound,
      only shorter, and the exit code tells);
    * a stage failed: it keeps the temporary name, so that nobody takes it for the whole and an older
      result under the final name stays; the message says where it is. The next run replaces it.

    Everything that can be found out before the first frame is checked here.

    Args:
        path: The final name.
        overwrite: Whether an existing file of that name may be replaced.
        source: The file being read, if it is one; refused as a target.

    Raises:
        OutputError: The file exists (without ``overwrite``), is no regular file, is the source, or its
            folder is missing or cannot be written to.
    """

    def __init__(self, path: str | Path, *, overwrite: bool, source: str | Path | None = None) -> None:
        self.path = Path(path)
        self.partial_path = self.path.with_name(f"{self.path.stem}.part{self.path.suffix}")
        self._overwrite = overwrite
        try:
            self._check(source)
        except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
            raise OutputError(f"{self.path} cannot be written: {error}") from error

    def finish(self, outcome: SinkOutcome) -> Path | None:
        """Give the closed temporary file the name that ``outcome`` deserves.

        Returns:
            Where the file is now, or None if nothing was written.

        Raises:
            OutputError: It cannot be renamed; the message says where the data is.
        """
        if not self.partial_path.exists():
            return None
        if outcome == "failed":
            return self.partial_path
        if self.path.exists() and not self._overwrite:
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
        """Remove the temporary file, if any."""
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
        if self.path.exists() and not self._overwrite:
            raise OutputError(f"{self.path} already exists; use --overwrite to replace it")
        # Permission bits do not tell (root, read-only mounts, network folders): try it. A leftover of an
        # earlier run stays until there is something to replace it with.
        existed = self.partial_path.exists()
        try:
            with self.partial_path.open("ab"):
                pass
        except OSError as error:
            raise OutputError(
                f"the folder {folder} cannot be written to: {error.strerror or error}"
            ) from error
        if not existed:
            self.partial_path.unlink()
