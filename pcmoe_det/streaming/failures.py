"""Which failures a stream survives, and how they are told without filling a log."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

from pcmoe_det.errors import PcmoeError

__all__ = ["FailureStreak", "StageError", "as_stage_error", "named"]

_log = logging.getLogger(__name__)

_QUIET_SECONDS = 10.0


class StageError(PcmoeError):
    """A stage of a stream failed for a reason that is nobody's input: the cause is attached."""


def named(error: BaseException) -> str:
    """Class and message of an error."""
    return f"{type(error).__name__}: {error}" if str(error) else type(error).__name__


def as_stage_error(what: str, error: BaseException) -> PcmoeError:
    """``error`` itself if it is made for users, else a ``StageError`` that says ``what`` failed."""
    if isinstance(error, PcmoeError):
        return error
    wrapped = StageError(f"{what}: {named(error)}")
    wrapped.__cause__ = error
    return wrapped


class FailureStreak:
    """Counts failures in a row and says when there are too many. Used by one thread.

    A live stream loses a frame rather than the stream: one picture that a detector or an output cannot take
    says nothing about the next. A file is a job with a result, so its first failure is one too many.
    Warnings come at most every ten seconds, with how many were left out.

    Args:
        limit: This many failures in a row are too many; 1 allows none.
        clock: Seconds, monotonic.
    """

    def __init__(self, limit: int, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._in_a_row = 0
        self._quiet_until_seconds = float("-inf")
        self._left_out = 0

    def failed(self, error: PcmoeError) -> None:
        """Count one failure.

        Raises:
            PcmoeError: ``error``, if it is one too many.
        """
        self._in_a_row += 1
        if self._in_a_row >= self._limit:
            raise error if self._limit == 1 else StageError(f"{error} ({self._in_a_row} times in a row)")
        now_seconds = self._clock()
        if now_seconds < self._quiet_until_seconds:
            self._left_out += 1
            return
        more = f" ({self._left_out} more of these since the last warning)" if self._left_out else ""
        _log.warning("a frame is lost: %s%s", error, more)
        self._left_out = 0
        self._quiet_until_seconds = now_seconds + _QUIET_SECONDS

    def succeeded(self) -> None:
        """The row of failures is over."""
        self._in_a_row = 0
