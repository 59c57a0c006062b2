"""Fills slots: at once, or in a background thread while frames compute."""

from __future__ import annotations

import logging
import queue
import threading
import time
from dataclasses import dataclass, replace
from typing import Protocol

from torch import Tensor

from pcmoe_det.committee.layers import ExpertKey
from pcmoe_det.committee.store import LONGEST_WAIT_SECONDS, ExpertStore, StoreError

__all__ = ["LOADER_NAME", "LONGEST_LOAD_SECONDS", "BackgroundLoader", "ImmediateLoader", "Load", "Loader"]

_logger = logging.getLogger(__name__)

LONGEST_LOAD_SECONDS = 30.0
"""How long a load may take where somebody waits for it; then it counts as hanging."""

LOADER_NAME = "expert-loader"
"""Of the background thread."""


@dataclass(frozen=True, eq=False)
class Load:
    """One read into one slot, and its outcome once it is done.

    Attributes:
        key: The expert.
        slot: Index of the slot in its pool.
        buffer: ``[record_bytes]`` uint8 memory of that slot.
        outgoing: Expert of the same layer that leaves when this one is in, or None.
        submitted_at_seconds: On the clock of ``time.monotonic``.
        submitted_frame: Frame number of the committee.
        seconds: Time inside the store.
        error: Why it failed, or None.
    """

    key: ExpertKey
    slot: int
    buffer: Tensor
    outgoing: int | None
    submitted_at_seconds: float
    submitted_frame: int
    seconds: float = 0.0
    error: str | None = None


class Loader(Protocol):
    """Takes loads and hands them back, done, at a frame boundary."""

    def submit(self, load: Load) -> None:
        """Start a load."""
        ...

    def finished(self, *, wait_for: int = 0) -> list[Load]:
        """Loads done since the last call, in the order submitted; waits until there are ``wait_for``, but no
        longer than ``LONGEST_LOAD_SECONDS`` for each."""
        ...

    def close(self) -> None:
        """Stop; loads that are not done are dropped."""
        ...


def _run(store: ExpertStore, load: Load) -> Load:
    start = time.perf_counter()
    error = None
    try:
        store.read_into(load.key, load.buffer)
    except StoreError as failure:
        error = str(failure)
        _logger.warning("an expert was not loaded: %s", failure)
    except Exception as failure:  # a slot must never be lost: the frame boundary takes it back
        error = repr(failure)
        _logger.exception("an expert was not loaded (%s)", load.key)
    return replace(load, seconds=time.perf_counter() - start, error=error)


class ImmediateLoader:
    """Loads when asked; deterministic."""

    def __init__(self, store: ExpertStore) -> None:
        self._store = store
        self._done: list[Load] = []

    def submit(self, load: Load) -> None:
        """Load now."""
        self._done.append(_run(self._store, load))

    def finished(self, *, wait_for: int = 0) -> list[Load]:
        """All loads since the last call."""
        del wait_for
        done, self._done = self._done, []
        return done

    def close(self) -> None:
        """Nothing to stop."""


class BackgroundLoader:
    """One thread that reads while frames compute.

    ``submit`` and ``finished`` are called by the thread that runs the model; neither takes a lock that
    the reading thread holds while it reads.

    Args:
        store: Where experts are read from.
        patience_seconds: How long ``close`` waits for the read under way.
    """

    def __init__(self, store: ExpertStore, *, patience_seconds: float = LONGEST_WAIT_SECONDS) -> None:
        self._store = store
        self._patience_seconds = patience_seconds
        self._jobs: queue.SimpleQueue[Load | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Load] = queue.SimpleQueue()
        self._thread: threading.Thread | None = None
        self._closed = threading.Event()

    def submit(self, load: Load) -> None:
        """Queue a load; starts the thread on the first one. Raises RuntimeError after ``close``."""
        if self._closed.is_set():
            raise RuntimeError("the loader is closed")
        if self._thread is None:
            self._thread = threading.Thread(target=self._work, name=LOADER_NAME, daemon=True)
            self._thread.start()
        self._jobs.put(load)

    def finished(self, *, wait_for: int = 0) -> list[Load]:
        """Loads done so far; see ``Loader.finished``."""
        done: list[Load] = []
        while True:
            try:
                done.append(self._done.get(block=len(done) < wait_for, timeout=LONGEST_LOAD_SECONDS))
            except queue.Empty:
                return done

    def close(self) -> None:
        """Stop after the read under way; one that hangs (a dead disk or network share) is left behind."""
        self._closed.set()
        if self._thread is not None:
            self._jobs.put(None)
            self._thread.join(self._patience_seconds)
            if self._thread.is_alive():
                # A daemon: it ends with its read, or with the process. Its buffer lives as long as it does.
                _logger.warning(
                    "a read of the expert store has not ended after %g s; it is left behind",
                    self._patience_seconds,
                )
            self._thread = None

    def _work(self) -> None:
        while True:
            load = self._jobs.get()
            if load is None or self._closed.is_set():
                return
            self._done.put(_run(self._store, load))
