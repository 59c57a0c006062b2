"""Index of an uncompressed tar archive: where each regular member's bytes lie.

Tar has no table of contents, so every header is visited once; a header of a plain file is decoded here
because ``tarfile`` needs several times as long per member, and SHIFT's archives have 150,000.
Formats: ustar, GNU long names and large sizes, pax paths and sizes (POSIX.1-2001).
"""

from __future__ import annotations

import os
from pathlib import Path

from pcmoe_det.errors import DataError

__all__ = ["index_tar"]

_BLOCK_BYTES = 512
_REGULAR = frozenset({b"0", b"\0", b"7"})
_COMPRESSED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"(\xb5": "zstd"}


def index_tar(path: Path, *, descriptor: int) -> dict[str, tuple[int, int]]:
    """Member name -> ``(offset, num_bytes)`` of its contents, in order; the last of a name wins.

    Args:
        path: For messages.
        descriptor: The open file.

    Raises:
        DataError: It is not a tar, is compressed, or is cut short.
    """
    try:
        return _index(path, descriptor, os.fstat(descriptor).st_size)
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error


def _index(path: Path, descriptor: int, file_bytes: int) -> dict[str, tuple[int, int]]:
    extents: dict[str, tuple[int, int]] = {}
    long_name: str | None = None
    long_size: int | None = None
    offset = 0
    while offset < file_bytes:
        header = os.pread(descriptor, _BLOCK_BYTES, offset)
        if not any(header):  # the closing blocks, of which some writers leave a part
            break
        _check_header(path, header, offset, len(extents))
        kind = header[156:157]
        size = _number(header[124:136])
        data_offset = offset + _BLOCK_BYTES
        if kind in _REGULAR:
            size = size if long_size is None else long_size
        if data_offset + size > file_bytes:
            name = long_name or _name(header)
            raise DataError(
                f"{path}: the archive is cut short within {name!r}, "
                f"after {len(extents)} whole members; copy it again"
            )
        if kind in _REGULAR:
            extents[long_name or _name(header)] = (data_offset, size)
            long_name = long_size = None
        elif kind == b"L":
            long_name = (
                os.pread(descriptor, size, data_offset).rstrip(b"\0").decode("utf-8", "surrogateescape")
            )
        elif kind == b"x":
            long_name, long_size = _pax(os.pread(descriptor, size, data_offset), long_name)
        elif kind not in (b"g", b"K"):  # folders and links hold no image
            long_name = long_size = None
        offset = data_offset + (size + _BLOCK_BYTES - 1) // _BLOCK_BYTES * _BLOCK_BYTES
    if not extents and file_bytes == 0:
        raise DataError(f"{path}: the archive is empty (0 bytes)")
    return extents


def _check_header(path: Path, header: bytes, offset: int, num_members: int) -> None:
    if len(header) < _BLOCK_BYTES:
        raise DataError(f"{path}: the archive is cut short after {num_members} whole members; copy it again")
    if offset == 0 and header[:2] in _COMPRESSED:
        raise DataError(
            f"{path}: is compressed with {_COMPRESSED[header[:2]]}, so members cannot be read by position; "
            "decompress it to a plain tar first"
        )
    # The checksum counts its own eight bytes as blanks.
    if sum(header) - sum(header[148:156]) + 8 * 0x20 != _number(header[148:156]):
        raise DataError(
            f"{path}: not a tar archive, or damaged: "
            f"no valid header at byte {offset}, after {num_members} members"
        )


def _name(header: bytes) -> str:
    name = header[:100].split(b"\0", 1)[0]
    if header[257:263] == b"ustar\0":  # GNU's older magic "ustar  " uses these bytes for times
        prefix = header[345:500].split(b"\0", 1)[0]
        if prefix:
            name = prefix + b"/" + name
    return name.decode("utf-8", "surrogateescape")


def _number(field: bytes) -> int:
    if field[0] & 0x80:  # GNU: big-endian binary for sizes of 8 GiB and more
        return int.from_bytes(bytes([field[0] & 0x7F]) + field[1:], "big")
    try:
        return int(field.split(b"\0", 1)[0].strip() or b"0", 8)
    except ValueError:
        return -1


def _pax(data: bytes, name: str | None) -> tuple[str | None, int | None]:
    """Path and size of a pax header: records of ``<length> <key>=<value>\\n``."""
    size: int | None = None
    while data:
        digits, _, rest = data.partition(b" ")
        if not digits.isdigit() or int(digits) < len(digits) + 3:
            break
        record = rest[: int(digits) - len(digits) - 2]
        key, _, value = record.partition(b"=")
        if key == b"path":
            name = value.decode("utf-8", "surrogateescape")
        elif key == b"size" and value.isdigit():
            size = int(value)
        data = data[int(digits) :]
    return name, size
