"""Reader, detector and renderer threads, joined by bounded queues.

    source -> [reader] -> queue -> [detector] -> queue -> [renderer] -> sinks

How it ends, whatever the state the threads are in:

* The source ends: end markers run down the queues; everything read is written.
* ``stop()``: reading ends, frames that wait for the detector are dropped and counted as ``stopped``, the
  frame in the detector and all results before it are written, files are closed. A detector that needs
  longer than ``stop_grace_seconds`` for its frame is left behind (its thread is a daemon).
* A stage fails: the stages before it are ended, those after it write what they already have, sinks are told
  ``failed``, and ``close()`` raises the first error. Later errors are logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any

from pcmoe_det.errors import PcmoeError
from pcmoe_det.streaming.queues import BoundedQueue, QueuePolicy
from pcmoe_det.streaming.sinks import ResultSink, SinkOutcome
from pcmoe_det.streaming.sources import FrameSource
from pcmoe_det.streaming.stages import StageError, StreamLane, detect_frames, read_frames, render_results
from pcmoe_det.streaming.summary import StreamSummary
from pcmoe_det.structures import AccountingDetector, FrameDetector

__all__ = ["StreamPipeline"]

_log = logging.getLogger(__name__)

# A file's frames may wait: four keep the detector busy while one slow frame is decoded. A live frame that
# waits is late, so only the newest does.
_FILE_QUEUE_CAPACITY = 4
_LIVE_QUEUE_CAPACITY = 1
_RESULT_QUEUE_CAPACITY = 4
# With the grace of ``stop`` below 2 s together.
_STOP_GRACE_SECONDS = 1.2
_JOIN_SECONDS = 0.5


class StreamPipeline:
    """Runs one source through a detector into sinks.

    States: new -> ``start`` -> running -> finished (``wait`` returns True) -> ``close`` -> closed. As a
    context manager it starts on entry and stops and closes on exit. ``start``, ``wait`` and ``close`` belong
    to one thread, usually the main one; ``stop`` may be called from any thread, in any state, more than once.
    It takes locks, so a signal handler must set a flag and let the main thread call it.

    Args:
        source: An open source; closed by the pipeline.
        detector: Called from the detector thread only, one frame at a time.
        sinks: Written to in order by the renderer thread; closed by it whatever happens.
        score_threshold: Detections below are left out.
        max_frames: Stop reading after so many; None reads to the end.
        policy: What a full queue before the detector does; by default every frame for files and the
            freshest for live sources.
        stop_grace_seconds: How long ``stop`` waits for the frame in the detector and for waiting results.
        clock: Seconds, monotonic; the clock of the source's ``captured_at_seconds``.
    """

    def __init__(
        self,
        source: FrameSource,
        detector: FrameDetector,
        sinks: Sequence[ResultSink],
        *,
        score_threshold: float = 0.0,
        max_frames: int | None = None,
        policy: QueuePolicy | None = None,
        stop_grace_seconds: float = _STOP_GRACE_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if policy is None:
            policy = QueuePolicy.FRESHEST if source.is_live else QueuePolicy.EVERY_FRAME
        capacity = _LIVE_QUEUE_CAPACITY if source.is_live else _FILE_QUEUE_CAPACITY
        self._lane = StreamLane(
            source=source,
            sinks=sinks,
            to_detect=BoundedQueue(capacity, policy=policy),
            to_render=BoundedQueue(_RESULT_QUEUE_CAPACITY),
            clock=clock,
        )
        self._detector = detector
        self._score_threshold = score_threshold
        self._max_frames = max_frames
        self._stop_grace_seconds = stop_grace_seconds
        self._lock = threading.Lock()
        self._first_error: BaseException | None = None
        self._stop_requested = False
        self._finished = threading.Event()
        self._outcome: SinkOutcome = "complete"
        self._outputs: list[Path] = []
        self._started = False
        self._started_seconds = 0.0
        self._ended_seconds = 0.0
        self._grace_timer: threading.Timer | None = None
        self._threads = [
            threading.Thread(target=target, name=f"pcmoe-{name}", daemon=True)
            for name, target in (
                ("reader", self._read),
                ("detector", self._detect),
                ("renderer", self._render),
            )
        ]

    def start(self) -> None:
        """Start the threads."""
        self._started = True
        self._started_seconds = self._lane.clock()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask for an early end. Returns at once; ``wait`` tells when the sinks are closed."""
        with self._lock:
            if self._stop_requested or self._finished.is_set():
                return
            self._stop_requested = True
            # Results waiting behind a slow sink, or a slow frame in the detector: given up in time.
            self._grace_timer = threading.Timer(self._stop_grace_seconds, self._give_up_waiting)
            self._grace_timer.daemon = True
            self._grace_timer.start()
        self._lane.source.interrupt()
        self._lane.to_detect.close(cause="stopped")

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the renderer has closed the sinks; False if that takes longer than the time-out."""
        return self._finished.wait(timeout_seconds)

    def close(self) -> StreamSummary:
        """Wait for the end, join the threads and close the source.

        A reader or detector that is still busy after a stop or a failure is left behind: ``threads_left``.
        Closing a pipeline that was never started closes its sinks and its source.

        Raises:
            PcmoeError: The first error of any stage.
        """
        if not self._started:
            self._stop_requested = True
            self._close_sinks()
            self._finished.set()
        self._finished.wait()
        if self._grace_timer is not None:
            self._grace_timer.cancel()
        deadline_seconds = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads if self._started else ():
            thread.join(max(0.0, deadline_seconds - time.monotonic()))
        if self._threads[0].is_alive():
            # Closing a source under a thread that reads from it would crash the process.
            _log.warning("%s is still being read and stays open", self._lane.source.source_id)
        else:
            self._lane.source.close()
        if self._first_error is not None:
            raise self._first_error
        return self.summary()

    def run(self) -> StreamSummary:
        """``start``, wait for the end, ``close``."""
        self.start()
        return self.close()

    def __enter__(self) -> StreamPipeline:
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.stop()
        try:
            self.close()
        except PcmoeError as own_error:
            if error is None:
                raise
            _log.error("while ending after another error: %s", own_error)

    @property
    def threads_left(self) -> list[str]:
        """Names of threads that have not ended."""
        return [thread.name for thread in self._threads if thread.is_alive()]

    @property
    def counts(self) -> dict[str, int]:
        """``read``, ``detected`` and ``written`` so far."""
        metrics = self._lane.metrics
        return {name: metrics.value(name) for name in ("read", "detected", "written")}

    def summary(self) -> StreamSummary:
        """What was done so far; final once ``wait`` has returned True."""
        lane = self._lane
        read, detected, written = (lane.metrics.value(name) for name in ("read", "detected", "written"))
        ended_seconds = self._ended_seconds if self._finished.is_set() else lane.clock()
        return StreamSummary(
            source=lane.source.source_id,
            outcome=self._outcome,
            frames_read=read,
            frames_detected=detected,
            frames_written=written,
            frames_dropped=self._dropped(read, detected, written),
            source_faults=dict(lane.source.faults),
            elapsed_seconds=ended_seconds - self._started_seconds,
            latency=lane.metrics.latencies(),
            outputs=tuple(self._outputs),
            accounting=self._accounting(),
        )

    def _accounting(self) -> dict[str, Any]:
        return self._detector.accounting() if isinstance(self._detector, AccountingDetector) else {}

    def _dropped(self, read: int, detected: int, written: int) -> dict[str, int]:
        """Frames lost, by cause: the queues' counts, and at the end the frames that a stage took and did not
        hand on, because it failed or was left behind."""
        before, after = self._lane.to_detect.dropped, self._lane.to_render.dropped
        dropped = Counter(before)
        dropped.update(after)
        if self._finished.is_set():
            lost = read - detected - sum(before.values())
            if self._lane.sinks:
                lost += detected - written - sum(after.values())
            if lost > 0:
                dropped["failed" if self._first_error is not None else "stopped"] += lost
        return dict(dropped)

    def _read(self) -> None:
        try:
            read_frames(self._lane, max_frames=self._max_frames)
        except BaseException as error:
            self._fail("reader", error)
        finally:
            self._lane.to_detect.finish()

    def _detect(self) -> None:
        try:
            detect_frames(self._lane, self._detector, score_threshold=self._score_threshold)
        except BaseException as error:
            self._fail("detector", error)
            self._lane.to_detect.close(cause="failed")
            self._lane.source.interrupt()
        finally:
            self._lane.to_render.finish()

    def _render(self) -> None:
        try:
            try:
                render_results(self._lane, class_names=self._detector.class_names)
            except BaseException as error:
                self._fail("renderer", error)
                self._lane.to_render.close(cause="failed")
                self._lane.to_detect.close(cause="failed")
                self._lane.source.interrupt()
            self._close_sinks()
        finally:
            self._ended_seconds = self._lane.clock()
            self._finished.set()

    def _close_sinks(self) -> None:
        """Every sink is closed, also when one of them fails in it."""
        for sink in self._lane.sinks:
            with self._lock:
                if self._first_error is not None:
                    self._outcome = "failed"
                elif self._stop_requested:
                    self._outcome = "interrupted"
                outcome = self._outcome
            try:
                self._outputs += sink.close(outcome)
            except BaseException as error:
                self._fail("renderer", error)
        with self._lock:
            if self._first_error is not None:
                self._outcome = "failed"
            elif self._stop_requested:
                self._outcome = "interrupted"

    def _give_up_waiting(self) -> None:
        self._lane.to_render.close(cause="stopped")

    def _fail(self, stage: str, error: BaseException) -> None:
        """Keep the first error for the caller, log the others."""
        if not isinstance(error, PcmoeError):
            wrapped = StageError(f"the {stage} failed: {type(error).__name__}: {error}")
            wrapped.__cause__ = error
            error = wrapped
        with self._lock:
            if self._first_error is None:
                self._first_error = error
                return
        _log.error("after the first error, the %s also failed: %s", stage, error)
