"""``tools/process.py``: detect objects in a folder of videos, thousands of them, resumably.

With ``--ray`` see also ``pcmoe_det.offline.ray_pool`` for what every machine of the cluster needs.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcmoe_det import __version__
from pcmoe_det.cli.committee_choice import COMMITTEE_SETTINGS, check_committee_options
from pcmoe_det.cli.committee_options import open_detector
from pcmoe_det.cli.entry import EXIT_INTERRUPTED, EXIT_OK, run
from pcmoe_det.cli.process_options import make_process_parser as _parser
from pcmoe_det.cli.stream import StopSignals
from pcmoe_det.errors import UsageError

if TYPE_CHECKING:
    from pcmoe_det.offline import (
        JobOptions,
        JobPlan,
        JobProgress,
        JobReport,
        OpenDetector,
        OutputFolder,
        WorkerPool,
    )
    from pcmoe_det.structures import FrameDetector

__all__ = ["ModelOpener", "entry", "process"]

# Options of the model that decide its results; COMMITTEE_SETTINGS do so under --policy.
_MODEL_SETTINGS = ("config", "dtype", "score_threshold", "max_frames", "policy")


def entry() -> int:
    """The command ``pcmoe-process``."""
    return run(_parser(), process)


def process(arguments: argparse.Namespace, *, opener: OpenDetector | None = None) -> int:
    """Look what there is to do, do it, say what came of it.

    Args:
        arguments: As the parser of ``entry`` gives them.
        opener: Opens the detector in each worker; by default the one that the options describe.

    Returns:
        The exit code: 0 all files are done, 130 interrupted.

    Raises:
        PcmoeError: The job cannot be run, or files failed.
    """
    from pcmoe_det.offline import JobReport, OutputFolder, find_sources, plan_job, recover

    options = _job_options(arguments)
    if arguments.ray is not None:
        from pcmoe_det.offline.ray_pool import check_ray

        check_ray()
    with StopSignals():
        files = find_sources(options)
        if files.links_skipped:
            logging.getLogger(__name__).info("%d links to folders are not followed", files.links_skipped)
        with OutputFolder(options.output) as output:
            recover(output)
            plan = plan_job(files, options, output)
            report = JobReport(plan)
            if plan.to_do:
                output.journal.append_run(options.settings)
                report = _run(arguments, options, plan, output, opener or ModelOpener(arguments))
    return _conclude(report, files.problems, status_path=output.journal.path)


@dataclass(frozen=True)
class ModelOpener:
    """Opens, in a worker, the detector that a command's options describe."""

    arguments: argparse.Namespace

    @contextmanager
    def __call__(self, threads: int) -> Iterator[FrameDetector]:
        """The detector, running on so many threads; closed at the end of the block."""
        arguments = argparse.Namespace(**{**vars(self.arguments), "threads": threads})
        level = logging.INFO if arguments.verbose else logging.WARNING
        logging.basicConfig(level=level, format="%(levelname)s %(name)s: %(message)s")
        if not arguments.verbose:
            warnings.simplefilter("ignore")  # as in the command's own process

        import cv2

        cv2.setNumThreads(threads)  # it would use all cores in every worker
        with open_detector(arguments.model, arguments, score_threshold=arguments.score_threshold) as opened:
            yield opened.for_frames()


def _job_options(arguments: argparse.Namespace) -> JobOptions:
    from pcmoe_det.offline import JobOptions

    if arguments.trace is not None:
        raise UsageError("--trace records one stream; use it with tools/stream.py")
    check_committee_options(arguments)
    on_cluster = arguments.ray is not None
    folder, output = (
        _absolute(path) if on_cluster else path for path in (arguments.folder, arguments.output)
    )
    for name in ("model", "config"):
        value = getattr(arguments, name)
        if value is not None and on_cluster:
            setattr(arguments, name, str(_absolute(Path(value))))
    settings: dict[str, Any] = {"folder": str(_absolute(arguments.folder))}
    settings |= _model_settings(arguments.model)
    names = _MODEL_SETTINGS + (COMMITTEE_SETTINGS if arguments.policy is not None else ())
    settings |= {name: getattr(arguments, name) for name in names}
    return JobOptions(
        folder=folder,
        output=output,
        globs=tuple(arguments.glob or ()),
        pictures=arguments.pictures,
        video=arguments.video,
        score_threshold=arguments.score_threshold,
        max_frames=arguments.max_frames,
        retry_failed=arguments.retry_failed,
        overwrite=arguments.overwrite,
        settings=settings,
    )


def _model_settings(model: str | None) -> dict[str, Any]:
    """What tells a model from another one, and from an earlier one of the same name."""
    from pcmoe_det.offline.job import fingerprint_of

    if model is None:
        return {"model": f"shipped with {__version__}"}
    path = _absolute(Path(model))
    written = fingerprint_of(path / "model.json") or fingerprint_of(path)  # a packed folder, or a file
    return {"model": str(path), "model_mtime_ns": None if written is None else written.mtime_ns}


def _run(
    arguments: argparse.Namespace,
    options: JobOptions,
    plan: JobPlan,
    output: OutputFolder,
    opener: OpenDetector,
) -> JobReport:
    from tqdm import tqdm

    from pcmoe_det.offline import JobRunner

    with ExitStack() as stack:
        pool = _open_pool(arguments, options, output, opener, stack)
        signals = stack.enter_context(StopSignals())  # Ray has its own idea of SIGTERM
        signals.graceful = True
        bar = stack.enter_context(
            tqdm(total=len(plan.to_do), unit="file", file=sys.stderr, disable=not sys.stderr.isatty())
        )

        def show(progress: JobProgress) -> None:
            bar.set_postfix_str(
                f"{progress.frames_per_second:.1f} frames/s, {progress.files_failed} failed", refresh=False
            )
            bar.update(progress.files_ended - bar.n)
            bar.refresh()

        runner = JobRunner(
            options, plan, output, pool, should_stop=lambda: signals.count > 0, on_progress=show
        )
        return runner.run()


def _open_pool(
    arguments: argparse.Namespace,
    options: JobOptions,
    output: OutputFolder,
    opener: OpenDetector,
    stack: ExitStack,
) -> WorkerPool:
    from pcmoe_det.offline import WorkerSetup

    def setup(threads: int) -> WorkerSetup:
        return WorkerSetup(
            open_detector=opener,
            threads=threads,
            proof_path=output.proof_path,
            run_id=output.run_id,
            folder=options.folder,
        )

    if arguments.ray is not None:
        from pcmoe_det.offline.ray_pool import RayPool, connect, disconnect, share_cluster

        cores = connect(arguments.ray)
        stack.callback(disconnect)
        shape = share_cluster(cores, workers=arguments.workers, threads=arguments.threads)
        gpus = int(arguments.device.startswith("cuda"))
        return RayPool(setup(shape.threads), workers=shape.workers, gpus=gpus)
    from pcmoe_det.offline.local_pool import LocalPool, available_cores

    workers = arguments.workers or 1
    threads = arguments.threads or max(1, available_cores() // workers)
    return LocalPool(setup(threads), workers=workers)


def _conclude(report: JobReport, problems: tuple[str, ...], *, status_path: Path) -> int:
    """Say what came of it; the exit code."""
    from pcmoe_det.offline.job import printable
    from pcmoe_det.offline.report import JobError

    print(report.as_text(), flush=True)
    if report.stopped:
        print(
            f"interrupted with {report.done} of {report.files} files done; the same command goes on",
            file=sys.stderr,
        )
        return EXIT_INTERRUPTED
    sentences = list(problems)
    if report.failed:
        before = len(report.plan.failed_before)
        earlier = f" ({before} in earlier runs; --retry-failed tries them again)" if before else ""
        sentences.append(
            f"{len(report.failed)} of {report.files} files failed{earlier}; {printable(status_path)} says why"
        )
    if sentences:
        raise JobError("; ".join(sentences))
    return EXIT_OK


def _absolute(path: Path) -> Path:
    return Path(os.path.abspath(path))  # noqa: PTH100  (``resolve`` would replace links that nodes may share)
