"""The outer structure of an MP4 file, read by hand."""

from __future__ import annotations

from pathlib import Path


def boxes(path: Path) -> list[str]:
    """Names of the top-level boxes (ISO/IEC 14496-12: 32 bits length, 4 letters) in their order."""
    content = path.read_bytes()
    names, position = [], 0
    while position + 8 <= len(content):
        length = int.from_bytes(content[position : position + 4], "big")
        assert length >= 8, "lengths of 64 bits do not occur in small files"
        names.append(content[position + 4 : position + 8].decode())
        position += length
    assert position == len(content), "the last box is cut off"
    return names
