"""One connection to a camera or a server, opened and read in a thread of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import PcmoeError, SourceError
from pcmoe_det.streaming.queues import BoundedQueue, QueueEnded, QueuePolicy

__all__ = ["Connection", "ConnectionFacts", "ConnectionThread", "Picture"]

# One that is being taken and one that is ready. More would only be older.
_CAPACITY = 2


@dataclass(frozen=True, slots=True)
class ConnectionFacts:
    """What is known of a source once it is open.

    Attributes:
        is_live: Whether pictures come at the sender's pace, without an end.
        frame_rate: Announced frames per second, or None.
        frame_count: Announced number of frames, or None.
        time_base: Unit of the sender's time stamps in seconds, or None.
    """

    is_live: bool = True
    frame_rate: Fraction | None = None
    frame_count: int | None = None
    time_base: Fraction | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Picture:
    """A picture as it comes from a connection.

    Attributes:
        image: ``[height, width, 3]`` uint8 BGR.
        stamp_seconds: The sender's time stamp, or None.
        captured_at_seconds: When it was there, on the capture clock.
        index: Position in the source, where lost pictures are known; else None.
    """

    image: NDArray[np.uint8]
    stamp_seconds: float | None
    captured_at_seconds: float
    index: int | None = None


class Connection(Protocol):
    """An open connection, used and closed by one thread."""

    @property
    def facts(self) -> ConnectionFacts: ...

    def pictures(self) -> Iterator[Picture]:
        """Pictures until the sender ends. Raises ``SourceError`` where the connection is lost."""
        ...

    def close(self) -> None: ...


class ConnectionThread:
    """Opens a connection and reads it without a break, so that nothing old piles up in it.

    Native code that waits for a network or a driver cannot be woken. The thread that waits here is therefore
    one that nobody needs: ``abandon`` leaves it alone, and it closes its connection and ends as soon as the
    native call returns, at the latest after its time-out.

    Until ``keep_every_picture`` only the newest pictures are held (a model may be loading); after it the
    thread waits for room, which is back-pressure to whoever asks for every frame of a live source. A source
    that is not live is held back from the start.

    Args:
        connect: Opens the connection; called in the thread.
        name: Of the thread; without credentials.
        every_picture: Keep every picture from the start.
        scrub: Takes secrets out of the text of an error that nobody foresaw.
    """

    def __init__(
        self,
        connect: Callable[[], Connection],
        *,
        name: str,
        every_picture: bool,
        scrub: Callable[[str], str] = str,
    ) -> None:
        self._connect = connect
        self._scrub = scrub
        self._pictures: BoundedQueue[Picture] = BoundedQueue(
            _CAPACITY, policy=QueuePolicy.EVERY_FRAME if every_picture else QueuePolicy.FRESHEST
        )
        self._opened = threading.Event()
        self._ready = threading.Event()
        self._abandoned = False
        self.facts: ConnectionFacts | None = None
        """Of the open connection; None before."""
        self.first_at_seconds: float | None = None
        """When the first picture came, on the capture clock; None before."""
        self.error: PcmoeError | None = None
        """Why the connection ended; None while it has not, and where the sender ended it."""
        self.thread = threading.Thread(target=self._run, name=f"pcmoe-connection-{name}", daemon=True)
        self.thread.start()

    def wait_until_ready(self, *, open_timeout_seconds: float, read_timeout_seconds: float) -> None:
        """Wait for the first picture, which stays in the queue, or for ``abandon``.

        Raises:
            PcmoeError: It did not come.
        """
        if not self._opened.wait(open_timeout_seconds):
            raise SourceError(f"no answer within {open_timeout_seconds:g} s")
        if not self._ready.wait(read_timeout_seconds):
            raise SourceError(f"it answered, but no picture came within {read_timeout_seconds:g} s")
        if self.first_at_seconds is None and not self._abandoned:
            raise self.error or SourceError("it ended before the first picture")

    def keep_every_picture(self) -> None:
        """From now on wait for room instead of replacing what was not taken yet."""
        self._pictures.policy = QueuePolicy.EVERY_FRAME

    def take(self, *, timeout_seconds: float) -> Picture | None:
        """The next picture; None at the end, when ``error`` says why.

        Raises:
            TimeoutError: None came in time.
        """
        try:
            return self._pictures.get(timeout_seconds=timeout_seconds)
        except QueueEnded:
            return None

    def abandon(self) -> None:
        """Have the thread end when it can. Does not wait; wakes who waits here."""
        self._abandoned = True
        self._pictures.close(cause="abandoned")
        self._opened.set()
        self._ready.set()

    def _run(self) -> None:
        try:
            connection = self._connect()
            try:
                self._read(connection)
            finally:
                connection.close()
        except QueueEnded:
            pass
        except PcmoeError as error:
            # Tracebacks hold the connection and its pictures, and through it the error: a ring that would
            # keep them until the next garbage collection.
            error.__traceback__ = error.__context__ = error.__cause__ = None
            self.error = error
        except Exception as error:
            self.error = SourceError(f"reading failed: {type(error).__name__}: {self._scrub(str(error))}")
        finally:
            self._pictures.finish()
            self._opened.set()
            self._ready.set()

    def _read(self, connection: Connection) -> None:
        self.facts = connection.facts
        if not self.facts.is_live:
            self.keep_every_picture()
        self._opened.set()
        for picture in connection.pictures():
            self._pictures.put(picture)
            if self.first_at_seconds is None:
                self.first_at_seconds = picture.captured_at_seconds
                self._ready.set()
            if self._abandoned:
                return
