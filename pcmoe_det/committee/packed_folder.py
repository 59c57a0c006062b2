"""Writing a folder whole or not at all, whatever happens to the process or the machine.

The folder is filled beside its target under the name ``<target>.part``, synchronised with the disk, and
then takes the target's name in one step. A ``.part`` left by a killed process is replaced by the next one.
"""

from __future__ import annotations

import ctypes
import errno
import fcntl
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pcmoe_det.errors import OutputError

__all__ = ["check_output_folder", "sync_file", "whole_folder"]

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2
_OF_THE_PATH = (errno.ENAMETOOLONG, errno.ELOOP, errno.ENOTDIR, errno.EACCES, errno.EROFS)
_log = logging.getLogger(__name__)


def check_output_folder(path: Path, *, overwrite: bool, own_files: Sequence[str]) -> None:
    """Refuse a target that cannot be written.

    Args:
        path: The folder to be made.
        overwrite: Whether an existing one may be replaced.
        own_files: Names of the files that such a folder has; a folder with anything else in it is
            never replaced.

    Raises:
        OutputError: Says what is in the way.
    """
    with _translated(path):
        _check_output_folder(path, overwrite=overwrite, own_files=own_files)


def _check_output_folder(path: Path, *, overwrite: bool, own_files: Sequence[str]) -> None:
    parent = path.parent
    if path.name in ("", "..") or path.name.endswith((".part", ".old")):
        raise OutputError(f"cannot write a packed model to {path}; name a new folder (not .part or .old)")
    if not parent.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {parent}; create it first")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {parent} is not writable; choose another")
    if not path.exists() and not path.is_symlink():
        return
    if not overwrite:
        raise OutputError(f"{path} already exists; use --overwrite to replace it")
    if path.is_symlink() or not path.is_dir():
        raise OutputError(f"{path} is not a folder of its own; remove it, or name another")
    foreign = sorted(entry.name for entry in path.iterdir() if entry.name not in own_files)
    if foreign:
        raise OutputError(f"{path} holds {foreign[0]!r}, so it is no packed model; name another folder")


def sync_file(path: Path) -> None:
    """Return when the file (or the entries of the folder) is on the disk. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def whole_folder(target: Path) -> Iterator[Path]:
    """A fresh folder to fill; at the end of the block it takes the name ``target``.

    An existing target is replaced: check it first. After an error in the block nothing is left.

    Raises:
        OutputError: The folder cannot be made or renamed, or another process is filling it.
    """
    part = target.with_name(target.name + ".part")
    old = target.with_name(target.name + ".old")
    with _translated(target):
        _recover(target, old)
        descriptor = _claim(part)
    try:
        with _translated(target):
            _empty(part)
        try:
            yield part
            with _translated(target):
                sync_file(part)
                _publish(part, target, old)
        except BaseException:
            shutil.rmtree(part, ignore_errors=True)
            raise
        with _translated(target):
            sync_file(target.parent)
        for leftover in (part, old):  # what the new folder replaced
            shutil.rmtree(leftover, ignore_errors=True)
    finally:
        os.close(descriptor)


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        step = "; name another folder" if error.errno in _OF_THE_PATH else ""
        raise OutputError(f"cannot write {target}: {error.strerror or error}{step}") from error


def _claim(part: Path) -> int:
    """Make ``part`` and lock it: the lock ends with the process, however it ends. Returns a descriptor."""
    while True:
        part.mkdir(exist_ok=True)
        descriptor = os.open(part, os.O_RDONLY | os.O_DIRECTORY)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # Its former owner may have given the folder its final name in the meantime.
            if part.exists() and os.path.samestat(part.stat(), os.fstat(descriptor)):
                return descriptor
        except BlockingIOError as error:
            os.close(descriptor)
            raise OutputError(
                f"{part} is being written by another process; wait for it, or name another folder"
            ) from error
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)


def _empty(folder: Path) -> None:
    for entry in folder.iterdir():
        if entry.is_dir() and not entry.is_symlink():
            shutil.rmtree(entry)
        else:
            entry.unlink()


def _recover(target: Path, old: Path) -> None:
    """Undo a replacement that was cut between its two renames."""
    if old.is_dir() and not target.exists():
        _log.warning("%s is back: replacing it was cut short", target)
        old.rename(target)


def _publish(part: Path, target: Path, old: Path) -> None:
    if not target.exists():
        part.rename(target)
        return
    exchange = _exchange()
    if exchange is not None and exchange(part, target):
        return  # the replaced folder now lies in ``part``
    shutil.rmtree(old, ignore_errors=True)
    target.rename(old)
    part.rename(target)


def _exchange() -> Callable[[Path, Path], bool] | None:
    """Swaps the names of two folders in one step; None where the C library cannot (not Linux)."""
    try:
        renameat2 = ctypes.CDLL(None, use_errno=True).renameat2
    except (OSError, AttributeError):
        return None
    renameat2.argtypes = [ctypes.c_int, ctypes.c_char_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_uint]

    def exchange(first: Path, second: Path) -> bool:
        done = renameat2(_AT_FDCWD, os.fsencode(first), _AT_FDCWD, os.fsencode(second), _RENAME_EXCHANGE)
        return bool(done == 0)

    return exchange
