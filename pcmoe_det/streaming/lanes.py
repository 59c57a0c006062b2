"""One stream of a pipeline: what a caller says about it, and what its threads share."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pcmoe_det.errors import PcmoeError
from pcmoe_det.streaming.failures import FailureStreak, as_stage_error
from pcmoe_det.streaming.metrics import StreamMetrics
from pcmoe_det.streaming.modes import StreamMode, choose_policy
from pcmoe_det.streaming.queues import BoundedQueue, QueuePolicy
from pcmoe_det.streaming.shedding import LatencyLimit
from pcmoe_det.streaming.sinks import ResultSink, SinkOutcome
from pcmoe_det.streaming.sources import FrameSource
from pcmoe_det.streaming.summary import StreamSummary
from pcmoe_det.streaming.tracking import Tracker
from pcmoe_det.structures import Frame, FrameResult, Gap

__all__ = ["ReadFrame", "Stream", "StreamLane", "merged_gap"]

_log = logging.getLogger(__name__)

# A file's frames may wait: four keep the detector busy while one slow frame is decoded. A live frame that
# waits is late, so only the newest does.
_EVERY_FRAME_CAPACITY = 4
_FRESHEST_CAPACITY = 1
_RESULT_CAPACITY = 4
# A second or less of video: after that it is not the frames that are bad.
_LIVE_FAILURES_IN_A_ROW = 10


@dataclass(frozen=True)
class Stream:
    """One source with its outputs.

    Attributes:
        source: An open source; closed by the pipeline.
        sinks: Written to in order by one thread, each seeing the latency of those before; closed by the
            pipeline whatever happens.
        mode: Which frames are detected, see ``STREAM_MODES``; None is ``auto``.
        max_frames: Stop reading after so many; None reads to the end.
        tracker: Gives objects their numbers, or None.
    """

    source: FrameSource
    sinks: Sequence[ResultSink] = ()
    mode: StreamMode | None = field(default=None, kw_only=True)
    max_frames: int | None = field(default=None, kw_only=True)
    tracker: Tracker | None = field(default=None, kw_only=True)


@dataclass(frozen=True, slots=True, eq=False)
class ReadFrame:
    """A frame on its way to the detector."""

    frame: Frame
    read_ms: float
    read_at_seconds: float


class StreamLane:
    """One running stream: its queues, counters and end.

    The first failure of any of its stages ends it (``fail``) and leaves other lanes alone.

    Args:
        stream: What runs.
        max_latency_seconds: Frames that would be answered later than this are dropped before detection. Used
            for live sources and in mode ``freshest`` only: where every frame of a file is wanted, frames wait
            by design.
        clock: Seconds, monotonic; the clock of ``Frame.captured_at_seconds``.
        on_change: Called when there may be something to do for the detector.
        on_failure: Called once with this lane's first error.
    """

    def __init__(
        self,
        stream: Stream,
        *,
        max_latency_seconds: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        on_change: Callable[[], None] = lambda: None,
        on_failure: Callable[[PcmoeError], None] = lambda _: None,
    ) -> None:
        self.source, self.sinks, self.tracker = stream.source, tuple(stream.sinks), stream.tracker
        self.name = stream.source.source_id
        self.max_frames = stream.max_frames
        self.clock = clock
        self.metrics = StreamMetrics()
        is_live = stream.source.is_live
        policy = choose_policy(stream.mode, is_live=is_live)
        is_freshest = policy is QueuePolicy.FRESHEST
        capacity = _FRESHEST_CAPACITY if is_freshest else _EVERY_FRAME_CAPACITY
        self.to_detect: BoundedQueue[ReadFrame] = BoundedQueue(capacity, policy=policy, on_change=on_change)
        self.to_render: BoundedQueue[FrameResult] = BoundedQueue(_RESULT_CAPACITY, on_change=on_change)
        self.latency_limit = (
            LatencyLimit(max_latency_seconds, name=self.name)
            if max_latency_seconds is not None and (is_live or is_freshest)
            else None
        )
        failures_allowed = _LIVE_FAILURES_IN_A_ROW if is_live else 1
        self.detect_failures = FailureStreak(failures_allowed, clock=clock)
        self.render_failures = FailureStreak(failures_allowed, clock=clock)
        self.finished = threading.Event()
        self.error: PcmoeError | None = None
        self.outcome: SinkOutcome = "complete"
        self.outputs: list[Path] = []
        self.writing_to: str | None = None
        self.started_seconds = self.ended_seconds = 0.0
        self._on_failure = on_failure
        self._lock = threading.Lock()
        self._stop_requested = False
        self._source_closed = False
        self._gaps: deque[tuple[int, Gap]] = deque()

    def timed(self, stage: str, since_seconds: float) -> float:
        """Milliseconds since ``since_seconds``, also added to the latencies of ``stage``."""
        elapsed_ms = (self.clock() - since_seconds) * 1e3
        self.metrics.add_latency(stage, elapsed_ms)
        return elapsed_ms

    def note_gap(self, frame: Frame) -> None:
        """Remember the gap before this frame, which itself may be dropped. Reader thread."""
        if frame.gap is not None:
            self._gaps.append((frame.frame_index, frame.gap))

    def gaps_before(self, frame: Frame) -> list[Gap]:
        """Gaps between the last frame that was answered and this one. Detector thread."""
        return [gap for index, gap in tuple(self._gaps) if index <= frame.frame_index]

    def gaps_told(self, frame: Frame) -> None:
        """The gaps up to this frame reach the outputs with it. Detector thread."""
        while self._gaps and self._gaps[0][0] <= frame.frame_index:
            self._gaps.popleft()

    def interrupt(self) -> None:
        """End reading, from any thread."""
        if not self._source_closed:
            self.source.interrupt()

    def close_source(self) -> None:
        """Close the source, once; by the thread that reads it, or where no thread does."""
        if self._source_closed:
            return
        self._source_closed = True
        try:
            self.source.close()
        except Exception as error:  # what was read is whole all the same
            _log.warning("closing %s failed: %s", self.name, error)

    def stop(self) -> None:
        """End early: what waits for the detector is dropped, what it has answered is still written."""
        with self._lock:
            self._stop_requested = True
        self.interrupt()
        self.to_detect.close(cause="stopped")

    def fail(self, stage: str, error: BaseException) -> None:
        """Keep the first error, log later ones. Whoever calls it ends the stages before the failing one."""
        own_error = as_stage_error(f"the {stage} of {self.name} failed", error)
        with self._lock:
            is_first = self.error is None
            if is_first:
                self.error = own_error
        if is_first:
            self._on_failure(own_error)
        else:
            _log.error("after the first error of %s, the %s also failed: %s", self.name, stage, own_error)

    def close_sinks(self) -> None:
        """Close every sink, also when one of them fails in it, and settle the outcome."""
        for sink in self.sinks:
            try:
                self.outputs += sink.close(self._settle())
            except BaseException as error:
                self.fail("renderer", error)
        self._settle()

    def finish(self) -> bool:
        """The end of this lane; False if it had ended before."""
        with self._lock:
            if self.finished.is_set():
                return False
            self.ended_seconds = self.clock()
            self.finished.set()
        return True

    def dropped(self) -> dict[str, int]:
        """Frames lost, by cause: what queues and stages dropped, and at the end the frames that a stage took
        and did not hand on, because it failed or was left behind."""
        after = self.to_render.dropped
        dropped = Counter(self.to_detect.dropped)
        dropped.update(after)
        dropped.update(self.metrics.drops())
        if self.finished.is_set():
            read, detected, written = (self.metrics.value(name) for name in ("read", "detected", "written"))
            lost = read - sum(dropped.values())
            lost -= written if self.sinks else detected - sum(after.values())
            if lost > 0:
                dropped["failed" if self.error is not None else "stopped"] += lost
        return dict(dropped)

    def summary(self, accounting: Mapping[str, Any]) -> StreamSummary:
        """What was done so far; any thread."""
        is_over = self.finished.is_set()
        read, detected, written = (self.metrics.value(name) for name in ("read", "detected", "written"))
        return StreamSummary(
            source=self.name,
            outcome=self.outcome,
            frames_read=read,
            frames_detected=detected,
            frames_written=written,
            frames_dropped=self.dropped(),
            source_faults=dict(self.source.faults),
            source_seconds_lost=self.source.seconds_lost,
            elapsed_seconds=(self.ended_seconds if is_over else self.clock()) - self.started_seconds,
            latency=self.metrics.latencies(),
            outputs=tuple(self.outputs),
            error=None if self.error is None else str(self.error),
            accounting=accounting,
        )

    def _settle(self) -> SinkOutcome:
        with self._lock:
            if self.error is not None:
                self.outcome = "failed"
            elif self._stop_requested:
                self.outcome = "interrupted"
            return self.outcome


def merged_gap(frame: Frame, gaps: Sequence[Gap]) -> Frame:
    """``frame`` with one gap that stands for ``gaps``: the longest one's cause, all of their seconds."""
    if not gaps or (len(gaps) == 1 and gaps[0] is frame.gap):
        return frame
    longest = max(gaps, key=lambda gap: gap.seconds)
    return replace(frame, gap=Gap(cause=longest.cause, seconds=sum(gap.seconds for gap in gaps)))
