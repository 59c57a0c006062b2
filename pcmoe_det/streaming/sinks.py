"""What takes the results of a stream: the protocol that all outputs share."""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.structures import FrameResult

__all__ = ["ResultSink", "SinkOutcome"]

SinkOutcome = Literal["complete", "interrupted", "failed"]
"""How a stream ended: the source's end was reached (or the frames asked for), somebody asked it to stop,
or a stage failed."""


class ResultSink(Protocol):
    """One output of one stream. Used by the renderer thread only."""

    @property
    def stage(self) -> str:
        """Name under which the time of ``write`` is reported, such as ``encode``."""
        ...

    @property
    def needs_picture(self) -> bool:
        """Whether ``write`` wants the frame with its boxes drawn."""
        ...

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:
        """Take one result, in the order of frames.

        Args:
            result: Its ``latency_ms`` holds every stage up to this sink.
            picture: ``[height, width, 3]`` uint8 BGR with boxes, of the frame's size; None if no sink of the
                stream needs it. Not to be written to; it may be kept.

        Raises:
            OutputError: The output cannot be written.
        """
        ...

    def close(self, outcome: SinkOutcome) -> list[Path]:
        """Finish. Called exactly once, whatever happened before.

        Returns:
            The files that are there now: final names, or after a failure the names of partial files.

        Raises:
            OutputError: The output cannot be finished.
        """
        ...
