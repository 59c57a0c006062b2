"""Finds and opens the files in which SHIFT's pictures lie."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from pcmoe_det.datasets.archive_stores import TarStore, ZipStore
from pcmoe_det.datasets.hdf5_store import Hdf5Store
from pcmoe_det.datasets.image_store import FolderStore, ImageStore
from pcmoe_det.errors import DataError

__all__ = [
    "FolderStore",
    "Hdf5Store",
    "ImageStore",
    "TarStore",
    "ZipStore",
    "find_image_store",
    "open_image_store",
    "shared_image_store",
]

_KINDS: dict[str, type[ImageStore]] = {
    ".zip": ZipStore,
    ".tar": TarStore,
    ".hdf5": Hdf5Store,
    ".h5": Hdf5Store,
}

# Decompressed variants first: for SHIFT's videos ``img.tar`` holds MP4 files and only the others have frames.
# HDF5 last of each kind, as it alone needs another package.
_STORE_NAMES = (
    "img_decompressed.zip",
    "img_decompressed.tar",
    "img_decompressed",
    "img_decompressed.hdf5",
    "img",
    "img.zip",
    "img.tar",
    "img.hdf5",
)


def open_image_store(path: str | Path) -> ImageStore:
    """Open a folder, ``.zip``, ``.tar`` or ``.hdf5`` of images.

    Raises:
        DataError: It is missing, damaged, or of another kind.
    """
    path = Path(path)
    if path.is_dir():
        return FolderStore(path)
    if not path.exists():
        raise DataError(f"{path}: there is no such image archive or folder")
    kind = _KINDS.get(path.suffix.lower())
    if kind is None:
        raise DataError(f"{path}: not an image archive; known are folders, {', '.join(_KINDS)}")
    return kind(path)


def find_image_store(folder: str | Path) -> Path:
    """Where the images of a view lie: an archive or folder beside the label file, or the view's folder.

    Decompressed variants win over ``img.*``. The view's folder serves when it has subfolders (one per video).

    Raises:
        DataError: There are no images.
    """
    folder = Path(folder)
    for name in _STORE_NAMES:
        if (folder / name).exists():
            return folder / name
    try:
        entries = sorted(os.scandir(folder), key=lambda entry: entry.name)
    except OSError as error:
        raise DataError(f"{folder}: the folder of the view cannot be read: {error.strerror}") from error
    if any(entry.is_dir() for entry in entries):
        return folder
    raise DataError(
        f"{folder}: no images: expected one of {', '.join(_STORE_NAMES)}, or a folder per video; "
        f"found {', '.join(entry.name for entry in entries[:8]) or 'nothing'}"
    )


_shared_stores: dict[tuple[str, int, int, int], ImageStore] = {}


def shared_image_store(path: str | Path) -> ImageStore:
    """The process's one store for a path, indexed at most once while the file stays as it is.

    Processes that are forked later inherit the index. Without a lock on purpose, since a lock held during a
    fork stays locked in the child: two threads that meet here index the file twice, which does no harm.

    Raises:
        DataError: As ``open_image_store``.
    """
    try:
        status = Path(path).stat()
    except OSError as error:
        raise DataError(f"{path}: there is no such image archive or folder ({error.strerror})") from error
    # A folder's own time stamp says nothing about the images below it, and a folder has no index to renew.
    version = (0, 0) if stat.S_ISDIR(status.st_mode) else (status.st_size, status.st_mtime_ns)
    key = (str(path), status.st_ino, *version)
    store = _shared_stores.get(key)
    if store is None:
        for outdated in [other for other in _shared_stores if other[0] == key[0]]:
            _shared_stores.pop(outdated, None)
        store = _shared_stores.setdefault(key, open_image_store(path))
    return store
