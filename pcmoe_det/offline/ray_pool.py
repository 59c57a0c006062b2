"""Workers as actors of a Ray cluster.

Every machine of the cluster needs, under the same absolute paths, the folder of the videos, the output folder
and the model (a file system that all share), and this package in the same version in the Python that Ray
uses. A worker that does not see the output folder says so before it touches a file.
"""

from __future__ import annotations

import importlib
import importlib.util
import logging
import math
import os
import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import pcmoe_det
from pcmoe_det.errors import PcmoeError, UsageError
from pcmoe_det.offline.pool import (
    MOST_DEATHS_IN_OPENING,
    PoolEvent,
    WorkerError,
    WorkerFault,
    WorkerSetup,
    opening_fault,
    raise_fault,
)
from pcmoe_det.offline.worker import FileOutcome, FileTask, check_place, process_file
from pcmoe_det.structures import FrameDetector

__all__ = ["ClusterShape", "RayPool", "check_ray", "connect", "disconnect", "share_cluster"]

_CONNECT_SECONDS = 10.0


def check_ray() -> None:
    """Raise ``UsageError`` where Ray is not installed."""
    if importlib.util.find_spec("ray") is None:
        raise UsageError(
            "--ray needs the package ray, which is not installed: pip install 'pcmoe_det[ray]'; or use "
            "--workers N on this machine"
        )


@dataclass(frozen=True)
class ClusterShape:
    """How a job spreads over a cluster: ``workers`` actors, each with ``threads`` cores."""

    workers: int
    threads: int


def connect(address: str) -> list[int]:
    """Join the cluster at ``address``; returns the number of cores of each machine.

    Raises:
        UsageError: There is no cluster at this address.
    """
    check_ray()
    ray = _ray()
    try:
        _check_reachable(address)
        ray.init(address=address, log_to_driver=False, logging_level=logging.ERROR)
    except (ConnectionError, RuntimeError, ValueError, OSError) as error:
        reason = str(error).strip().partition("\n")[0]
        raise UsageError(
            f"there is no Ray cluster at --ray {address} ({reason}); start one with `ray start --head` and "
            "give its address, or `auto` on one of its machines"
        ) from error
    return sorted(int(node["Resources"].get("CPU", 0)) for node in ray.nodes() if node["Alive"])


def disconnect() -> None:
    """Leave the cluster; actors of this job end."""
    _ray().shutdown()


def share_cluster(cores: list[int], *, workers: int | None, threads: int | None) -> ClusterShape:
    """Choose what was not asked for: a worker a machine, and the cores of a machine divided by its workers.

    Args:
        cores: Of each machine.
        workers: As asked for, or None.
        threads: Of each worker, as asked for, or None.

    Raises:
        UsageError: The cluster has no room for these workers.
    """
    usable = [count for count in cores if count > 0]
    if not usable:
        raise UsageError("the Ray cluster has no cores; start its machines with `ray start --num-cpus N`")
    if workers is None:
        workers = len(usable) if threads is None else sum(count // threads for count in usable)
    if threads is None:
        threads = max(1, min(usable) // math.ceil(max(workers, 1) / len(usable)))
    room = sum(count // threads for count in usable)
    if not 0 < workers <= room:
        raise UsageError(
            f"the Ray cluster has room for {room} workers of {threads} threads each (cores by machine: "
            f"{', '.join(map(str, usable))}); give a smaller --workers or --threads"
        )
    return ClusterShape(workers, threads)


class RayPool:
    """Up to ``workers`` actors. Call ``connect`` before and ``disconnect`` after.

    Args:
        setup: Sent to every actor.
        workers: How many actors at most.
        gpus: GPUs that each actor needs.
    """

    def __init__(self, setup: WorkerSetup, *, workers: int, gpus: int = 0) -> None:
        self._ray = ray = _ray()
        self._setup = setup
        self._most = workers
        self._deaths_in_opening = 0
        self._actors: list[_Actor] = []
        environment = {"OMP_WAIT_POLICY": "PASSIVE", "OMP_NUM_THREADS": str(setup.threads)}
        self._actor_class = ray.remote(
            num_cpus=setup.threads, num_gpus=gpus, max_restarts=0, runtime_env={"env_vars": environment}
        )(RayWorker)

    @property
    def idle(self) -> int:
        return sum(actor.is_ready and actor.attempt is None for actor in self._actors)

    def ensure(self, files_left: int) -> None:
        while len(self._actors) < min(self._most, files_left):
            handle = self._actor_class.remote()
            self._actors.append(_Actor(handle, handle.open.remote(self._setup, pcmoe_det.__version__)))

    def submit(self, task: FileTask) -> None:
        actor = next(actor for actor in self._actors if actor.is_ready and actor.attempt is None)
        actor.attempt = task.attempt
        actor.answer = actor.handle.process.options(num_returns="streaming").remote(task)

    def poll(self, timeout_seconds: float) -> list[PoolEvent]:
        by_answer = {actor.answer: actor for actor in self._actors if actor.answer is not None}
        if not by_answer:
            time.sleep(timeout_seconds)
            return []
        changed, _ = self._ray.wait(list(by_answer), timeout=timeout_seconds, fetch_local=True)
        events = []
        for answer in changed:
            event = self._read(by_answer[answer])
            if event is not None:
                events.append(event)
        return events

    def kill(self) -> None:
        for actor in self._actors:
            self._ray.kill(actor.handle)
        self._actors.clear()

    def close(self) -> None:
        closing = [actor.handle.close.remote() for actor in self._actors if actor.attempt is None]
        if closing:
            self._ray.wait(closing, num_returns=len(closing), timeout=5.0)
        self.kill()

    def _read(self, actor: _Actor) -> PoolEvent | None:
        """The next thing that an actor has answered."""
        from ray.exceptions import RayActorError, RayError

        try:
            if not actor.is_ready:
                fault = self._ray.get(actor.answer)
                if fault is not None:
                    raise_fault(fault)
                actor.answer, actor.is_ready, self._deaths_in_opening = None, True, 0
                return None
            message = self._ray.get(next(actor.answer))
        except StopIteration:
            return self._died(actor, "the worker ended without a result")
        except RayActorError as error:
            return self._died(actor, f"the worker died ({_first_line(error)})")
        except RayError as error:
            return self._died(actor, f"the worker failed ({_first_line(error)})")
        if not isinstance(message, FileOutcome):
            return PoolEvent(str(actor.attempt), frames=message)
        event = PoolEvent(str(actor.attempt), outcome=message)
        actor.attempt, actor.answer = None, None
        if message.worn:
            self._remove(actor)
        return event

    def _died(self, actor: _Actor, reason: str) -> PoolEvent | None:
        self._remove(actor)
        if actor.attempt is not None:
            return PoolEvent(actor.attempt, death=reason)
        self._deaths_in_opening += 1
        if self._deaths_in_opening >= MOST_DEATHS_IN_OPENING:
            raise WorkerError(f"{reason} while it opened the model, several times in a row")
        return None

    def _remove(self, actor: _Actor) -> None:
        self._actors.remove(actor)
        self._ray.kill(actor.handle)


@dataclass(eq=False)
class _Actor:
    """One actor, as the pool sees it. ``answer`` is what it was asked last and has not answered fully."""

    handle: Any
    answer: Any
    is_ready: bool = False
    attempt: str | None = None


class RayWorker:
    """Runs in an actor: holds the model, processes one file at a time."""

    def __init__(self) -> None:
        self._opened = ExitStack()
        self._detector: FrameDetector | None = None

    def open(self, setup: WorkerSetup, version: str) -> WorkerFault | None:
        """Open the model; what prevents it."""
        if pcmoe_det.__version__ != version:
            return WorkerFault(
                f"the worker on {os.uname().nodename} has pcmoe_det {pcmoe_det.__version__}, this job is of "
                f"{version}; install the same version on all machines",
                PcmoeError.exit_code,
            )
        try:
            check_place(folder=setup.folder, proof_path=setup.proof_path, run_id=setup.run_id)
            self._detector = self._opened.enter_context(setup.open_detector(setup.threads))
        except Exception as error:
            return opening_fault(error)
        return None

    def process(self, task: FileTask) -> Iterator[int | FileOutcome]:
        """See ``process_file``."""
        if self._detector is None:
            raise RuntimeError("process before open")
        yield from process_file(task, self._detector)

    def close(self) -> None:
        """Close the model."""
        self._opened.close()


def _check_reachable(address: str) -> None:
    """Raise ``OSError`` where nothing listens at ``host:port``; Ray itself would try for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if host and port.isdecimal():
        socket.create_connection((host.strip("[]"), int(port)), timeout=_CONNECT_SECONDS).close()


def _ray() -> Any:
    """Ray is imported where it is used: it is optional, and takes a second."""
    return importlib.import_module("ray")


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
