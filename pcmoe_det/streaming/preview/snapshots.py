"""Asking others for their state no more often than needed, and outliving their errors."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from typing import Generic, TypeVar

__all__ = ["CachedCall"]

_log = logging.getLogger(__name__)

_Value = TypeVar("_Value")


class CachedCall(Generic[_Value]):
    """The answer of a function, asked again only when it is too old. Any thread may call it.

    What it costs does not grow with the number of viewers. An error keeps the previous answer: the preview
    shows a stream, it must not end it. The first error in a row is logged.

    Args:
        function: Asked by one thread at a time.
        default: The answer before the first one.
        max_age_seconds: An answer serves for this long.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        function: Callable[[], _Value],
        *,
        default: _Value,
        max_age_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._function = function
        self._answer = default
        self._max_age_seconds = max_age_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._asked_at_seconds = float("-inf")
        self._failing = False

    def __call__(self) -> _Value:
        with self._lock:
            if self._clock() - self._asked_at_seconds < self._max_age_seconds:
                return self._answer
            try:
                self._answer = self._function()
                self._failing = False
            except Exception:
                if not self._failing:
                    _log.exception("the preview shows an old state, because the new one cannot be read")
                self._failing = True
            self._asked_at_seconds = self._clock()
            return self._answer
