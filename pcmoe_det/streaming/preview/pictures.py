"""The newest picture of each stream as JPEG, made only while somebody asks for it.

The renderer thread leaves a reference; one thread shrinks and encodes. How often depends on what a picture
costs: never more than ten a second for a stream, and all together no more than a fixed share of the
machine's processors.
"""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["JpegPicture", "PictureEncoder", "PictureFeed"]

_log = logging.getLogger(__name__)

MAX_WIDTH = 960
MAX_PICTURES_PER_SECOND = 10.0
_JPEG_QUALITY = 80
# A page asks again as soon as it has a picture, at the latest after a second. Who has not asked for this long
# has left.
WATCHED_SECONDS = 2.5
# Of all processors. Measured on two: a picture takes 0.5 ms from 640x352, 1.3 ms from 960x540 and 3.1 ms from
# 1920x1080, so that
# the last comes about five times a second, or less often where it is drawn for the preview alone.
_CPU_SHARE = 0.01
# What the encoder cannot see: answering the request (0.2 ms) and waking threads for it.
_SENDING_SECONDS = 0.0005


@dataclass(frozen=True, slots=True)
class JpegPicture:
    """One encoded picture.

    Attributes:
        data: The JPEG file.
        sequence: 1 for the first picture of its stream, then one more for each.
        frame_index: Of the frame shown.
    """

    data: bytes
    sequence: int
    frame_index: int


class _Offer(NamedTuple):
    """What the renderer left."""

    picture: NDArray[np.uint8]
    frame_index: int
    drawing_seconds: float
    taken_at_seconds: float


class PictureFeed:
    """The pictures of one stream. ``PictureEncoder.feed`` makes one.

    ``is_wanted`` and ``offer`` belong to the renderer thread and take no locks; ``newest`` may be called by
    any thread; ``encode`` belongs to the encoder.
    """

    def __init__(self, wake_encoder: threading.Event, *, clock: Callable[[], float]) -> None:
        self._wake_encoder = wake_encoder
        self._clock = clock
        self._watched_until_seconds = float("-inf")
        self._due_at_seconds = float("-inf")
        self._pending: _Offer | None = None
        self._changed = threading.Condition()
        self._newest: JpegPicture | None = None
        self._sequence = 0
        self._closed = False

    @property
    def is_watched(self) -> bool:
        """Whether somebody asked for a picture lately."""
        return self._clock() < self._watched_until_seconds

    @property
    def is_wanted(self) -> bool:
        """Whether a picture is due now."""
        now_seconds = self._clock()
        return (
            now_seconds < self._watched_until_seconds
            and now_seconds >= self._due_at_seconds
            and self._pending is None
        )

    def offer(self, picture: NDArray[np.uint8], *, frame_index: int, drawing_seconds: float = 0.0) -> None:
        """Leave a picture for the encoder if one is wanted.

        Args:
            picture: ``[height, width, 3]`` uint8 BGR; kept until it is encoded, not written to.
            frame_index: Of the frame shown.
            drawing_seconds: What it took to draw, if it was drawn for the preview alone; part of its cost.
        """
        if self.is_wanted:
            self._pending = _Offer(picture, frame_index, drawing_seconds, self._clock())
            self._wake_encoder.set()

    def newest(self, *, after: int = 0, timeout_seconds: float) -> JpegPicture | None:
        """A picture with a higher sequence number than ``after``; waits for it. None if none comes in time.

        Asking is what makes pictures: the stream counts as watched from now on for a while.
        """
        self._watched_until_seconds = self._clock() + WATCHED_SECONDS
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._is_after(after), timeout_seconds)
            return self._newest if self._is_after(after) else None

    def encode(self, *, cost_factor: float) -> None:
        """Encode what was left here, if anything.

        Args:
            cost_factor: Seconds to wait after a picture for each second of processor time it took.
        """
        pending = self._pending
        if pending is None:
            return
        started_seconds = time.thread_time()
        try:
            data = _to_jpeg(pending.picture)
        finally:
            encoding_seconds = time.thread_time() - started_seconds
            cost_seconds = pending.drawing_seconds + encoding_seconds + _SENDING_SECONDS
            pause_seconds = max(1 / MAX_PICTURES_PER_SECOND, cost_seconds * cost_factor)
            # On average no more often than once a pause, also where that is no multiple of the frame time.
            self._due_at_seconds = max(
                self._due_at_seconds + pause_seconds, pending.taken_at_seconds + pause_seconds / 2
            )
            self._pending = None  # only now: one picture at a time
        with self._changed:
            self._sequence += 1
            self._newest = JpegPicture(data, self._sequence, pending.frame_index)
            self._changed.notify_all()

    def close(self) -> None:
        """Let go of whoever waits."""
        with self._changed:
            self._closed = True
            self._changed.notify_all()

    def _is_after(self, sequence: int) -> bool:
        return self._newest is not None and self._newest.sequence > sequence


class PictureEncoder:
    """The thread that encodes for all streams.

    Args:
        clock: Seconds, monotonic.
    """

    def __init__(self, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._wake = threading.Event()
        self._stopping = False
        self._feeds: list[PictureFeed] = []
        self._cpu_seconds_per_second = _CPU_SHARE * (os.cpu_count() or 1)
        self._thread = threading.Thread(target=self._run, name="preview-encoder", daemon=True)

    def feed(self) -> PictureFeed:
        """Pictures of one more stream."""
        feed = PictureFeed(self._wake, clock=self._clock)
        self._feeds = [*self._feeds, feed]  # a new list: the encoder may be walking along the old one
        return feed

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, *, timeout_seconds: float) -> None:
        """Let go of whoever waits for a picture, and end the thread."""
        self._stopping = True
        self._wake.set()
        for feed in self._feeds:
            feed.close()
        if self._thread.is_alive():
            self._thread.join(timeout_seconds)

    def _run(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            if self._stopping:
                return
            feeds = self._feeds
            watched = max(1, sum(feed.is_watched for feed in feeds))
            for feed in feeds:
                try:
                    feed.encode(cost_factor=watched / self._cpu_seconds_per_second)
                except Exception:  # a picture that cannot be encoded must not end the preview
                    _log.exception("a preview picture could not be encoded")


def _to_jpeg(picture: NDArray[np.uint8]) -> bytes:
    height, width = picture.shape[:2]
    if width > MAX_WIDTH:
        size = (MAX_WIDTH, max(1, round(height * MAX_WIDTH / width)))
        # Averaging areas pays from half size on (4K: 4.8 ms); at 1280 it takes 3.7 ms against 1.0 ms.
        method = cv2.INTER_AREA if width >= 2 * MAX_WIDTH else cv2.INTER_LINEAR
        picture = cv2.resize(picture, size, interpolation=method)
    done, data = cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY])
    if not done:
        raise ValueError(f"OpenCV cannot encode a picture of shape {picture.shape} as JPEG")
    return bytes(data)
