"""What cameras and network streams have in common: they are lost, and come back."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from time import monotonic

from pcmoe_det.errors import PcmoeError, SourceError
from pcmoe_det.streaming.faults import FaultCounter
from pcmoe_det.streaming.frozen import FrozenWatch
from pcmoe_det.streaming.live_connection import Connection, ConnectionFacts, ConnectionThread, Picture
from pcmoe_det.streaming.reconnect import Backoff
from pcmoe_det.streaming.sources import SourceOptions
from pcmoe_det.streaming.timeline import Timeline
from pcmoe_det.structures import Frame, Gap

__all__ = ["LiveSource"]

_log = logging.getLogger(__name__)

# So that the time-outs of the libraries, which know the reason, come before ours, which always work.
_GRACE_SECONDS = 1.0
_CLOSE_SECONDS = 0.3
_ENDED = "it ended"
# An encoder that starts anew leaves the end of its playlist for a while.
_RECORDING_SECONDS = 30.0


class LiveSource:
    """A source whose connection is opened again whenever it is lost.

    Lost means: it failed, it ended though it is live, it gave no picture for ``read_timeout_seconds``, or it
    is frozen (the same picture for ``frozen_after_seconds``). If for half a minute what answers is finite (a
    live playlist that has become a recording), the live source has ended; the recording is not played. A
    connection that is given up is never waited for: see ``ConnectionThread``.

    ``pts_seconds`` counts from the first frame, by the sender's stamps where it has some, and goes on over
    losses by the capture clock. Of a source that is not live (a file on a server) the stamps are the
    container's, and a lost connection is an error.

    Args:
        connect: Opens one connection; called in a thread of its own. It adds to ``faults``.
        source_id: Printable name.
        options: Time-outs and limits.
        clock: Seconds, monotonic.
        backoff: Delays between attempts.
        scrub: Takes secrets out of unforeseen error texts.

    Raises:
        SourceError: No picture came from the first connection.
    """

    def __init__(
        self,
        connect: Callable[[FaultCounter], Connection],
        *,
        source_id: str,
        options: SourceOptions,
        clock: Callable[[], float] = monotonic,
        backoff: Backoff | None = None,
        scrub: Callable[[str], str] = str,
    ) -> None:
        self._connect = connect
        self._source_id = source_id
        self._options = options
        self._clock = clock
        self._backoff = backoff or Backoff(options.reconnect_limit)
        self._scrub = scrub
        self._faults = FaultCounter()
        self._frozen = FrozenWatch(options.frozen_after_seconds)
        self._stop = threading.Event()
        self._lock = threading.Lock()
        self._loss: tuple[float, float | None] = (0.0, None)  # seconds of those overcome, start of this one
        self._has_ended = False
        self._recording_since_seconds: float | None = None
        self._facts = ConnectionFacts()
        self._connection = self._open()
        self.is_live = self._facts.is_live

    @property
    def source_id(self) -> str:
        return self._source_id

    @property
    def frame_rate(self) -> Fraction | None:
        return self._facts.frame_rate

    @property
    def frame_count(self) -> int | None:
        return self._facts.frame_count

    @property
    def time_base(self) -> Fraction | None:
        return self._facts.time_base

    @property
    def faults(self) -> Mapping[str, int]:
        """Counts: ``reconnects``, ``failed_reconnects`` (attempts), ``frozen`` (episodes), and those of the
        kind of source."""
        return self._faults.as_dict()

    @property
    def seconds_lost(self) -> float:
        overcome_seconds, since_seconds = self._loss
        return overcome_seconds + (0.0 if since_seconds is None else self._clock() - since_seconds)

    def __iter__(self) -> Iterator[Frame]:
        try:
            yield from self._frames()
        finally:
            self._loss = (self.seconds_lost, None)  # whatever was going on is over

    def _frames(self) -> Iterator[Frame]:
        connection = self._connection
        connection.keep_every_picture()
        timeline = Timeline()
        frame_count = 0
        last: Picture | None = None
        lost_at_seconds: float | None = None
        while not self._stop.is_set():
            picture, why = self._take(connection)
            if picture is None:
                if self._stop.is_set() or (why == _ENDED and not self.is_live):
                    return
                lost_at_seconds = self._last_seconds(last, lost_at_seconds, connection)
                connection = self._reopen(connection, why, lost_at_seconds, frame_count=frame_count)
                if self._has_ended:
                    return
                continue
            gap = _gap_before(picture, last, lost_at_seconds) if self.is_live else None
            if lost_at_seconds is not None:
                self._loss = (self._loss[0] + picture.captured_at_seconds - lost_at_seconds, None)
                lost_at_seconds = None
            if self.is_live:
                pts_seconds: float | None = timeline.place(
                    picture.stamp_seconds, picture.captured_at_seconds, anew=gap is not None
                )
            else:
                pts_seconds = picture.stamp_seconds
            yield Frame(
                image=picture.image,
                source_id=self._source_id,
                frame_index=frame_count if picture.index is None else picture.index,
                pts_seconds=pts_seconds,
                captured_at_seconds=picture.captured_at_seconds,
                gap=gap,
            )
            frame_count += 1
            last = picture
            if self.is_live and self._frozen.alarm(
                picture.image, picture.captured_at_seconds, anew=gap is not None
            ):
                lost_at_seconds = picture.captured_at_seconds
                connection = self._reopen_frozen(connection, lost_at_seconds, frame_count=frame_count)
                if self._has_ended:
                    return

    def interrupt(self) -> None:
        self._stop.set()
        with self._lock:
            self._connection.abandon()

    def close(self) -> None:
        self.interrupt()
        self._connection.thread.join(_CLOSE_SECONDS)

    def _take(self, connection: ConnectionThread) -> tuple[Picture | None, str]:
        """The next picture, or None and why there is none."""
        timeout_seconds = self._options.read_timeout_seconds
        try:
            picture = connection.take(timeout_seconds=timeout_seconds + _GRACE_SECONDS)
        except TimeoutError:
            return None, f"no picture within {timeout_seconds:g} s"
        return picture, _ENDED if connection.error is None else str(connection.error)

    def _open(self) -> ConnectionThread:
        """The first connection, with a picture."""
        connection = self._start(every_picture=False)
        try:
            connection.wait_until_ready(
                open_timeout_seconds=self._options.open_timeout_seconds + _GRACE_SECONDS,
                read_timeout_seconds=self._options.read_timeout_seconds,
            )
        except BaseException as error:
            connection.abandon()
            if isinstance(error, PcmoeError):
                # Without its cause: texts of the libraries hold the address as it was typed.
                raise SourceError(f"{self._source_id} cannot be opened: {error}") from None
            raise
        self._facts = connection.facts or self._facts
        return connection

    def _reopen(
        self,
        lost: ConnectionThread,
        why: str,
        lost_at_seconds: float,
        *,
        frame_count: int,
        log_level: int = logging.WARNING,
    ) -> ConnectionThread:
        """Another connection, with a picture; the lost one if interrupted meanwhile. Sets ``_has_ended``.

        Raises:
            SourceError: The limit of attempts is reached, or a source that is not live was lost.
        """
        lost.abandon()
        where = f"{self._source_id} was lost after {frame_count} frames: {why}"
        if not self.is_live:
            raise SourceError(where)
        self._loss = (self._loss[0], lost_at_seconds)
        if lost.first_at_seconds is not None:
            self._backoff.lost(after_seconds=lost_at_seconds - lost.first_at_seconds)
        _log.log(log_level, "%s; trying to get it back", where)
        last_error = why
        while True:
            delay_seconds = self._backoff.next_delay_seconds()
            if delay_seconds is None:
                raise SourceError(
                    f"{where}; {self._backoff.attempts} attempts to get it back failed, "
                    f"the last: {last_error}"
                )
            if self._stop.wait(delay_seconds):
                return lost
            connection = self._try_again()
            try:
                connection.wait_until_ready(
                    open_timeout_seconds=self._options.open_timeout_seconds + _GRACE_SECONDS,
                    read_timeout_seconds=self._options.read_timeout_seconds,
                )
                _check_live(connection)
            except PcmoeError as error:
                connection.abandon()
                if self._stop.is_set() or self._is_over(error):
                    return connection
                last_error = str(error)
                self._faults.add("failed_reconnects")
                _log.info("%s: attempt %d: %s", self._source_id, self._backoff.attempts, error)
                continue
            if not self._stop.is_set():
                self._succeeded(connection)
                lost_seconds = (connection.first_at_seconds or lost_at_seconds) - lost_at_seconds
                _log.log(log_level, "%s is back after %.1f s", self._source_id, lost_seconds)
            return connection

    def _reopen_frozen(
        self, frozen: ConnectionThread, at_seconds: float, *, frame_count: int
    ) -> ConnectionThread:
        """Another connection; counts episodes, and says something about the first alarm of each only."""
        is_new = self._frozen.episodes > self._faults.as_dict().get("frozen", 0)
        if is_new:
            self._faults.add("frozen")
        return self._reopen(
            frozen,
            f"it is frozen, the same picture for {self._options.frozen_after_seconds:g} s or more",
            at_seconds,
            frame_count=frame_count,
            log_level=logging.WARNING if is_new else logging.INFO,
        )

    def _start(self, *, every_picture: bool) -> ConnectionThread:
        return ConnectionThread(
            lambda: self._connect(self._faults),
            name=self._source_id,
            every_picture=every_picture,
            scrub=self._scrub,
        )

    def _try_again(self) -> ConnectionThread:
        connection = self._start(every_picture=True)
        with self._lock:
            self._connection = connection
            if self._stop.is_set():
                connection.abandon()
        return connection

    def _is_over(self, error: PcmoeError) -> bool:
        """Whether nothing but a recording has answered for so long that the live source has ended."""
        if not isinstance(error, _RecordingError):
            self._recording_since_seconds = None
            return False
        now_seconds = self._clock()
        if self._recording_since_seconds is None:
            self._recording_since_seconds = now_seconds
        self._has_ended = now_seconds - self._recording_since_seconds >= _RECORDING_SECONDS
        if self._has_ended:
            _log.warning("%s has ended: %s", self._source_id, error)
        return self._has_ended

    def _succeeded(self, connection: ConnectionThread) -> None:
        self._recording_since_seconds = None
        self._facts = connection.facts or self._facts
        self._backoff.succeeded()
        self._faults.add("reconnects")

    def _last_seconds(
        self, last: Picture | None, lost_at_seconds: float | None, connection: ConnectionThread
    ) -> float:
        """When the last picture came before a loss."""
        if lost_at_seconds is not None:
            return lost_at_seconds
        if last is not None:
            return last.captured_at_seconds
        return self._clock() if connection.first_at_seconds is None else connection.first_at_seconds


class _RecordingError(SourceError):
    """Something finite answers where a live source was."""


def _check_live(connection: ConnectionThread) -> None:
    if connection.facts is not None and not connection.facts.is_live:
        raise _RecordingError("what is there now is a recording")


def _gap_before(picture: Picture, last: Picture | None, lost_at_seconds: float | None) -> Gap | None:
    if lost_at_seconds is not None:
        return Gap("reconnected", picture.captured_at_seconds - lost_at_seconds)
    if last is not None and picture.image.shape != last.image.shape:
        return Gap("size_changed", 0.0)
    return None
