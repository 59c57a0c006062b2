"""``pcmoe-test``: the accuracy of weights on a data set."""

from __future__ import annotations

import argparse
import sys
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcmoe_det.cli.committee_options import add_committee_options, open_detector
from pcmoe_det.cli.config_hook import heeded_hook
from pcmoe_det.cli.entry import EXIT_OK, make_parser, run, whole_number
from pcmoe_det.cli.launch import add_launcher_option, process_group
from pcmoe_det.cli.outputs import check_no_input, check_output_file, check_outputs_apart, write_json
from pcmoe_det.errors import ConfigError, DataError, UsageError

if TYPE_CHECKING:
    from mmengine.config import Config
    from torch import nn

    from pcmoe_det.committee.committee import Committee
    from pcmoe_det.committee.settings import CommitteeSettings
    from pcmoe_det.evaluation.metric import ShiftMetric
    from pcmoe_det.evaluation.report import EvaluationReport

__all__ = ["entry", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("pcmoe-test", "Evaluate a detector: mAP@0.5 and AP@[.5:.95], in points.")
    parser.add_argument("config", help="mmengine config of the model and its test data")
    parser.add_argument("checkpoint", help="weights (.safetensors) or a training checkpoint (.pth)")
    data = parser.add_argument_group("data")
    data.add_argument("--data-root", help="folder in SHIFT's layout; default: the config's")
    data.add_argument("--subset", default="discrete/images", help="such as discrete/images, discrete/videos")
    data.add_argument("--split", default="val", help="train, val or test")
    data.add_argument("--view", default="front", help="camera")
    data.add_argument(
        "--teacher-labels",
        choices=("ignore", "truth", "auto"),
        default="auto",
        help="labels of a teacher model: ignored regions, truth, or (auto) ignored only in frames that have "
        "annotated labels too",
    )
    data.add_argument("--max-frames", type=int, help="evaluate only the first N frames")
    output = parser.add_argument_group("output")
    output.add_argument("--json", metavar="FILE", type=Path, help="write the result here")
    output.add_argument(
        "--detections",
        metavar="FILE.npz",
        type=Path,
        help="write labels and detections of every frame here, for tools/analyze.py compare",
    )
    running = parser.add_argument_group("running")
    running.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto")
    running.add_argument("--device", default="cpu", help="cpu, or cuda:0 (unmeasured)")
    running.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="threads of torch in each process"
    )
    running.add_argument("--workers", type=int, default=1, help="processes that decode images")
    add_launcher_option(running)
    add_committee_options(parser, loading="synchronous")
    running.add_argument(
        "--keep-committee",
        action="store_true",
        help="keep the experts in memory at a new video, instead of starting the committee anew",
    )
    return parser


def _data_loader(config: Config, arguments: argparse.Namespace) -> Any:
    from mmengine.dataset import pseudo_collate
    from mmengine.registry import DATASETS, init_default_scope
    from torch.utils.data import DataLoader

    from pcmoe_det.datasets.shift import VideoShardSampler

    init_default_scope("mmdet")
    settings = config.get("test_dataloader")
    if settings is None:
        raise ConfigError(f"{arguments.config} has no test_dataloader; see configs/_base_/street_data.py")
    wanted = {
        "subset": arguments.subset,
        "split": arguments.split,
        "view": arguments.view,
        "teacher_labels": arguments.teacher_labels,
        "test_mode": True,
    }
    if arguments.data_root is not None:
        wanted["data_root"] = arguments.data_root
    if arguments.max_frames is not None:
        if arguments.max_frames < 1:
            raise ConfigError(f"--max-frames is {arguments.max_frames}; it must be 1 or more")
        wanted["indices"] = arguments.max_frames
    try:
        dataset = DATASETS.build({**settings.dataset, **wanted})
    except (KeyError, TypeError, ValueError, AttributeError, ImportError) as error:
        raise ConfigError(
            f"{arguments.config}: the test data set does not build ({type(error).__name__}: {error})"
        ) from error
    return DataLoader(
        dataset,
        batch_size=1,
        sampler=VideoShardSampler(dataset),
        num_workers=max(0, arguments.workers),
        collate_fn=pseudo_collate,
    )


def evaluate(arguments: argparse.Namespace, stack: ExitStack, *, main_process: bool) -> EvaluationReport:
    """Evaluate as the command line says; ``stack`` closes the detector, and with it the trace.

    Raises:
        PcmoeError: The config, the data, the model or an output cannot be used.
    """
    import torch

    import pcmoe_det.models.registry  # noqa: F401
    from pcmoe_det.evaluation.loop import run_evaluation
    from pcmoe_det.evaluation.metric import ShiftMetric
    from pcmoe_det.models.config_files import read_config

    config = read_config(Path(arguments.config))
    hook = heeded_hook(config, arguments)
    loader = _data_loader(config, arguments)
    for path in _outputs(arguments).values():
        if path is not None:
            check_no_input(path, [getattr(loader.dataset, "folder", None)])
    torch.manual_seed(config.get("randomness", {}).get("seed", 0) or 0)
    opened = stack.enter_context(
        open_detector(
            arguments.checkpoint,
            arguments,
            score_threshold=0.0,
            settings=None if hook is None else hook.settings,
            config_is_of_data=True,
        )
    )
    model = opened.detector.model
    metric = ShiftMetric(
        teacher_labels=arguments.teacher_labels, settings=_settings(arguments, model, opened.settings)
    )
    metric.dataset_meta = loader.dataset.metainfo
    _check_class_names(opened.detector.class_names, metric.class_names)
    batches: Any = loader
    if main_process and sys.stderr.isatty():
        from tqdm import tqdm

        batches = tqdm(loader, unit="frame", desc="evaluate")
    keep = arguments.keep_committee or (hook is not None and not hook.reset_each_video)
    enter_video = None
    if opened.committee is not None:
        enter_video = partial(opened.committee.enter_video, keep_residents=keep)
    report = run_evaluation(model, batches, metric, num_frames=len(loader.dataset), on_frame=enter_video)
    if opened.committee is not None:
        report = replace(report, accounting=_over_processes(opened.committee))
    if main_process and arguments.detections is not None:
        _write_detections(arguments.detections, metric)
    return report


def _check_class_names(of_model: tuple[str, ...], of_data: tuple[str, ...]) -> None:
    """Detections and labels are matched by class id, which must mean the same; a model may know fewer."""
    if of_model != of_data[: len(of_model)]:
        raise ConfigError(
            f"the model finds {', '.join(of_model)} and the data set labels {', '.join(of_data)}; "
            "evaluate on data with the model's classes, in their order (class_names of the config)"
        )


def _write_detections(path: Path, metric: ShiftMetric) -> None:
    from pcmoe_det.evaluation.detection_files import write_detections

    write_detections(
        path,
        [frame.truth for frame in metric.frames],
        [frame.detections for frame in metric.frames],
        class_names=metric.class_names,
        settings=metric.settings,
    )


def _over_processes(committee: Committee) -> dict[str, Any]:
    from mmengine.dist import all_gather_object

    from pcmoe_det.committee.accounting import merge_reports

    return merge_reports(all_gather_object(committee.report()))


def _settings(
    arguments: argparse.Namespace, model: nn.Module, committee: CommitteeSettings | None
) -> dict[str, object]:
    """What the result depends on."""
    import torch

    from pcmoe_det import __version__
    from pcmoe_det.models.precision import parameter_dtype

    return {
        "config": Path(arguments.config).name,
        "checkpoint": Path(arguments.checkpoint).name,
        "subset": arguments.subset,
        "split": arguments.split,
        "view": arguments.view,
        "teacher_labels": arguments.teacher_labels,
        "dtype": str(parameter_dtype(model.backbone)).removeprefix("torch."),  # type: ignore[arg-type]
        "threads": torch.get_num_threads(),
        "version": __version__,
        **({} if committee is None else committee.to_json_dict()),
    }


def _outputs(arguments: argparse.Namespace) -> dict[str, Path | None]:
    return {
        "--json": arguments.json,
        "--detections": arguments.detections,
        "--trace": arguments.trace,
    }


def _check_outputs(arguments: argparse.Namespace) -> None:
    """What can be found out before anything is read."""
    outputs = _outputs(arguments)
    for option, path in outputs.items():
        if path is not None:
            check_output_file(path, overwrite=True, suffix=".npz" if option == "--detections" else None)
            check_no_input(path, [arguments.config, arguments.checkpoint])
    check_outputs_apart(outputs)
    if arguments.trace is not None and arguments.launcher != "none":
        raise UsageError("--trace records one process; leave out --launcher, or the trace")


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    _check_outputs(arguments)
    with process_group(arguments.launcher) as main_process, ExitStack() as stack:
        report = evaluate(arguments, stack, main_process=main_process)
        if main_process:
            from pcmoe_det.evaluation.report import format_table

            # Before the stack closes: a trace that could not be written costs the exit code, not the result.
            print(format_table(report))
            if arguments.json is not None:
                write_json(arguments.json, report.to_json_dict())
            _check_loads(report)
    return EXIT_OK


def _check_loads(report: EvaluationReport) -> None:
    """Refuse to call a result that of a policy, when the store kept it from what it wanted."""
    counts = report.accounting
    failed = counts.get("failed_loads", 0)
    if failed and counts["policy"] != "on_demand":  # there a load that is tried again in vain ends the run
        raise DataError(
            f"{failed} experts that the policy wanted could not be read, so this is not its result; the log "
            "names them: check the disk, or pack the model again"
        )


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
