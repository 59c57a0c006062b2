"""Runs a job: hands files to workers, notes what becomes of each, puts results into their places."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace
from uuid import uuid4

from pcmoe_det.errors import OutputError
from pcmoe_det.offline.job import JobOptions, SourceFile, fingerprint_of, output_name, printable
from pcmoe_det.offline.output_folder import OutputFolder
from pcmoe_det.offline.plan import JobPlan
from pcmoe_det.offline.pool import PoolEvent, WorkerPool
from pcmoe_det.offline.report import JobReport
from pcmoe_det.offline.status import FileStatus, settings_id
from pcmoe_det.offline.worker import FileOutcome, FileTask

__all__ = ["JobProgress", "JobRunner"]

_log = logging.getLogger(__name__)

_POLL_SECONDS = 0.2


@dataclass(frozen=True)
class JobProgress:
    """Where a job is.

    Attributes:
        files_ended: Done or failed in this run.
        files_failed: Of these, failed.
        frames: Processed in this run, those of unfinished files too.
        frames_per_second: Over the time since the first file was given to a worker.
    """

    files_ended: int
    files_failed: int
    frames: int
    frames_per_second: float


@dataclass
class _Attempt:
    """A file that a worker has."""

    file: SourceFile
    status: FileStatus
    started_seconds: float
    frames: int = 0


class JobRunner:
    """One run of a job. Call ``run`` once.

    A file whose worker dies is tried once more, after all others: if it is the file that kills, it does so
    last. Any other failure is final for this run.

    Args:
        options: The job.
        plan: What is to do.
        output: The open output folder.
        pool: Its workers; killed when the run is stopped or fails, closed otherwise.
        should_stop: Asked several times a second; True ends the run within a second, keeping what is whole.
        on_progress: Told as often.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        options: JobOptions,
        plan: JobPlan,
        output: OutputFolder,
        pool: WorkerPool,
        *,
        should_stop: Callable[[], bool] = lambda: False,
        on_progress: Callable[[JobProgress], None] = lambda _: None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._options, self._plan, self._output, self._pool = options, plan, output, pool
        self._should_stop, self._on_progress, self._clock = should_stop, on_progress, clock
        self._settings = settings_id(options.settings)
        self._waiting = deque(plan.to_do)
        self._again: deque[SourceFile] = deque()
        self._died: set[str] = set()
        self._running: dict[str, _Attempt] = {}
        self._ended: dict[str, FileStatus] = {}
        self._frames_ended = 0
        self._first_seconds: float | None = None

    def run(self) -> JobReport:
        """Process everything.

        Raises:
            PcmoeError: The workers cannot start, or the status cannot be written.
        """
        started_seconds = self._clock()
        stopped = False
        try:
            while self._waiting or self._running or self._again:
                stopped = self._should_stop()
                if stopped:
                    break
                self._step()
                self._on_progress(self._progress())
        except BaseException:
            self._pool.kill()
            for attempt in self._running:
                self._output.end_attempt(attempt)
            raise
        interrupted = self._interrupt() if stopped else ()
        if not stopped:
            self._pool.close()
        return JobReport(
            plan=self._plan,
            ended=tuple(self._ended.values()),
            interrupted=interrupted,
            not_started=sum(file.name not in self._ended for file in self._waiting),
            stopped=stopped,
            elapsed_seconds=self._clock() - started_seconds,
        )

    def _step(self) -> None:
        if not self._waiting and not self._running:
            self._waiting, self._again = self._again, self._waiting
        self._pool.ensure(len(self._waiting) + len(self._running))
        while self._waiting and self._pool.idle:
            self._start(self._waiting.popleft())
        for event in self._pool.poll(_POLL_SECONDS):
            if event.frames is not None:
                self._running[event.attempt].frames = event.frames
            else:
                self._end(event)

    def _start(self, file: SourceFile) -> None:
        """Give a file to a worker, unless its results could not be put into their places."""
        attempt = uuid4().hex
        status = FileStatus(
            file.name, "started", attempt, self._settings, fingerprint=fingerprint_of(file.path)
        )
        try:
            self._make_room(self._output_names(file))
        except OutputError as error:
            before = self._output.journal.partial_of(file.name)
            status = replace(status, state="failed", error=str(error), partial=before)
            self._output.journal.append(status)
            self._note_end(status)
            return
        self._output.journal.append(status)
        task = FileTask(
            attempt=attempt,
            source=file.path,
            staging=self._output.start_attempt(attempt),
            video=self._options.video,
            score_threshold=self._options.score_threshold,
            max_frames=self._options.max_frames,
        )
        now_seconds = self._clock()
        if self._first_seconds is None:
            self._first_seconds = now_seconds
        self._running[attempt] = _Attempt(file, status, now_seconds)
        self._ended.pop(file.name, None)
        self._pool.submit(task)

    def _end(self, event: PoolEvent) -> None:
        running = self._running.pop(event.attempt)
        if event.outcome is not None:
            status = self._settle(running, event.outcome)
        else:
            first_time = running.file.name not in self._died
            self._died.add(running.file.name)
            status = replace(
                running.status,
                state="failed",
                frames=running.frames,
                seconds=self._clock() - running.started_seconds,
                error=event.death,
                partial=self._output.journal.partial_of(running.file.name),
                retry=first_time,
            )
            self._output.journal.append(status)
            if first_time:
                self._again.append(running.file)
        self._output.end_attempt(event.attempt)
        self._note_end(status)

    def _note_end(self, status: FileStatus) -> None:
        self._frames_ended += status.frames
        self._ended[status.source] = status
        if status.state == "failed":
            _log.info("%s failed: %s", printable(status.source), status.error)

    def _settle(self, running: _Attempt, outcome: FileOutcome) -> FileStatus:
        """Put a result into its place, or note why there is none."""
        attempt, names = running.status.attempt, self._output_names(running.file)
        status = replace(
            running.status,
            fingerprint=outcome.fingerprint,
            frames=outcome.frames,
            seconds=outcome.seconds,
            faults=outcome.faults,
        )
        before = self._output.journal.partial_of(running.file.name)
        try:
            if outcome.error is not None:
                raise OutputError(outcome.error)
            self._make_room(names)
            status = replace(status, state="done", outputs=self._output.staged(attempt, names))
            # From here on it is done: a crash before the move ends is made good by ``recover``.
            self._output.journal.append(status)
            self._output.move_into_place(attempt, status.outputs)
            self._output.drop_partial(before)
        except OutputError as error:
            if status.state == "done" and self._output.journal.latest[status.source] != status:
                raise  # the status itself cannot be written
            partial = self._output.keep_partial(attempt, names, before)
            reason = str(error)
            if outcome.error is None and partial:
                reason += f"; what was made is kept as {', '.join(map(printable, partial))}"
            status = replace(status, state="failed", outputs=(), error=reason, partial=partial)
            self._output.journal.append(status)
        return status

    def _make_room(self, names: tuple[str, ...]) -> None:
        """Make the folders of outputs, and see that nothing is in their places that is to stay.

        Raises:
            OutputError: Something is, or a folder cannot be made.
        """
        for name in names:
            obstacle = self._output.obstacle(name, overwrite=self._options.overwrite)
            if obstacle is not None:
                raise OutputError(
                    f"{obstacle}; move it away or add --overwrite, and run again with --retry-failed"
                )
        self._output.make_parents(names)

    def _interrupt(self) -> tuple[FileStatus, ...]:
        """Give up what is under way; it is done from its start in the next run."""
        self._pool.kill()
        now_seconds = self._clock()
        statuses = tuple(
            replace(
                attempt.status,
                state="interrupted",
                frames=attempt.frames,
                seconds=now_seconds - attempt.started_seconds,
                error="the run was stopped",
            )
            for attempt in self._running.values()
        )
        if statuses:
            self._output.journal.append(*statuses)
        for status in statuses:
            self._output.end_attempt(status.attempt)
        return statuses

    def _output_names(self, file: SourceFile) -> tuple[str, ...]:
        return tuple(output_name(file.name, suffix) for suffix in self._options.output_suffixes)

    def _progress(self) -> JobProgress:
        frames = self._frames_ended + sum(attempt.frames for attempt in self._running.values())
        elapsed = 0.0 if self._first_seconds is None else self._clock() - self._first_seconds
        return JobProgress(
            files_ended=len(self._ended),
            files_failed=sum(status.state == "failed" for status in self._ended.values()),
            frames=frames,
            frames_per_second=frames / elapsed if elapsed > 0 else 0.0,
        )
