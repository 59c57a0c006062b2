"""Reader, detector and renderer threads, joined by bounded queues.

    source -> [reader] -> queue \\                /-> queue -> [renderer] -> sinks
    source -> [reader] -> queue ---> [detector] ---> queue -> [renderer] -> sinks
    source -> [reader] -> queue /                \\-> queue -> [renderer] -> sinks

Each stream has a reader and a renderer of its own; one detector serves them in turn. How it ends, whatever
the state the threads are in:

* A source ends: end markers run down its queues; everything read is written, its files are closed and the
  source is, while other streams go on.
* ``stop()``: reading ends, frames that wait for the detector are dropped and counted as ``stopped``, the
  frame in the detector and all results before it are written, files are closed. A detector that needs
  longer than ``stop_grace_seconds`` for its frame is left behind (its thread is a daemon). So is an output
  that takes no frame for ``stuck_seconds`` more; its stream has failed then.
* A stage of a stream fails: the stages of that stream before it are ended, those after it write what they
  already have, its sinks are told ``failed``. Other streams are not disturbed. ``close()`` raises the
  first error of all; later errors are logged.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from pcmoe_det.errors import PcmoeError
from pcmoe_det.streaming.failures import StageError
from pcmoe_det.streaming.lanes import Stream, StreamLane
from pcmoe_det.streaming.scheduling import Bell, take_in_turn
from pcmoe_det.streaming.stages import detect_in_turn, read_frames, render_results
from pcmoe_det.streaming.summary import StreamSummary
from pcmoe_det.structures import AccountingDetector, FrameDetector

__all__ = ["DETECTOR_THREAD", "StreamPipeline"]

DETECTOR_THREAD = "pcmoe-detector"
"""Name of the thread that runs the model."""

_log = logging.getLogger(__name__)

# With the grace of ``stop`` below 2 s together.
_STOP_GRACE_SECONDS = 1.2
_JOIN_SECONDS = 0.5
# Closing a long video may take seconds and is waited for; one frame never takes this long.
_STUCK_SECONDS = 10.0


class StreamPipeline:
    """Runs several sources through one detector, each into its own sinks.

    States: new -> ``start`` -> running -> finished (``wait`` returns True) -> ``close`` -> closed. As a
    context manager it starts on entry and stops and closes on exit. ``start``, ``wait`` and ``close`` belong
    to one thread, usually the main one; ``stop``, ``counts`` and ``summaries`` may be called from any thread,
    in any state, more than once. ``stop`` takes locks, so a signal handler must set a flag and let the main
    thread call it.

    Args:
        streams: At least one. The detector is shared fairly: streams with a waiting frame take turns. Streams
            whose sources have the same name share what the detector keeps per stream.
        detector: Called from the detector thread only, one frame at a time. One that keeps something per
            stream (``StreamAwareDetector``) is told which stream a frame is of, and to forget a stream at
            a gap and at its end.
        score_threshold: Detections below are left out.
        max_latency_seconds: Frames of live sources (and of any in mode ``freshest``) that the detector
            could not answer within this time from their capture are dropped before detection and counted as
            ``too_late``. None keeps them.
        stop_grace_seconds: How long ``stop`` waits for the frame in the detector and for waiting results.
        stuck_seconds: How much longer it waits for an output that does not come back.
        clock: Seconds, monotonic; the clock of the sources' ``captured_at_seconds``.

    Raises:
        ValueError: No stream, or a mode that does not exist.
    """

    def __init__(
        self,
        streams: Sequence[Stream],
        detector: FrameDetector,
        *,
        score_threshold: float = 0.0,
        max_latency_seconds: float | None = None,
        stop_grace_seconds: float = _STOP_GRACE_SECONDS,
        stuck_seconds: float = _STUCK_SECONDS,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        if not streams:
            raise ValueError("a pipeline needs at least one stream")
        self._detector = detector
        self._score_threshold = score_threshold
        self._stop_grace_seconds = stop_grace_seconds
        self._stuck_seconds = stuck_seconds
        self._bell = Bell()
        self._lock = threading.Lock()
        self._first_error: PcmoeError | None = None
        self._running = len(streams)
        self._stop_requested = False
        self._finished = threading.Event()
        self._started = False
        self._timers: list[threading.Timer] = []
        self._lanes = [
            StreamLane(
                stream,
                max_latency_seconds=max_latency_seconds,
                clock=clock,
                on_change=self._bell.ring,
                on_failure=self._note_failure,
            )
            for stream in streams
        ]
        self._readers = [self._thread("reader", n, lane) for n, lane in enumerate(self._lanes, start=1)]
        self._renderers = [self._thread("renderer", n, lane) for n, lane in enumerate(self._lanes, start=1)]
        self._detector_thread = threading.Thread(target=self._detect, name=DETECTOR_THREAD, daemon=True)

    def start(self) -> None:
        """Start the threads."""
        self._started = True
        for lane in self._lanes:
            lane.started_seconds = lane.clock()
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        """Ask for an early end. Returns at once; ``wait`` tells when the sinks are closed."""
        with self._lock:
            if self._stop_requested or self._finished.is_set():
                return
            self._stop_requested = True
            # Results waiting behind a slow sink, or a slow frame in the detector: given up in time.
            grace = self._stop_grace_seconds
            for seconds, give_up in ((grace, self._drop_results), (grace + self._stuck_seconds, self._leave)):
                timer = threading.Timer(seconds, give_up)
                timer.daemon = True
                timer.start()
                self._timers.append(timer)
        for lane in self._lanes:
            lane.stop()

    def wait(self, timeout_seconds: float | None = None) -> bool:
        """Wait until the sinks of all streams are closed; False if that takes longer than the time-out."""
        return self._finished.wait(timeout_seconds)

    def close(self) -> list[StreamSummary]:
        """Wait for the end, join the threads and see to it that the sources are closed.

        A reader or detector that is still busy after a stop or a failure is left behind: ``threads_left``.
        Closing a pipeline that was never started closes its sinks and its sources.

        Returns:
            One summary a stream, in the order of the streams.

        Raises:
            PcmoeError: The first error of any stage of any stream.
        """
        if not self._started and not self._finished.is_set():
            self._close_unstarted()
        self._finished.wait()
        for timer in self._timers:
            timer.cancel()
        deadline_seconds = time.monotonic() + _JOIN_SECONDS
        for thread in self._threads if self._started else ():
            thread.join(max(0.0, deadline_seconds - time.monotonic()))
        for lane, reader in zip(self._lanes, self._readers, strict=True):
            if reader.is_alive():
                # Closing a source under a thread that reads from it would crash the process.
                _log.warning("%s is still being read and stays open", lane.name)
        if self._first_error is not None:
            raise self._first_error
        return self.summaries()

    def run(self) -> list[StreamSummary]:
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
    def counts(self) -> list[dict[str, int]]:
        """``read``, ``detected`` and ``written`` so far, by stream."""
        return [
            {name: lane.metrics.value(name) for name in ("read", "detected", "written")}
            for lane in self._lanes
        ]

    def summaries(self) -> list[StreamSummary]:
        """What was done so far, by stream; final once ``wait`` has returned True.

        ``accounting``, which covers all streams together, is there in the end only: the detector is not asked
        while it works.
        """
        accounting = self._accounting() if self._finished.is_set() else {}
        return [lane.summary(accounting) for lane in self._lanes]

    @property
    def _threads(self) -> list[threading.Thread]:
        return [*self._readers, self._detector_thread, *self._renderers]

    def _accounting(self) -> dict[str, Any]:
        return self._detector.accounting() if isinstance(self._detector, AccountingDetector) else {}

    def _thread(self, stage: str, number: int, lane: StreamLane) -> threading.Thread:
        target = self._read if stage == "reader" else self._render
        return threading.Thread(target=target, args=(lane,), name=f"pcmoe-{stage}-{number}", daemon=True)

    def _read(self, lane: StreamLane) -> None:
        try:
            read_frames(lane)
        except BaseException as error:
            lane.fail("reader", error)
        finally:
            lane.to_detect.finish()
            lane.close_source()

    def _detect(self) -> None:
        try:
            detect_in_turn(
                take_in_turn(self._lanes, self._bell),
                self._detector,
                score_threshold=self._score_threshold,
                on_failure=_fail_detection,
            )
        except BaseException as error:
            for lane in self._lanes:
                if not lane.to_render.has_ended:
                    _fail_detection(lane, error)
        finally:
            for lane in self._lanes:
                lane.to_render.finish()

    def _render(self, lane: StreamLane) -> None:
        try:
            try:
                render_results(lane, class_names=self._detector.class_names)
            except BaseException as error:
                lane.fail("renderer", error)
                lane.to_render.close(cause="failed")
                lane.to_detect.close(cause="failed")
                lane.interrupt()
            lane.close_sinks()
        finally:
            self._finish(lane)

    def _finish(self, lane: StreamLane) -> None:
        if not lane.finish():
            return
        with self._lock:
            self._running -= 1
            if self._running == 0:
                self._finished.set()

    def _close_unstarted(self) -> None:
        for lane in self._lanes:
            lane.stop()
            lane.close_sinks()
            lane.close_source()
            self._finish(lane)

    def _drop_results(self) -> None:
        for lane in self._lanes:
            lane.to_render.close(cause="stopped")

    def _leave(self) -> None:
        """Leave outputs behind that have not come back from a frame."""
        for lane in self._lanes:
            stage = lane.writing_to
            if stage is not None and not lane.finished.is_set():
                waited_seconds = self._stop_grace_seconds + self._stuck_seconds
                lane.fail(
                    "renderer",
                    StageError(
                        f"the {stage} output of {lane.name} did not take a frame within "
                        f"{waited_seconds:.0f} s after the stop; its files are unfinished"
                    ),
                )
                lane.outcome = "failed"
                self._finish(lane)

    def _note_failure(self, error: PcmoeError) -> None:
        with self._lock:
            if self._first_error is None:
                self._first_error = error
                return
        _log.error("another stream failed too: %s", error)


def _fail_detection(lane: StreamLane, error: BaseException) -> None:
    """A lane whose frame the detector could not answer: what was answered before is still written."""
    lane.fail("detector", error)
    lane.to_detect.close(cause="failed")
    lane.to_render.finish()
    lane.interrupt()
