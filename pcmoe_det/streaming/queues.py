"""Bounded queues between the stages, each with a named policy and a count of what it dropped."""

from __future__ import annotations

import enum
import threading
from collections import Counter, deque
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

__all__ = ["BoundedQueue", "QueueEnded", "QueuePolicy"]

Item = TypeVar("Item")


def _nothing() -> None:
    """Nobody watches."""


class QueuePolicy(enum.Enum):
    """What ``put`` does when the queue is full."""

    EVERY_FRAME = "every-frame"
    """Wait for room: back-pressure reaches the reader, nothing is lost."""
    FRESHEST = "freshest"
    """Drop the oldest item, counted as ``replaced_by_newer``: the reader never waits."""


class QueueEnded(Exception):
    """Nothing more goes through this queue. Ends a stage; never shown to a user."""


class BoundedQueue(Generic[Item]):
    """A first-in, first-out queue of at most ``capacity`` items, for any number of threads.

    States: *open*; *finished* (the producer has sent its end marker: ``get`` gives what is left, then
    raises ``QueueEnded``); *closed* (either side gave up: what waited is dropped and counted, both sides
    get ``QueueEnded``). Every change of state wakes every waiting thread, so no side needs to poll.

    Args:
        capacity: At least 1.
        policy: What a full queue does with the next item.
        on_change: Called after every change of content or state, in the thread that made it, without a lock
            held; for somebody who watches several queues.

    Raises:
        ValueError: ``capacity`` is below 1.
    """

    def __init__(
        self,
        capacity: int,
        *,
        policy: QueuePolicy = QueuePolicy.EVERY_FRAME,
        on_change: Callable[[], None] = _nothing,
    ) -> None:
        if capacity < 1:
            raise ValueError(f"a queue needs a capacity of at least 1, not {capacity}")
        self.capacity = capacity
        self.policy = policy
        self._on_change = on_change
        self._items: deque[Item] = deque()
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._finished = False
        self._closed_because: str | None = None
        self._dropped: Counter[str] = Counter()

    def put(self, item: Item, *, timeout_seconds: float | None = None) -> None:
        """Append ``item``; waits for room under ``EVERY_FRAME``.

        Raises:
            QueueEnded: The queue is closed; the item is counted as dropped for the same cause.
            TimeoutError: No room within ``timeout_seconds``; the item was not taken.
            RuntimeError: The producer has already called ``finish``.
        """
        with self._lock:
            if self._finished:
                raise RuntimeError("put after finish: the producer has already ended this queue")
            if self.policy is QueuePolicy.EVERY_FRAME and not self._changed.wait_for(
                lambda: self._closed_because is not None or len(self._items) < self.capacity, timeout_seconds
            ):
                raise TimeoutError(f"no room in the queue within {timeout_seconds} s")
            if self._closed_because is not None:
                self._dropped[self._closed_because] += 1
                raise QueueEnded
            if len(self._items) >= self.capacity:
                self._items.popleft()
                self._dropped["replaced_by_newer"] += 1
            self._items.append(item)
            self._changed.notify_all()
        self._on_change()

    def get(self, *, timeout_seconds: float | None = None) -> Item:
        """Take the oldest item, waiting for one.

        Raises:
            QueueEnded: The queue is closed, or finished and empty.
            TimeoutError: Nothing came within ``timeout_seconds``.
        """
        with self._lock:
            if not self._changed.wait_for(
                lambda: self._items or self._finished or self._closed_because is not None, timeout_seconds
            ):
                raise TimeoutError(f"nothing in the queue within {timeout_seconds} s")
            if not self._items:
                raise QueueEnded
            item = self._items.popleft()
            self._changed.notify_all()
        self._on_change()
        return item

    def take_waiting(self) -> Item | None:
        """The oldest item if there is one; does not wait."""
        with self._lock:
            if not self._items:
                return None
            item = self._items.popleft()
            self._changed.notify_all()
        self._on_change()
        return item

    def __iter__(self) -> Iterator[Item]:
        """Items until the queue has ended."""
        while True:
            try:
                yield self.get()
            except QueueEnded:
                return

    def finish(self) -> None:
        """Send the end marker. It always fits. Safe to call again, and after ``close``."""
        with self._lock:
            self._finished = True
            self._changed.notify_all()
        self._on_change()

    def close(self, *, cause: str) -> None:
        """Drop what waits, counted under ``cause``, and end both sides. The first cause stays."""
        with self._lock:
            if self._closed_because is None:
                self._closed_because = cause
            self._dropped[self._closed_because] += len(self._items)
            self._items.clear()
            self._changed.notify_all()
        self._on_change()

    @property
    def has_room(self) -> bool:
        """Whether ``put`` returns at once; for the only producer this stays true until it puts."""
        with self._lock:
            return self._closed_because is not None or len(self._items) < self.capacity

    @property
    def has_ended(self) -> bool:
        """Whether nothing more will come out of it."""
        with self._lock:
            return not self._items and (self._finished or self._closed_because is not None)

    @property
    def dropped(self) -> dict[str, int]:
        """Items dropped so far, by cause."""
        with self._lock:
            return {cause: count for cause, count in self._dropped.items() if count}

    def __len__(self) -> int:
        with self._lock:
            return len(self._items)
