"""HDF5 files as image stores: a group per video, a byte array per image. Needs h5py, which is optional."""

from __future__ import annotations

import importlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from pcmoe_det.datasets.image_store import ImageStore
from pcmoe_det.errors import DataError

__all__ = ["Hdf5Store"]


class Hdf5Store(ImageStore):
    """``img_decompressed.hdf5``.

    h5py serialises the calls of threads by itself; a handle does not survive a fork, so every process
    opens its own.

    Raises:
        DataError: h5py cannot be imported, or the file is no whole HDF5 file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._h5py: Any = importlib.import_module("h5py")
        except ImportError as error:
            raise DataError(
                f"{path}: reading HDF5 needs the package h5py, which cannot be imported; "
                "install it (pip install h5py) or use the zip or tar variant of the images"
            ) from error
        self._file: Any = None
        self._process_id = -1
        self._opened()

    def close(self) -> None:
        file, self._file = self._file, None
        if file is not None and self._process_id == os.getpid():
            file.close()

    def __contains__(self, member: str) -> bool:
        return member in self._opened()

    def members(self) -> Iterator[str]:
        file = self._opened()
        for video in file:
            group = file[video]
            yield from (f"{video}/{name}" for name in group) if hasattr(group, "keys") else (video,)

    def read(self, member: str) -> bytes:
        file = self._opened()
        if member not in file:
            raise self.no_such_member(member)
        try:
            value = np.asarray(file[member][()])
        except (OSError, TypeError, ValueError, RuntimeError) as error:
            raise DataError(f"{self.locate(member)}: cannot be read from the HDF5 file: {error}") from error
        if value.dtype == object:  # some writers store an array of one variable-length array
            value = np.asarray(value.reshape(-1)[0], dtype=np.uint8)
        return value.tobytes()

    def _opened(self) -> Any:
        if self._process_id != os.getpid() or self._file is None:
            # A parent's handle is dropped, not closed: closing goes through HDF5 state that a fork broke.
            try:
                self._file = self._h5py.File(self.path, "r")
            except OSError as error:
                raise DataError(
                    f"{self.path}: not a readable HDF5 file ({error}); "
                    "it may have been cut short: copy it again"
                ) from error
            self._process_id = os.getpid()
        return self._file
