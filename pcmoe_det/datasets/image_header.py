"""Image sizes from the first bytes of a file, and whether a JPEG is whole; nothing is decoded."""

from __future__ import annotations

import struct

__all__ = ["image_size_from_header", "is_jpeg_cut_short"]

_JPEG_START = b"\xff\xd8"
_JPEG_END = b"\xff\xd9"
_PNG_START = b"\x89PNG\r\n\x1a\n"
# ITU-T T.81 table B.1: frame headers are C0-CF without DHT (C4), JPG (C8) and DAC (CC).
_FRAME_HEADERS = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}
_START_OF_SCAN = 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD9)})


def image_size_from_header(data: bytes) -> tuple[int, int] | None:
    """``(width, height)`` in pixels as a JPEG or PNG stores them, or None if it is neither or damaged."""
    if data.startswith(_PNG_START):
        if len(data) < 24:
            return None
        width, height = struct.unpack_from(">II", data, 16)
        return (width, height) if width and height else None
    return _walk_jpeg(data)[0]


def is_jpeg_cut_short(data: bytes) -> bool:
    """Whether ``data`` begins as a JPEG but has no end marker after its picture data.

    libjpeg fills what is missing with grey and only warns, so a decoder alone does not notice. Within
    entropy-coded data the end marker cannot occur (T.81 F.1.2.3 stuffs a zero after FF).
    """
    if not data.startswith(_JPEG_START):
        return False
    scan_offset = _walk_jpeg(data)[1]
    return scan_offset is None or data.rfind(_JPEG_END, scan_offset) < 0


def _walk_jpeg(data: bytes) -> tuple[tuple[int, int] | None, int | None]:
    """Size and offset of the first scan, each None where the segments end before it."""
    size: tuple[int, int] | None = None
    if not data.startswith(_JPEG_START):
        return None, None
    at = 2
    while at + 4 <= len(data):
        if data[at] != 0xFF:
            return size, None
        marker = data[at + 1]
        if marker == 0xFF:  # fill byte
            at += 1
            continue
        if marker in _WITHOUT_LENGTH:
            at += 2
            continue
        if marker == _START_OF_SCAN:
            return size, at
        if marker in _FRAME_HEADERS and at + 9 <= len(data):
            height, width = struct.unpack_from(">HH", data, at + 5)
            size = (width, height) if width and height else None
        at += 2 + struct.unpack_from(">H", data, at + 2)[0]
    return size, None
