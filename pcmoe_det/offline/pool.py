"""What a job needs of its workers, wherever they run."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from pcmoe_det.errors import PcmoeError, UsageError
from pcmoe_det.offline.worker import FileOutcome, FileTask
from pcmoe_det.structures import FrameDetector

__all__ = [
    "MOST_DEATHS_IN_OPENING",
    "OpenDetector",
    "PoolEvent",
    "WorkerError",
    "WorkerFault",
    "WorkerPool",
    "WorkerSetup",
    "opening_fault",
    "raise_fault",
]

OpenDetector = Callable[[int], AbstractContextManager[FrameDetector]]
"""Opens the model for so many threads. Sent to the workers, so it must be picklable: a function or the object
of a class that they can import."""

# One is chance (a machine short of memory for a moment); three in a row would go on for ever.
MOST_DEATHS_IN_OPENING = 3


class WorkerError(PcmoeError):
    """The workers of a job cannot work, whatever the file is."""


@dataclass(frozen=True)
class WorkerSetup:
    """What every worker gets before its first file.

    Attributes:
        open_detector: Called once a worker.
        threads: Of the detector.
        proof_path: Must be readable where the worker runs and hold ``run_id``: else it does not see the
            job's output folder.
        run_id: Of this run.
        folder: The videos; must be there, too.
    """

    open_detector: OpenDetector
    threads: int
    proof_path: Path
    run_id: str
    folder: Path


@dataclass(frozen=True)
class WorkerFault:
    """Why a worker cannot start: a sentence, and the exit code that goes with it."""

    message: str
    exit_code: int


@dataclass(frozen=True)
class PoolEvent:
    """News of one attempt: exactly one of the three is set.

    Attributes:
        attempt: Which.
        frames: So many are done.
        outcome: It ended.
        death: Its worker died; why, as far as one can tell.
    """

    attempt: str
    frames: int | None = None
    outcome: FileOutcome | None = None
    death: str | None = None


class WorkerPool(Protocol):
    """Workers, each with the model open and at most one file at a time. Used from one thread, which must
    live as long as the pool."""

    @property
    def idle(self) -> int:
        """How many workers wait for a file."""
        ...

    def ensure(self, files_left: int) -> None:
        """Start or replace workers, as many as ``files_left`` have use for. Does not wait."""
        ...

    def submit(self, task: FileTask) -> None:
        """Give a file to an idle worker."""
        ...

    def poll(self, timeout_seconds: float) -> list[PoolEvent]:
        """News since the last call, waiting for some.

        Raises:
            PcmoeError: The workers cannot start.
        """
        ...

    def kill(self) -> None:
        """End all workers now, whatever they do."""
        ...

    def close(self) -> None:
        """End idle workers in an orderly way; kills what does not end."""
        ...


def opening_fault(error: Exception) -> WorkerFault:
    """What to report of an error in opening the model."""
    if isinstance(error, PcmoeError):
        return WorkerFault(str(error), error.exit_code)
    return WorkerFault(f"the model cannot be opened: {type(error).__name__}: {error}", PcmoeError.exit_code)


def raise_fault(fault: WorkerFault) -> None:
    """Raise what a worker reported when it could not start."""
    if fault.exit_code == UsageError.exit_code:
        raise UsageError(fault.message)
    raise WorkerError(fault.message)
