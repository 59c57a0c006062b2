"""Still pictures as a source: one file, the pictures of a folder, or those that a pattern matches."""

from __future__ import annotations

import glob
import logging
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from fractions import Fraction
from pathlib import Path
from time import monotonic

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming.faults import FaultCounter
from pcmoe_det.streaming.sources import printable_path
from pcmoe_det.streaming.still_pictures import PICTURE_SUFFIXES, read_still_picture
from pcmoe_det.structures import Frame

__all__ = ["ImageSource", "find_pictures", "natural_key"]

_log = logging.getLogger(__name__)

# Beyond these, one line at the end has to do.
_LOGGED_PICTURES = 5


class ImageSource:
    """Pictures in natural order of their names (``2.png`` before ``10.png``), every one.

    They have no time: ``pts_seconds`` is None. A picture that cannot be read is skipped, counted as
    ``unreadable`` and named in the log; its ``frame_index`` stays unused, so that an index always names the
    same file of the list ``paths``.

    Args:
        location: A picture, a folder (not those inside it), or a pattern such as ``street/*.jpg``.
        clock: Seconds; for ``captured_at_seconds``.

    Raises:
        SourceError: Nothing there, no pictures there, or none that can be read.
    """

    is_live = False
    frame_rate: Fraction | None = None
    time_base: Fraction | None = None
    seconds_lost = 0.0

    def __init__(self, location: str | Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._location = str(location)
        self._source_id = printable_path(location)
        self._clock = clock
        self._faults = FaultCounter()
        self._interrupted = False
        self._first_reason = ""
        self.paths = find_pictures(self._location)
        """The pictures; ``frame_index`` counts them."""
        self._frames = self._read()
        self._first = next(self._frames, None)
        if self._first is None:
            raise SourceError(
                f"none of the {len(self.paths)} pictures of {self._location} can be read; "
                f"{self.paths[0].name}: {self._first_reason}"
                if len(self.paths) > 1
                else f"{self.paths[0]} cannot be read as a picture: {self._first_reason}"
            )

    @property
    def source_id(self) -> str:
        return self._source_id

    @property
    def frame_count(self) -> int | None:
        return len(self.paths)

    @property
    def faults(self) -> Mapping[str, int]:
        """Counts: ``unreadable`` pictures."""
        return self._faults.as_dict()

    def __iter__(self) -> Iterator[Frame]:
        while not self._interrupted:
            is_first = self._first is not None
            frame = self._first or next(self._frames, None)
            if frame is None:
                break
            self._first = None
            # Read when it was opened: only now it is on its way.
            yield replace(frame, captured_at_seconds=self._clock()) if is_first else frame
        unreadable = self._faults.as_dict().get("unreadable", 0)
        if unreadable > _LOGGED_PICTURES:
            _log.warning("%s: %d pictures in all cannot be read", self._location, unreadable)

    def interrupt(self) -> None:
        self._interrupted = True

    def close(self) -> None:
        self._first = None

    def _read(self) -> Iterator[Frame]:
        for index, path in enumerate(self.paths):
            if self._interrupted:
                return
            try:
                image = read_still_picture(path)
            except SourceError as error:
                self._first_reason = self._first_reason or str(error)
                self._faults.add("unreadable")
                if self._faults.as_dict()["unreadable"] <= _LOGGED_PICTURES:
                    _log.warning("%s cannot be read and is skipped: %s", path, error)
                continue
            yield Frame(
                image=image,
                source_id=self._source_id,
                frame_index=index,
                pts_seconds=None,
                captured_at_seconds=self._clock(),
            )


def find_pictures(location: str) -> list[Path]:
    """The pictures that a file name, a folder or a pattern stands for, in natural order.

    In a folder and among the matches, what counts is a suffix of ``PICTURE_SUFFIXES`` and no leading dot.

    Raises:
        SourceError: There are none.
    """
    path = Path(location)
    try:
        if path.is_dir():
            found = list(path.iterdir())
            nothing = f"the folder {location} holds no pictures"
        elif path.exists():
            return [path]
        else:
            found = [Path(name) for name in glob.iglob(location, recursive=True)]  # noqa: PTH207 (a pattern may be absolute)
            nothing = f"nothing matches {location}" if not found else f"no picture matches {location}"
        pictures = [
            name
            for name in found
            if name.suffix.lower() in PICTURE_SUFFIXES and not name.name.startswith(".") and name.is_file()
        ]
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise SourceError(f"the source {location!r} cannot be read: {error}") from error
    if not pictures:
        raise SourceError(f"{nothing} ({' '.join(PICTURE_SUFFIXES)}); give each video file by its own name")
    return sorted(pictures, key=lambda name: natural_key(str(name)))


def natural_key(name: str) -> tuple[tuple[int, int, str], ...]:
    """Sorts runs of digits as numbers and the rest as text, without regard to case."""
    parts = re.split(r"(\d+)", name)
    key = [(0, int(part), part) if part.isdecimal() else (1, 0, part.casefold()) for part in parts if part]
    return (*key, (1, 0, name))
