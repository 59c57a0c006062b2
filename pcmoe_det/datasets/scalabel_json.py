"""Walks a Scalabel file frame by frame, so that its frames never all lie in memory as dictionaries.

A full SHIFT split has a label file of several hundred megabytes; decoded in one piece it takes about ten
times that. Here one frame is decoded at a time and handed on. Knowing where it is, the walk can also say
in which frame a damaged file breaks off.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

from pcmoe_det.errors import DataError

__all__ = ["walk_frames"]

_BLANK = re.compile(r"[ \t\n\r]*")
_SEPARATOR = re.compile(r"[ \t\n\r]*([,\]}])[ \t\n\r]*")
_COLON = re.compile(r"[ \t\n\r]*:[ \t\n\r]*")
_DECODER = json.JSONDecoder()


def walk_frames(path: Path, consume_frame: Callable[[int, object], None]) -> dict[str, object]:
    """Hand each element of the top-level list ``frames`` to ``consume_frame(position, element)``, in order.

    A top-level list is taken as the list of frames itself, which Scalabel allows.

    Returns:
        The other members of the top-level object, such as ``config``.

    Raises:
        DataError: The file cannot be read, is not JSON, breaks off, or holds no list of frames.
    """
    try:
        text = path.read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise DataError(f"{path}: there is no such label file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path}: the label file cannot be read: {error}") from error
    return _Walk(path, text, consume_frame).run()


class _Walk:
    """One pass over the text of one file."""

    def __init__(self, path: Path, text: str, consume_frame: Callable[[int, object], None]) -> None:
        self._path = path
        self._text = text
        self._consume_frame = consume_frame
        self._frame_position: int | None = None

    def run(self) -> dict[str, object]:
        start = self._skip_blank(0)
        opening = self._text[start : start + 1]
        if opening == "[":
            self._check_end(self._walk_list(start + 1))
            return {}
        if opening != "{":
            raise DataError(
                f"{self._path}: not a Scalabel file: expected a JSON object with a list 'frames', "
                f"found {self._text[start : start + 20]!r}"
            )
        return self._walk_members(start + 1)

    def _walk_members(self, at: int) -> dict[str, object]:
        rest: dict[str, object] = {}
        saw_frames = False
        at = self._skip_blank(at)
        closed = self._text[at : at + 1] == "}"
        while not closed:
            key, at = self._decode(at)
            colon = _COLON.match(self._text, at)
            if colon is None or not isinstance(key, str):
                raise self._broken(at, "expected a quoted name and ':'")
            at = colon.end()
            if key == "frames":
                if self._text[at : at + 1] != "[":
                    raise DataError(f"{self._path}: not a Scalabel file: 'frames' is not a list")
                at = self._walk_list(at + 1)
                saw_frames = True
            else:
                rest[key], at = self._decode(at)
            at, closed = self._separator(at, "}")
        if not saw_frames:
            raise DataError(
                f"{self._path}: not a Scalabel file: it has no list 'frames' "
                f"(its members: {', '.join(sorted(rest)[:8]) or 'none'})"
            )
        self._check_end(at)
        return rest

    def _walk_list(self, at: int) -> int:
        """Hand on the elements that start at ``at``; return the place after the closing bracket."""
        at = self._skip_blank(at)
        if self._text[at : at + 1] == "]":
            return at + 1
        position, closed = 0, False
        while not closed:
            self._frame_position = position
            element, at = self._decode(at)
            self._consume_frame(position, element)
            at, closed = self._separator(at, "]")
            position += 1
        self._frame_position = None
        return at

    def _decode(self, at: int) -> tuple[object, int]:
        try:
            return _DECODER.raw_decode(self._text, at)
        except json.JSONDecodeError as error:
            raise self._broken(error.pos, error.msg) from error
        except (ValueError, RecursionError) as error:
            raise self._broken(at, str(error)) from error

    def _separator(self, at: int, closing: str) -> tuple[int, bool]:
        match = _SEPARATOR.match(self._text, at)
        if match is None or match.group(1) not in (",", closing):
            raise self._broken(self._skip_blank(at), f"expected ',' or '{closing}'")
        return match.end(), match.group(1) == closing

    def _check_end(self, at: int) -> None:
        if self._skip_blank(at) != len(self._text):
            raise self._broken(self._skip_blank(at), "expected the end of the file")

    def _skip_blank(self, at: int) -> int:
        match = _BLANK.match(self._text, at)
        return at if match is None else match.end()

    def _broken(self, at: int, reason: str) -> DataError:
        line = self._text.count("\n", 0, at) + 1
        column = at - self._text.rfind("\n", 0, at)
        where = "" if self._frame_position is None else f", in frame {self._frame_position} of the list"
        return DataError(
            f"{self._path}: not valid JSON at line {line} column {column}{where} ({reason}); "
            "the file may have been cut short: copy it again"
        )
