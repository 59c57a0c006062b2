"""What a stream reads from: the protocol that files, pictures, cameras and network streams share."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import Protocol

from pcmoe_det.errors import UsageError
from pcmoe_det.structures import Frame

__all__ = ["FrameSource", "SourceOptions", "printable_path"]


def printable_path(path: str | Path) -> str:
    """A path as text that every output can hold: bytes that are no UTF-8 are written as ``\\xff``."""
    return str(path).encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")


@dataclass(frozen=True, slots=True)
class SourceOptions:
    """How long a source may take, and what a live one does when it is lost. Files use the time-outs only.

    Attributes:
        open_timeout_seconds: Until a source answers; also each time it is opened again.
        read_timeout_seconds: Without a picture until a live source counts as lost.
        reconnect_limit: Attempts in a row to get a lost live source back; 0 never tries, None tries for ever.
        frozen_after_seconds: Showing the very same picture so long, a live source counts as frozen and is
            opened again; ``math.inf`` never.

    Raises:
        UsageError: A time that is not positive, or a negative limit.
    """

    open_timeout_seconds: float = 10.0
    read_timeout_seconds: float = 10.0
    reconnect_limit: int | None = None
    frozen_after_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name in ("open_timeout_seconds", "read_timeout_seconds", "frozen_after_seconds"):
            value = getattr(self, name)
            if not value > 0 or (math.isinf(value) and name != "frozen_after_seconds"):
                raise UsageError(f"{name} is {value}; give a number of seconds above 0")
        if self.reconnect_limit is not None and self.reconnect_limit < 0:
            raise UsageError(f"reconnect_limit is {self.reconnect_limit}; give 0 or more attempts")


class FrameSource(Protocol):
    """An open source of frames.

    A source is opened by its constructor, which raises ``SourceError`` for what can be found out before
    a model is loaded. One thread iterates, once; ``interrupt`` may be called from any thread; ``close``
    is called after the iterating thread has ended, or by it.

    A live source that is lost is opened again. What was lost is reported three times: the first frame
    after it carries ``gap`` (its ``captured_at_seconds`` is the end of the window, ``gap.seconds`` its
    length), ``faults["reconnects"]`` counts the losses that were overcome, and ``seconds_lost`` adds up the
    windows. Frames are never made up for it, and ``frame_index`` and ``pts_seconds`` go on.
    """

    @property
    def source_id(self) -> str:
        """Printable name, without credentials."""
        ...

    @property
    def is_live(self) -> bool:
        """Whether frames come at their own pace (camera) and not at ours (file)."""
        ...

    @property
    def frame_rate(self) -> Fraction | None:
        """Average frames per second as the source announces it, or None."""
        ...

    @property
    def frame_count(self) -> int | None:
        """Number of frames as the source announces it, or None. May be wrong for a damaged file."""
        ...

    @property
    def time_base(self) -> Fraction | None:
        """Unit of the source's time stamps in seconds, or None."""
        ...

    @property
    def faults(self) -> Mapping[str, int]:
        """What went wrong in reading without ending the stream, counted by cause. From any thread."""
        ...

    @property
    def seconds_lost(self) -> float:
        """Seconds in which a live source was lost, with a loss that lasts still; 0.0 for files. From any
        thread."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order until the end. Raises ``SourceError`` where reading cannot go on."""
        ...

    def interrupt(self) -> None:
        """Make the iteration end within a second, whatever it waits for. From any thread, does not wait."""
        ...

    def close(self) -> None:
        """Give back what the source holds. Safe to call again."""
        ...
