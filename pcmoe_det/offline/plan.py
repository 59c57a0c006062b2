"""What of a job is still to do, given what earlier runs noted."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from pcmoe_det.errors import OutputError, UsageError
from pcmoe_det.offline.job import FileList, JobOptions, SourceFile, output_name, printable
from pcmoe_det.offline.output_folder import OutputFolder
from pcmoe_det.offline.status import FileStatus, settings_id

__all__ = ["JobPlan", "plan_job", "recover"]

_MOST_NAMED = 3


@dataclass(frozen=True)
class JobPlan:
    """The files of a job by what is to happen.

    Attributes:
        to_do: To be processed, in order.
        done: Done by earlier runs, and nothing changed since.
        failed_before: Failed in earlier runs, and not tried again.
        changed: How many of ``to_do`` were done before, as another file under the same name.
    """

    to_do: tuple[SourceFile, ...]
    done: tuple[FileStatus, ...]
    failed_before: tuple[FileStatus, ...]
    changed: int


def recover(output: OutputFolder) -> int:
    """Put in order what a killed run left: finish moves that were noted, note the rest as interrupted.

    Whole results that cannot be moved are kept like unfinished ones.

    Returns:
        How many files had been under way.
    """
    unended = output.unended_attempts()
    under_way = []
    for status in output.journal.latest.values():
        if status.state == "started" or (
            status.state == "done" and status.attempt in unended and not _finish_move(status, output)
        ):
            kept = output.keep_partial(status.attempt, [file.name for file in status.outputs])
            under_way.append(
                replace(status, state="interrupted", outputs=(), error="the run was killed", partial=kept)
            )
    if under_way:
        output.journal.append(*under_way)
    for attempt in unended:
        output.end_attempt(attempt)
    return len(under_way)


def plan_job(files: FileList, options: JobOptions, output: OutputFolder) -> JobPlan:
    """Sort the files by what earlier runs noted. A source that changed since is done again.

    Raises:
        OutputError: Outputs exist that this job did not make, and ``options.overwrite`` is off.
        UsageError: Files were done with other settings, and ``options.overwrite`` is off.
    """
    settings = settings_id(options.settings)
    to_do: list[SourceFile] = []
    done: list[FileStatus] = []
    failed: list[FileStatus] = []
    changed = 0
    for file in files.files:
        status = output.journal.latest.get(file.name)
        if status is None:
            to_do.append(file)
            continue
        same_settings = status.settings == settings
        if status.state == "done" and not same_settings and not options.overwrite:
            raise UsageError(_settings_differ(output, status.settings, options.settings))
        same_file = status.fingerprint == file.fingerprint
        if status.state == "done" and same_settings and same_file and _is_there(status, options, output):
            done.append(status)
        elif _stays_failed(status, options) and same_settings and same_file:
            failed.append(status)
        else:
            changed += status.state == "done" and not same_file
            to_do.append(file)
    if not options.overwrite:
        _refuse_foreign_outputs(to_do, options, output)
    return JobPlan(tuple(to_do), tuple(done), tuple(failed), changed)


def _finish_move(status: FileStatus, output: OutputFolder) -> bool:
    """Whether the results of a file that was noted as done are in their places now."""
    try:
        output.make_parents([file.name for file in status.outputs])
        if any(output.obstacle(file.name, overwrite=False) is not None for file in status.outputs):
            return False  # something else has come there since; or it was to be replaced, and is still there
        output.move_into_place(status.attempt, status.outputs)
    except OutputError:
        return False
    return True


def _stays_failed(status: FileStatus, options: JobOptions) -> bool:
    return status.state == "failed" and not status.retry and not options.retry_failed


def _is_there(status: FileStatus, options: JobOptions, output: OutputFolder) -> bool:
    names = {file.name for file in status.outputs}
    wanted = {output_name(status.source, suffix) for suffix in options.output_suffixes}
    return wanted <= names and all(os.path.lexists(output.path / name) for name in wanted)


def _refuse_foreign_outputs(to_do: list[SourceFile], options: JobOptions, output: OutputFolder) -> None:
    obstacles = []
    for file in to_do:
        for suffix in options.output_suffixes:
            obstacle = output.obstacle(output_name(file.name, suffix), overwrite=False)
            if obstacle is not None:
                obstacles.append(obstacle)
    if obstacles:
        more = len(obstacles) - _MOST_NAMED
        named = "; ".join(obstacles[:_MOST_NAMED]) + (f"; and {more} more" if more > 0 else "")
        raise OutputError(f"{named}: use --overwrite to replace, or name another --output")


def _settings_differ(output: OutputFolder, identifier: str, settings: Mapping[str, Any]) -> str:
    before = output.journal.settings_of(identifier) or {}
    names = sorted(name for name in {*before, *settings} if before.get(name) != settings.get(name))
    differences = ", ".join(
        f"{name} was {printable(str(before.get(name)))} and is {printable(str(settings.get(name)))}"
        for name in names
    )
    return (
        f"{printable(output.path)} holds results of other settings ({differences}): name another --output, "
        "or use --overwrite to do all files again"
    )
