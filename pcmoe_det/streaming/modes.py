"""Which frames of a source are detected: every one, or the freshest."""

from __future__ import annotations

from typing import Literal

from pcmoe_det.streaming.queues import QueuePolicy

__all__ = ["STREAM_MODES", "StreamMode", "choose_policy"]

StreamMode = Literal["every-frame", "freshest", "auto"]
STREAM_MODES: tuple[StreamMode, ...] = ("auto", "every-frame", "freshest")
"""``every-frame`` makes the reader wait for the detector, so nothing is lost and a live source lags;
``freshest`` drops, and counts, what the detector has no time for; ``auto`` is ``freshest`` for live sources
and ``every-frame`` for files."""


def choose_policy(mode: StreamMode | None, *, is_live: bool) -> QueuePolicy:
    """The policy of the queue before the detector; None is ``auto``.

    Raises:
        ValueError: There is no such mode.
    """
    if mode is not None and mode not in STREAM_MODES:
        raise ValueError(f"a stream's mode is one of {', '.join(STREAM_MODES)}, not {mode!r}")
    if mode is None or mode == "auto":
        return QueuePolicy.FRESHEST if is_live else QueuePolicy.EVERY_FRAME
    return QueuePolicy(mode)
