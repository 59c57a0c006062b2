"""Room on disk for weights that are packed for one run, given back however the run ends."""

from __future__ import annotations

import fcntl
import logging
import os
import shutil
import tempfile
from pathlib import Path

__all__ = ["TemporaryPack"]

# Hidden and long: nobody else's folder, least of all a packed model that is meant to stay, has such a name.
_PREFIX = ".pcmoe_det-temporary-pack-"
_log = logging.getLogger(__name__)


class TemporaryPack:
    """A folder for a packed model that only this process uses; a context manager.

    ``remove`` it as soon as the model is open: the open files keep their content, and a process that is
    killed from then on leaves nothing. What one killed before that has left is removed by the next: the
    folder is locked, and the system ends the lock with the process.

    Attributes:
        path: The folder, empty.

    Raises:
        OSError: No folder can be made.
    """

    def __init__(self) -> None:
        _remove_abandoned(Path(tempfile.gettempdir()))
        self.path, self._lock = _make_locked()

    def remove(self) -> None:
        """Take the files off the disk. May be called twice."""
        # A network file system may refuse to remove open files; ``__exit__`` tries again.
        shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> TemporaryPack:
        return self

    def __exit__(self, *error: object) -> None:
        self.remove()
        if self._lock is not None:
            os.close(self._lock)


def _make_locked() -> tuple[Path, int | None]:
    """A fresh folder, and what holds its lock (None on a file system without locks)."""
    while True:
        path = Path(tempfile.mkdtemp(prefix=_PREFIX))
        try:
            return path, _lock(path)
        except (BlockingIOError, FileNotFoundError):
            continue  # another process took it for abandoned before it was locked, and removes it
        except OSError:
            return path, None


def _lock(path: Path) -> int:
    """A descriptor of the folder with the lock on it.

    Raises:
        OSError: It is no folder of ours, or another process has the lock.
    """
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        if os.fstat(descriptor).st_uid != os.geteuid():
            raise PermissionError(f"{path} is somebody else's")
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if not os.path.samestat(path.stat(), os.fstat(descriptor)):
            raise FileNotFoundError(f"{path} was replaced")
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _remove_abandoned(parent: Path) -> None:
    """Remove the folders of processes that are gone; never fails."""
    try:
        found = sorted(parent.glob(f"{_PREFIX}*"))
    except OSError:
        return
    for path in found:
        try:
            lock = _lock(path)
        except OSError:
            continue
        _log.info("removing %s, which a killed run has left", path)
        shutil.rmtree(path, ignore_errors=True)
        os.close(lock)
