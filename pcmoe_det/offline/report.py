"""What a run of a job did, for people."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pcmoe_det.errors import PcmoeError
from pcmoe_det.offline.job import printable
from pcmoe_det.offline.plan import JobPlan
from pcmoe_det.offline.status import FAILED_LOAD, FileStatus

__all__ = ["JobError", "JobReport"]

_MOST_NAMED = 20


class JobError(PcmoeError):
    """A job that has come to its end without doing all of its files."""


@dataclass(frozen=True)
class JobReport:
    """One run.

    Attributes:
        plan: What there was to do, and what earlier runs did.
        ended: Files that this run did or that failed in it.
        interrupted: Files under way when the run was stopped.
        not_started: How many files were not reached.
        stopped: Whether the run was stopped before its end.
        elapsed_seconds: Of the run.
    """

    plan: JobPlan
    ended: tuple[FileStatus, ...] = ()
    interrupted: tuple[FileStatus, ...] = ()
    not_started: int = 0
    stopped: bool = False
    elapsed_seconds: float = 0.0

    @property
    def failed(self) -> tuple[FileStatus, ...]:
        """Files that have failed and were not done since, of this run and of earlier ones."""
        return tuple(status for status in (*self.plan.failed_before, *self.ended) if status.state == "failed")

    @property
    def done(self) -> int:
        """Files whose results are there."""
        return len(self.plan.done) + sum(status.state == "done" for status in self.ended)

    @property
    def files(self) -> int:
        """All files of the job."""
        return len(self.plan.done) + len(self.plan.failed_before) + len(self.plan.to_do)

    def as_text(self) -> str:
        """A table and the failures, without a final line break."""
        done_now = [status for status in self.ended if status.state == "done"]
        failed_now = [status for status in self.ended if status.state == "failed"]
        rows = [
            ("done", done_now),
            ("done before", self.plan.done),
            ("failed", failed_now),
            ("failed before", self.plan.failed_before),
            ("interrupted", self.interrupted),
        ]
        lines = [f"{'':<14}{'files':>8}{'frames':>12}{'seconds':>12}"]
        lines += [_row(name, statuses) for name, statuses in rows if statuses or name == "done"]
        if self.not_started:
            lines.append(f"{'not started':<14}{self.not_started:>8}")
        if self.plan.changed:
            lines.append(
                f"{self.plan.changed} of the files to do had been done before and have changed since"
            )
        faults = [set(status.faults) for status in (*self.plan.done, *done_now)]
        damaged = sum(bool(causes - {FAILED_LOAD}) for causes in faults)
        if damaged:
            lines.append(f"{damaged} done files have damage that was skipped; the status names it")
        incomplete = sum(FAILED_LOAD in causes for causes in faults)
        if incomplete:
            lines.append(
                f"{incomplete} done files lacked experts that could not be read when the policy wanted them; "
                "check the disk of the model"
            )
        frames = sum(status.frames for status in (*done_now, *failed_now, *self.interrupted))
        if frames and self.elapsed_seconds > 0:
            rate = frames / self.elapsed_seconds
            lines.append(f"{frames} frames in {self.elapsed_seconds:.1f} s: {rate:.2f} frames per second")
        lines += [
            f"{printable(status.source)}: {printable(status.error or '')}"
            for status in self.failed[:_MOST_NAMED]
        ]
        if len(self.failed) > _MOST_NAMED:
            lines.append(f"... and {len(self.failed) - _MOST_NAMED} more failed files")
        return "\n".join(lines)


def _row(name: str, statuses: Iterable[FileStatus]) -> str:
    statuses = list(statuses)
    frames = sum(status.frames for status in statuses)
    seconds = sum(status.seconds for status in statuses)
    return f"{name:<14}{len(statuses):>8}{frames:>12}{seconds:>12.1f}"
