"""Keeping clients from holding the server: how many at once, and for how long."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable

__all__ = ["Connections"]


class Connections:
    """The open connections of a server, each with the time by which it must have got on.

    Time-outs of single reads do not stop a client that sends a byte now and then; a deadline does. Any
    thread may call these methods.

    Args:
        limit: Most at once. A browser opens up to six for a page.
        clock: Seconds, monotonic.
    """

    def __init__(self, *, limit: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._limit = limit
        self._clock = clock
        self._lock = threading.Lock()
        self._deadlines: dict[socket.socket, float] = {}
        self._closed = False

    def admit(self, connection: socket.socket, *, seconds: float) -> bool:
        """Take one more, with so much time for its first request; False where there is no place left."""
        with self._lock:
            if self._closed or len(self._deadlines) >= self._limit:
                return False
            self._deadlines[connection] = self._clock() + seconds
            return True

    def extend(self, connection: socket.socket, *, seconds: float) -> None:
        """The connection got on: so much time for the next step."""
        with self._lock:
            if connection in self._deadlines:
                self._deadlines[connection] = self._clock() + seconds

    def release(self, connection: socket.socket) -> None:
        """The connection is about to be closed."""
        with self._lock:
            self._deadlines.pop(connection, None)

    def end_overdue(self) -> int:
        """End the connections past their deadline; returns how many."""
        now_seconds = self._clock()
        with self._lock:
            return self._end([key for key, deadline in self._deadlines.items() if deadline < now_seconds])

    def end_all(self) -> None:
        """End all, and admit none from now on."""
        with self._lock:
            self._closed = True
            self._end(list(self._deadlines))

    def __len__(self) -> int:
        with self._lock:
            return len(self._deadlines)

    def _end(self, connections: list[socket.socket]) -> int:
        # Under the lock, so that the socket cannot be closed, and its number taken by another, in between.
        for connection in connections:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)  # wakes the thread that reads from or writes to it
        return len(connections)
