"""How long to wait before a lost source is tried again."""

from __future__ import annotations

import random

__all__ = ["Backoff"]

_JITTER = 0.25


class Backoff:
    """Growing delays between attempts, with jitter, and a limit of attempts in a row.

    The jitter keeps many streams that lost one server from coming back all at once. An attempt that gave a
    picture starts the count of attempts anew; the delays start anew only after a connection that held for
    ``longest_seconds``, so that a source that comes and goes at once is not asked twice a second for ever.

    Args:
        limit: Attempts in a row; None for no limit.
        first_seconds: Before the first attempt.
        longest_seconds: No delay is longer, but for the jitter of a quarter.
        chance: For the jitter.
    """

    def __init__(
        self,
        limit: int | None = None,
        *,
        first_seconds: float = 0.5,
        longest_seconds: float = 10.0,
        chance: random.Random | None = None,
    ) -> None:
        self._limit = limit
        self._first_seconds = first_seconds
        self._longest_seconds = longest_seconds
        self._chance = chance or random.Random()
        self._attempts = 0
        self._doublings = 0

    @property
    def attempts(self) -> int:
        """Attempts since the last one that gave a picture."""
        return self._attempts

    def next_delay_seconds(self) -> float | None:
        """Seconds to wait before the next attempt, which is counted; None where the limit is reached."""
        if self._limit is not None and self._attempts >= self._limit:
            return None
        delay_seconds = min(self._longest_seconds, self._first_seconds * 2.0**self._doublings)
        self._attempts += 1
        self._doublings = min(self._doublings + 1, 30)
        return delay_seconds * self._chance.uniform(1 - _JITTER, 1 + _JITTER)

    def succeeded(self) -> None:
        """The last attempt gave a picture."""
        self._attempts = 0

    def lost(self, *, after_seconds: float) -> None:
        """A connection that gave pictures for ``after_seconds`` is lost."""
        if after_seconds >= self._longest_seconds:
            self._doublings = 0
