"""Cuts a stream of bytes into the JPEG pictures it holds."""

from __future__ import annotations

__all__ = ["JpegSplitter"]

_START = b"\xff\xd8"
_FILL, _START_CODE, _END_CODE, _SCAN_CODE = 0xFF, 0xD8, 0xD9, 0xDA
_WITHOUT_LENGTH = frozenset({0x01, *range(0xD0, 0xD8)})
_LARGEST_PICTURE_BYTES = 128 << 20


class JpegSplitter:
    """Follows the markers of JPEG instead of looking for the end marker alone, because an embedded thumbnail
    has an end marker too.

    Counts go to the attributes ``garbage`` (stretches of bytes between pictures) and ``truncated`` (pictures
    that another one, or the end, cut off).
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0  # parsed up to here; 0 outside of a picture
        self._in_scan = False
        self._in_garbage = False
        self.garbage = 0
        self.truncated = 0

    def feed(self, data: bytes) -> list[bytes]:
        """Take more bytes; the pictures that are whole now."""
        self._buffer += data
        pictures = []
        while self._find_start():
            end = self._find_end()
            if end is None:
                break
            if end > 0:
                pictures.append(bytes(self._buffer[:end]))
            self._drop(end)
        return pictures

    def finish(self) -> None:
        """No more bytes come: what is left is counted."""
        if self._position or self._buffer.startswith(_START):
            self.truncated += 1
        elif self._buffer and not self._in_garbage:
            self.garbage += 1
        self._drop(len(self._buffer))

    def _find_start(self) -> bool:
        """Have the buffer begin with a picture; False if more bytes are needed for that."""
        if self._position:
            return True
        start = self._buffer.find(_START)
        if start < 0:
            # The last byte may be the first half of a start marker.
            keep = 1 if self._buffer.endswith(b"\xff") else 0
            start = len(self._buffer) - keep
            self._count_garbage(start)
            del self._buffer[:start]
            return False
        self._count_garbage(start)
        del self._buffer[:start]
        self._in_garbage = False
        self._position = len(_START)
        self._in_scan = False
        return True

    def _count_garbage(self, size: int) -> None:
        # Some writers put a line break or zeros between pictures.
        if size and self._buffer[:size].strip(b"\r\n\0") and not self._in_garbage:
            self._in_garbage = True
            self.garbage += 1

    def _find_end(self) -> int | None:
        """One past the end marker; 0 where the picture is cut off and nothing of it is left, None if more
        bytes are needed."""
        while True:
            if len(self._buffer) > _LARGEST_PICTURE_BYTES:
                return self._cut_off(len(self._buffer))
            marker = self._buffer.find(b"\xff", self._position) if self._in_scan else self._position
            if marker < 0:
                self._position = len(self._buffer)
                return None
            if marker + 1 >= len(self._buffer):
                self._position = marker
                return None
            code = self._buffer[marker + 1]
            if self._in_scan and code in (0x00, *_WITHOUT_LENGTH):
                self._position = marker + 2
            elif self._buffer[marker] != _FILL:
                return self._cut_off(marker)
            elif code == _FILL:
                self._position = marker + 1
            elif code == _END_CODE:
                return marker + 2
            elif code == _START_CODE:
                return self._cut_off(marker)
            elif code in _WITHOUT_LENGTH:
                self._position = marker + 2
            elif not self._skip_segment(marker, code):
                return None

    def _skip_segment(self, marker: int, code: int) -> bool:
        """Go behind a segment with a length; False if it is not there as a whole."""
        if marker + 4 > len(self._buffer):
            self._position = marker
            return False
        end = marker + 2 + max(2, int.from_bytes(self._buffer[marker + 2 : marker + 4], "big"))
        if end > len(self._buffer):
            self._position = marker
            return False
        self._position = end
        self._in_scan = code == _SCAN_CODE
        return True

    def _cut_off(self, size: int) -> int:
        """The picture ends without an end marker: count it and take it out of the buffer."""
        self.truncated += 1
        self._drop(size)
        return 0

    def _drop(self, size: int) -> None:
        del self._buffer[:size]
        self._position = 0
        self._in_scan = False
