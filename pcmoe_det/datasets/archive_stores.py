"""Zip and tar archives as image stores.

Members are read with ``os.pread``, which shares no file offset: one descriptor serves all threads and
forked workers without locks.
"""

from __future__ import annotations

import os
import zipfile
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import numpy as np

from pcmoe_det.datasets.image_store import ImageStore
from pcmoe_det.datasets.tar_index import index_tar
from pcmoe_det.errors import DataError

__all__ = ["TarStore", "ZipStore"]

# Local header (APPNOTE 4.3.7): 30 fixed bytes; the last four are the lengths of name and extra field.
_LOCAL_HEADER_BYTES = 30
_LOCAL_HEADER_START = b"PK\x03\x04"


class _ArchiveStore(ImageStore):
    """A store in one file, read by position."""

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            self._descriptor = os.open(path, os.O_RDONLY)
        except OSError as error:
            raise DataError(f"{path}: cannot be opened: {error.strerror}") from error

    def close(self) -> None:
        descriptor, self._descriptor = self._descriptor, -1
        if descriptor >= 0:
            os.close(descriptor)

    def __del__(self) -> None:
        with suppress(AttributeError, OSError):
            self.close()

    def _read_at(self, member: str, offset: int, num_bytes: int) -> bytes:
        try:
            data = os.pread(self._descriptor, num_bytes, offset)
            while len(data) < num_bytes:  # Linux returns at most 2 GiB at once, a signal may shorten a read
                more = os.pread(self._descriptor, num_bytes - len(data), offset + len(data))
                if not more:
                    raise self._damaged(member, "the archive ends within it")
                data += more
        except OSError as error:
            raise DataError(f"{self.locate(member)}: cannot be read: {error.strerror}") from error
        return data

    def _damaged(self, member: str, reason: str) -> DataError:
        return DataError(f"{self.locate(member)}: the archive is damaged here ({reason}); copy it again")


class ZipStore(_ArchiveStore):
    """``img.zip``: stored or deflated members, checked against their CRC-32.

    Raises:
        DataError: It cannot be opened or is no whole zip archive.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        try:
            with (
                open(self._descriptor, "rb", closefd=False) as file,
                zipfile.ZipFile(file) as archive,
            ):
                entries = [entry for entry in archive.infolist() if not entry.is_dir()]
        except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
            raise DataError(
                f"{path}: not a readable zip archive ({error}); it may have been cut short: copy it again"
            ) from error
        self._rows = {_plain_member(entry.filename): row for row, entry in enumerate(entries)}
        # One table instead of 150,000 records: small, and not copied page by page in forked workers.
        self._table = np.array(
            [
                (
                    entry.header_offset,
                    entry.compress_size,
                    entry.file_size,
                    entry.CRC,
                    entry.compress_type,
                    entry.flag_bits,
                )
                for entry in entries
            ],
            dtype=np.int64,
        ).reshape(-1, 6)

    def __contains__(self, member: str) -> bool:
        return member in self._rows

    def members(self) -> Iterator[str]:
        return iter(self._rows)

    def read(self, member: str) -> bytes:
        row = self._rows.get(member)
        if row is None:
            raise self.no_such_member(member)
        offset, packed_bytes, file_bytes, crc, method, flags = self._table[row].tolist()
        if flags & 1 or method not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED):
            raise DataError(
                f"{self.locate(member)}: encrypted or packed with method {method}; "
                "repack the archive with stored or deflated members"
            )
        header = self._read_at(member, offset, _LOCAL_HEADER_BYTES)
        if not header.startswith(_LOCAL_HEADER_START):
            raise self._damaged(member, "there is no member where the index says")
        skip = int.from_bytes(header[26:28], "little") + int.from_bytes(header[28:30], "little")
        data = self._read_at(member, offset + _LOCAL_HEADER_BYTES + skip, packed_bytes)
        if method == zipfile.ZIP_DEFLATED:
            try:
                data = zlib.decompressobj(-zlib.MAX_WBITS).decompress(data, file_bytes + 1)
            except zlib.error as error:
                raise self._damaged(member, str(error)) from error
        if len(data) != file_bytes or zlib.crc32(data) != crc:
            raise self._damaged(member, "its checksum does not fit")
        return data


class TarStore(_ArchiveStore):
    """``img.tar``: an uncompressed tar, read without extracting it.

    Raises:
        DataError: It cannot be opened, is no tar, is compressed or cut short.
    """

    def __init__(self, path: Path) -> None:
        super().__init__(path)
        extents = index_tar(path, descriptor=self._descriptor)
        self._extents = {_plain_member(name): extent for name, extent in extents.items()}

    def __contains__(self, member: str) -> bool:
        return member in self._extents

    def members(self) -> Iterator[str]:
        return iter(self._extents)

    def read(self, member: str) -> bytes:
        extent = self._extents.get(member)
        if extent is None:
            raise self.no_such_member(member)
        return self._read_at(member, *extent)


def _plain_member(name: str) -> str:
    """Archives made with ``tar -C img .`` begin every name with ``./``."""
    return name.removeprefix("./")
