"""JPEG pictures one after another on standard input, or from any other pipe."""

from __future__ import annotations

import logging
import os
import select
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from fractions import Fraction
from time import monotonic

from pcmoe_det.errors import SourceError, UsageError
from pcmoe_det.streaming.faults import FaultCounter
from pcmoe_det.streaming.jpeg_splitter import JpegSplitter
from pcmoe_det.streaming.still_pictures import read_still_picture
from pcmoe_det.structures import Frame

__all__ = ["MjpegSource"]

_log = logging.getLogger(__name__)

_READ_BYTES = 1 << 18


class MjpegSource:
    """MJPEG from a pipe: concatenated JPEG pictures.

    Not live: frames come as fast as they are written, every frame is kept, and whoever writes faster than
    frames are used has to wait. It waits for the next picture without a time-out. There are no times in such
    a stream: ``pts_seconds`` is None. Bytes between pictures are skipped; a picture that cannot be decoded
    still takes a ``frame_index``.

    Args:
        file_descriptor: Readable; not closed. None stands for standard input.
        source_id: Printable name.
        clock: Seconds; for ``captured_at_seconds``.

    Raises:
        UsageError: Standard input is a terminal.
        SourceError: Standard input is closed.
    """

    is_live = False
    frame_rate: Fraction | None = None
    frame_count: int | None = None
    time_base: Fraction | None = None
    seconds_lost = 0.0

    def __init__(
        self,
        file_descriptor: int | None = None,
        *,
        source_id: str = "stdin",
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._descriptor = _standard_input() if file_descriptor is None else file_descriptor
        self._source_id = source_id
        self._clock = clock
        self._faults = FaultCounter()
        self._splitter = JpegSplitter()
        self._interrupted = False
        self._wake_receiver, self._wake_sender = os.pipe()
        os.set_blocking(self._wake_sender, False)

    @property
    def source_id(self) -> str:
        return self._source_id

    @property
    def faults(self) -> Mapping[str, int]:
        """Counts: ``garbage`` (stretches of bytes between pictures), ``truncated`` and ``undecodable``
        pictures."""
        counts = self._faults.as_dict()
        found = {"garbage": self._splitter.garbage, "truncated": self._splitter.truncated}
        return counts | {cause: count for cause, count in found.items() if count}

    def __iter__(self) -> Iterator[Frame]:
        given_count = 0
        for index, data in enumerate(self._pictures()):
            if self._interrupted:
                return
            try:
                image = read_still_picture(data)
            except SourceError as error:
                self._faults.add("undecodable")
                _log.info("%s: picture %d cannot be decoded: %s", self._source_id, index, error)
                continue
            yield Frame(
                image=image,
                source_id=self._source_id,
                frame_index=index,
                pts_seconds=None,
                captured_at_seconds=self._clock(),
            )
            given_count += 1
        if given_count == 0 and not self._interrupted:
            raise SourceError(
                f"{self._source_id} ended without a JPEG picture; write MJPEG to it, such as "
                "ffmpeg -i VIDEO -f mjpeg - | ..."
            )

    def interrupt(self) -> None:
        self._interrupted = True
        with suppress(OSError):  # closed, or woken so often that the pipe is full
            os.write(self._wake_sender, b"x")

    def close(self) -> None:
        for name in ("_wake_receiver", "_wake_sender"):
            descriptor = getattr(self, name)
            setattr(self, name, -1)
            if descriptor >= 0:
                os.close(descriptor)

    def _pictures(self) -> Iterator[bytes]:
        while not self._interrupted:
            try:
                ready, _, _ = select.select([self._descriptor, self._wake_receiver], [], [])
                if self._interrupted or self._descriptor not in ready:
                    return
                data = os.read(self._descriptor, _READ_BYTES)
            except OSError as error:
                raise SourceError(f"{self._source_id} cannot be read: {error.strerror}") from error
            if not data:
                self._splitter.finish()
                return
            yield from self._splitter.feed(data)


def _standard_input() -> int:
    try:
        descriptor = sys.stdin.fileno()
    except (AttributeError, OSError, ValueError):  # AttributeError: started without one
        raise SourceError("there is no standard input to read from; pipe MJPEG into it") from None
    if os.isatty(descriptor):
        raise UsageError("standard input is a terminal; pipe MJPEG into it: ffmpeg -i VIDEO -f mjpeg - | ...")
    return descriptor
