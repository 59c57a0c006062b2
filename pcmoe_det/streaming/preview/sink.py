"""What the preview sees of one stream: an output like any other."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.streaming.preview.history import History, RateMeter, Sample, quantile
from pcmoe_det.streaming.preview.pictures import PictureFeed
from pcmoe_det.streaming.preview.prometheus import BYTES_BOUNDS, SECONDS_BOUNDS, Histogram
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.structures import FrameResult

__all__ = ["PreviewSink", "SinkSnapshot", "StreamState"]

StreamState = Literal["starting", "live", "stalled", "finished", "interrupted", "failed"]
"""``starting``: no frame yet, and not for too long. ``live``: frames come. ``stalled``: none for too long.
The others: how the stream ended."""

_ENDED: dict[SinkOutcome, StreamState] = {
    "complete": "finished",
    "interrupted": "interrupted",
    "failed": "failed",
}
_LATENCY_WINDOW_SECONDS = 5.0
_LATENCIES_KEPT = 2048


@dataclass(frozen=True, slots=True)
class SinkSnapshot:
    """A stream as its sink knows it at one moment.

    Attributes:
        name: Unique among the server's streams.
        state: See ``StreamState``.
        silent_seconds: Since the last frame, or since the start where there was none.
        frames: Results taken.
        detections: Objects in them.
        gaps: Frames that came after a loss, by its cause.
        width: Of the newest frame, in pixels; 0 before it.
        height: The same.
        latency: By stage, in seconds.
        expert_read_bytes: Bytes of experts read for a frame; None where the detector does not count them.
    """

    name: str
    state: StreamState
    silent_seconds: float
    frames: int
    detections: int
    gaps: dict[str, int]
    width: int
    height: int
    latency: dict[str, Histogram]
    expert_read_bytes: Histogram | None


class PreviewSink:
    """Counts every frame and hands pictures on while somebody watches. ``PreviewServer.sink`` makes one.

    It costs the renderer thread some microseconds a frame, and never raises.

    Args:
        name: Of the stream, unique.
        pictures: Where pictures go.
        stall_seconds: Without a frame for longer than this, the stream counts as stalled.
        clock: Seconds, monotonic.
    """

    stage = "preview"

    def __init__(
        self,
        name: str,
        pictures: PictureFeed,
        *,
        stall_seconds: float,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.name = name
        self.pictures = pictures
        self.history = History()
        self._stall_seconds = stall_seconds
        self._clock = clock
        self._lock = threading.Lock()
        self._last_seconds = clock()
        self._frames = 0
        self._detections = 0
        self._gaps: dict[str, int] = {}
        self._size = (0, 0)
        self._ended: StreamState | None = None
        self._latency: dict[str, Histogram] = {}
        self._expert_read_bytes: Histogram | None = None
        self._recent: deque[tuple[float, float]] = deque(maxlen=_LATENCIES_KEPT)
        self._rate = RateMeter(1)
        self._asked = False
        self._drawn_anyway = False

    @property
    def needs_picture(self) -> bool:
        """Whether somebody watches and the next picture is due."""
        self._asked = self.pictures.is_wanted
        return self._asked

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:
        """Count a frame; see ``ResultSink.write``."""
        now_seconds = self._clock()
        frame = result.frame
        with self._lock:
            self._last_seconds = now_seconds
            self._frames += 1
            self._detections += len(result.detections)
            self._size = (frame.image.shape[1], frame.image.shape[0])
            if frame.gap is not None:
                self._gaps[frame.gap.cause] = self._gaps.get(frame.gap.cause, 0) + 1
            for stage, value_ms in result.latency_ms.items():
                histogram = self._latency.get(stage)
                if histogram is None:
                    histogram = self._latency[stage] = Histogram(SECONDS_BOUNDS)
                histogram.add(max(0.0, value_ms) / 1e3)
            total_ms = result.latency_ms.get("total")
            if total_ms is not None:
                self._recent.append((now_seconds, total_ms))
            bytes_read = result.detections.accounting.get("bytes_read")
            if bytes_read is not None:
                if self._expert_read_bytes is None:
                    self._expert_read_bytes = Histogram(BYTES_BOUNDS)
                self._expert_read_bytes.add(float(bytes_read))
        if not self._asked:  # who asked, then? Another output, which will ask again
            self._drawn_anyway = picture is not None
        if picture is not None:
            drawing_ms = 0.0 if self._drawn_anyway else result.latency_ms.get("render", 0.0)
            self.pictures.offer(picture, frame_index=frame.frame_index, drawing_seconds=drawing_ms / 1e3)

    def close(self, outcome: SinkOutcome) -> list[Path]:
        """The stream ended; the page keeps showing it."""
        with self._lock:
            self._ended = _ENDED[outcome]
        return []

    def sample(self, *, number: int, seconds: float) -> None:
        """Add frames per second and the p50 and p99 of the total latency (ms) to the history.

        Called once a second by the server. Nothing is added once the stream has ended.
        """
        now_seconds = self._clock()
        with self._lock:
            if self._ended is not None:
                return
            frames, started = self._frames, self._frames > 0
            while self._recent and self._recent[0][0] < now_seconds - _LATENCY_WINDOW_SECONDS:
                self._recent.popleft()
            latencies_ms = [value_ms for _, value_ms in self._recent]
        if not started:  # the time until the first frame is no part of any rate
            self._rate = RateMeter(1)
        rates = self._rate.read(seconds, frames)
        latencies_ms.sort()
        values = (rates[0] if rates and started else None, *(quantile(latencies_ms, q) for q in (0.5, 0.99)))
        rounded = tuple(None if value is None else round(value, 2) for value in values)
        self.history.add(Sample(number, seconds, rounded))

    def snapshot(self) -> SinkSnapshot:
        """The stream now; a copy."""
        now_seconds = self._clock()
        with self._lock:
            silent_seconds = max(0.0, now_seconds - self._last_seconds)
            bytes_read = self._expert_read_bytes
            return SinkSnapshot(
                name=self.name,
                state=self._state(silent_seconds),
                silent_seconds=silent_seconds,
                frames=self._frames,
                detections=self._detections,
                gaps=dict(self._gaps),
                width=self._size[0],
                height=self._size[1],
                latency={stage: histogram.copy() for stage, histogram in self._latency.items()},
                expert_read_bytes=None if bytes_read is None else bytes_read.copy(),
            )

    def _state(self, silent_seconds: float) -> StreamState:
        if self._ended is not None:
            return self._ended
        if silent_seconds > self._stall_seconds:
            return "stalled"
        return "live" if self._frames else "starting"
