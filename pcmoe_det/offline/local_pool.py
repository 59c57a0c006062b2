"""Workers as processes of this machine."""

from __future__ import annotations

import atexit
import ctypes
import multiprocessing
import os
import queue
import shutil
import signal
import sys
import tempfile
import threading
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from multiprocessing import connection, resource_tracker
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

from pcmoe_det.offline.pool import (
    MOST_DEATHS_IN_OPENING,
    PoolEvent,
    WorkerFault,
    WorkerSetup,
    opening_fault,
    raise_fault,
)
from pcmoe_det.offline.worker import FileOutcome, FileTask, check_place, process_file

__all__ = ["LocalPool", "available_cores"]

_STOP_SIGNALS = {signal.SIGINT, signal.SIGTERM}
_CLOSE_SECONDS = 5.0
_KILL_SECONDS = 1.0
_PR_SET_PDEATHSIG = 1
_READY = "ready"


def available_cores() -> int:
    """Cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


class LocalPool:
    """Up to ``workers`` processes, each started afresh (not forked: threads and an open model do not
    survive that) and ended by the kernel when this one ends, however it ends.

    Signals that end this process are not for the workers: a Ctrl-C in a terminal and a service manager's
    SIGTERM reach them too, but this process decides.
    """

    def __init__(self, setup: WorkerSetup, *, workers: int) -> None:
        self._setup = setup
        self._most = workers
        self._workers: list[_Worker] = []
        self._deaths_in_opening = 0
        self._context = multiprocessing.get_context("spawn")
        # What a killed worker leaves in its temporary folder goes with the pool.
        self._temporary = Path(tempfile.mkdtemp(prefix="pcmoe-process-"))
        # At exit multiprocessing would send SIGTERM, which the workers do not hear, and wait for them.
        atexit.register(self.kill)

    @property
    def idle(self) -> int:
        return sum(worker.is_ready and worker.attempt is None for worker in self._workers)

    def ensure(self, files_left: int) -> None:
        while len(self._workers) < min(self._most, files_left):
            self._workers.append(self._start())

    def submit(self, task: FileTask) -> None:
        worker = next(worker for worker in self._workers if worker.is_ready and worker.attempt is None)
        worker.attempt = task.attempt
        with suppress(OSError):  # it has just died; the next ``poll`` says so
            worker.link.send(task)

    def poll(self, timeout_seconds: float) -> list[PoolEvent]:
        watched: list[Any] = [
            item for worker in self._workers for item in (worker.link, worker.process.sentinel)
        ]
        if not watched:
            time.sleep(timeout_seconds)
            return []
        changed = set(connection.wait(watched, timeout_seconds))
        events: list[PoolEvent] = []
        for worker in list(self._workers):
            if worker.link in changed or worker.process.sentinel in changed:
                events += self._read(worker)
        return events

    def kill(self) -> None:
        for worker in self._workers:
            worker.process.kill()
        deadline_seconds = time.monotonic() + _KILL_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline_seconds - time.monotonic()))
            worker.link.close()
        self._workers.clear()
        shutil.rmtree(self._temporary, ignore_errors=True)
        atexit.unregister(self.kill)

    def close(self) -> None:
        for worker in self._workers:
            with suppress(OSError):  # it has died
                worker.link.send(None)
        deadline_seconds = time.monotonic() + _CLOSE_SECONDS
        for worker in self._workers:
            worker.process.join(max(0.0, deadline_seconds - time.monotonic()))
        self.kill()

    def _start(self) -> _Worker:
        own_end, worker_end = self._context.Pipe()
        process = self._context.Process(
            target=_serve,
            args=(worker_end, self._setup, os.getpid(), self._temporary),
            name="pcmoe-worker",
            daemon=True,
        )
        # A new process inherits the mask, so it is deaf to stop signals from its first instruction on; those
        # that come for this one meanwhile are delivered after it. The tracker would lift the mask.
        resource_tracker.ensure_running()
        before = signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
        try:
            process.start()
        finally:
            signal.pthread_sigmask(signal.SIG_SETMASK, before)
        worker_end.close()
        return _Worker(process, own_end)

    def _read(self, worker: _Worker) -> list[PoolEvent]:
        """Everything a worker has sent; if it has ended, that too."""
        events = []
        has_ended = not worker.process.is_alive()
        try:
            while worker.link.poll():
                message = worker.link.recv()
                if isinstance(message, WorkerFault):
                    raise_fault(message)
                elif isinstance(message, FileOutcome):
                    events.append(PoolEvent(str(worker.attempt), outcome=message))
                    worker.attempt = None
                    if message.worn:
                        self._replace(worker)
                        return events
                elif isinstance(message, int) and worker.attempt is not None:
                    events.append(PoolEvent(worker.attempt, frames=message))
                elif message == _READY:
                    worker.is_ready = True
                    self._deaths_in_opening = 0
        except (EOFError, OSError):
            has_ended = True
        if has_ended:
            worker.process.join(_KILL_SECONDS)
            reason = _death(worker.process.exitcode)
            self._replace(worker)
            if worker.attempt is not None:
                events.append(PoolEvent(worker.attempt, death=reason))
            elif not worker.is_ready:
                self._deaths_in_opening += 1
                if self._deaths_in_opening >= MOST_DEATHS_IN_OPENING:
                    raise_fault(WorkerFault(f"{reason} while it opened the model, several times in a row", 1))
        return events

    def _replace(self, worker: _Worker) -> None:
        """Forget a worker; ``ensure`` starts another if there is work for it."""
        self._workers.remove(worker)
        worker.process.kill()
        worker.process.join(_KILL_SECONDS)
        worker.link.close()


@dataclass(eq=False)
class _Worker:
    """One process, as the pool sees it."""

    process: BaseProcess
    link: connection.Connection[Any, Any]
    is_ready: bool = False
    attempt: str | None = None


def _death(exit_code: int | None) -> str:
    if exit_code is not None and exit_code < 0:
        try:
            name = signal.Signals(-exit_code).name
        except ValueError:
            name = f"signal {-exit_code}"
        hint = "; was there enough memory?" if -exit_code == signal.SIGKILL else ""
        return f"the worker died ({name}{hint})"
    return f"the worker died (exit code {exit_code})"


def _serve(
    link: connection.Connection[Any, Any], setup: WorkerSetup, parent_pid: int, temporary: Path
) -> None:
    """What a worker process does: open the model, then one file after another."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOP_SIGNALS)
    _die_with(parent_pid)
    tempfile.tempdir = str(temporary)
    os.environ["TMPDIR"] = str(temporary)
    os.environ["OMP_NUM_THREADS"] = str(setup.threads)  # read when torch is imported, which comes later
    tasks: queue.SimpleQueue[FileTask | None] = queue.SimpleQueue()
    threading.Thread(target=_listen, args=(link, tasks), name="pcmoe-listener", daemon=True).start()
    with ExitStack() as opened:
        try:
            check_place(folder=setup.folder, proof_path=setup.proof_path, run_id=setup.run_id)
            detector = opened.enter_context(setup.open_detector(setup.threads))
        except Exception as error:
            link.send(opening_fault(error))
            return
        link.send(_READY)
        while (task := tasks.get()) is not None:
            for message in process_file(task, detector):
                link.send(message)


def _listen(link: connection.Connection[Any, Any], tasks: queue.SimpleQueue[FileTask | None]) -> None:
    """Take in what the job sends. When the job's process has gone, so does this one."""
    while True:
        try:
            task = link.recv()
        except (EOFError, OSError):
            os._exit(1)
        tasks.put(task)
        if task is None:
            return


def _die_with(parent_pid: int) -> None:
    """Have the kernel end this process together with its parent, also where native code holds Python."""
    if sys.platform != "linux":
        return  # the end of the pipe tells
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:  # it went before the call
        os._exit(1)
