"""What a stream reads from: the protocol that files, cameras and, later, network streams share."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from fractions import Fraction
from typing import Protocol

from pcmoe_det.structures import Frame

__all__ = ["FrameSource"]


class FrameSource(Protocol):
    """An open source of frames.

    A source is opened by its constructor, which raises ``SourceError`` for what can be found out before
    a model is loaded. One thread iterates, once; ``interrupt`` may be called from any thread; ``close``
    is called after the iterating thread has ended, or by it.
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
        """What went wrong in reading without ending the stream, by cause."""
        ...

    def __iter__(self) -> Iterator[Frame]:
        """Frames in order until the end. Raises ``SourceError`` where reading cannot go on."""
        ...

    def interrupt(self) -> None:
        """Make the iteration end soon, also from another thread. Does not wait."""
        ...

    def close(self) -> None:
        """Give back what the source holds. Safe to call again."""
        ...
