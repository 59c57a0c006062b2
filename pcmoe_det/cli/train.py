"""``pcmoe-train``: trains a detector with mmengine's runner."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcmoe_det.cli.entry import EXIT_OK, make_parser, run, whole_number
from pcmoe_det.cli.launch import add_launcher_option, process_group
from pcmoe_det.errors import CheckpointError, ConfigError, OutputError, UsageError

if TYPE_CHECKING:
    from mmengine.config import Config
    from mmengine.runner import Runner
    from torch import nn

__all__ = ["entry", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("pcmoe-train", "Train a detector; --resume goes on where a run stopped.")
    parser.add_argument("config", help="mmengine config")
    parser.add_argument("--work-dir", help="checkpoints, logs and curves; default: work_dirs/<config>")
    parser.add_argument("--data-root", help="folder in SHIFT's layout; default: the config's")
    parser.add_argument("--generated-root", help="generated frames to mix in; default: the config's")
    parser.add_argument(
        "--weights",
        help="start from these weights (.safetensors or .pth): of the whole detector, or of its backbone "
        "alone as pcmoe-convert-swin-moe writes them",
    )
    parser.add_argument("--resume", action="store_true", help="go on from the work dir's last checkpoint")
    parser.add_argument(
        "--threads", type=whole_number(1), metavar="N", help="threads of torch in each process"
    )
    parser.add_argument(
        "--set",
        nargs="+",
        default=[],
        metavar="KEY=VALUE",
        help="change the config, e.g. --set train_dataloader.batch_size=4",
    )
    add_launcher_option(parser)
    return parser


def _change(config: Config, assignments: list[str]) -> None:
    from mmengine.config import DictAction

    changes: dict[str, Any] = {}
    for assignment in assignments:
        key, separator, value = assignment.partition("=")
        if not separator or not key:
            raise UsageError(f"--set {assignment}: write KEY=VALUE")
        try:
            changes[key] = DictAction._parse_iterable(value)
        except (AssertionError, RecursionError) as error:
            raise UsageError(
                f"--set {assignment}: the brackets of '{value}' do not match; close every ( and [, and put "
                "the assignment in quotation marks"
            ) from error
    try:
        config.merge_from_dict(changes)
    except (KeyError, TypeError, AssertionError, IndexError, AttributeError) as error:
        raise UsageError(f"--set {' '.join(assignments)}: the config has no such place ({error})") from error


def _prepare(config: Config, arguments: argparse.Namespace) -> None:
    """What differs from mmengine's defaults on the machines this is for."""
    import torch

    config.work_dir = arguments.work_dir or str(Path("work_dirs") / Path(arguments.config).stem)
    config.launcher = arguments.launcher
    config.resume = arguments.resume
    if arguments.launcher != "none" and not torch.cuda.is_available():
        # mmengine's default names a device, which torch refuses on CPU. An expert without a token on
        # one process must not hang the others.
        config.model_wrapper_cfg = dict(
            type="MMDistributedDataParallel",
            device_ids=None,
            broadcast_buffers=False,
            find_unused_parameters=True,
        )
    last = Path(config.work_dir) / "last_checkpoint"
    if arguments.resume:
        config.load_from = str(_checkpoint_to_resume(last))
    elif last.is_file():
        raise UsageError(
            f"{config.work_dir} holds a run already; add --resume to go on, or choose another --work-dir"
        )
    try:
        Path(config.work_dir).mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputError(
            f"cannot make the work dir {config.work_dir} ({error.strerror}); choose another --work-dir"
        ) from error


def _checkpoint_to_resume(last: Path) -> Path:
    """What mmengine noted as the last checkpoint, also after the work dir was moved."""
    if not last.is_file():
        raise UsageError(f"--resume: {last.parent} has no last_checkpoint; leave --resume out to start")
    noted = Path(last.read_text(encoding="utf-8").strip())
    for path in (noted, last.parent / noted.name):
        if path.is_file():
            return path
    raise CheckpointError(f"--resume: {last} names {noted}, which does not exist")


def _build_runner(config: Config) -> Runner:
    """A runner whose model, data, optimiser and loops are built, so that a wrong config shows at once."""
    from pcmoe_det.cli.router_health import RouterHealthHook
    from pcmoe_det.cli.training_hooks import GoOnWithFreshDataHook, PlainCheckpointHook
    from pcmoe_det.cli.training_log import PlainLogRunner

    try:
        runner = PlainLogRunner.from_cfg(config)
        runner._train_loop = runner.build_train_loop(runner._train_loop)
        runner.optim_wrapper = runner.build_optim_wrapper(runner.optim_wrapper)
        if runner.param_schedulers is not None:
            runner.param_schedulers = runner.build_param_scheduler(runner.param_schedulers)
        if runner._val_loop is not None:
            runner._val_loop = runner.build_val_loop(runner._val_loop)
    except _WRONG_CONFIG as error:
        raise ConfigError(
            f"{config.filename} does not build ({type(error).__name__}: {error}); --verbose shows where"
        ) from error
    runner.register_hook(PlainCheckpointHook())
    runner.register_hook(GoOnWithFreshDataHook())
    runner.register_hook(RouterHealthHook())
    return runner


_WRONG_CONFIG = (
    AssertionError,
    AttributeError,
    FileNotFoundError,
    ImportError,
    IndexError,
    KeyError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _bare_model(runner: Runner) -> nn.Module:
    from mmengine.model import is_model_wrapper

    return runner.model.module if is_model_wrapper(runner.model) else runner.model


def _start_weights(runner: Runner, path: str) -> None:
    """Load weights, of the whole detector or of its backbone alone."""
    from pcmoe_det.models.weights_file import load_backbone_into, load_into, read_weights

    model = _bare_model(runner)
    # Initialised now: the runner would do it later, over these weights.
    model.init_weights()  # type: ignore[operator]
    tensors, info = read_weights(Path(path), described=False)
    if info is None or not info.is_backbone:
        load_into(model, tensors, source=path)
        runner.logger.info(f"start weights: {len(tensors)} tensors of {path}")
        return
    kept = load_backbone_into(model, tensors, info, source=path)
    message = (
        f"start weights: {len(tensors)} tensors of {path} into the backbone; the rest of the model is new"
    )
    runner.logger.info(message + (f", and {', '.join(kept)}" if kept else ""))


def train(config: Config, *, weights: str | None) -> None:
    """Train as the config says; draws the curves at the end, also when interrupted.

    Raises:
        ConfigError: The config does not build.
        CheckpointError: The weights, or the checkpoint to go on from, do not fit.
        DataError: A data set cannot be used.
        OutputError: A file cannot be written.
    """
    import torch

    from pcmoe_det.cli.router_health import draw_router_health
    from pcmoe_det.cli.training_curves import draw_curves
    from pcmoe_det.models.weights_file import load_into, read_weights, trusted_globals

    runner = _build_runner(config)
    if config.resume:  # mmengine resumes whatever part of a checkpoint happens to fit
        load_into(
            _bare_model(runner),
            read_weights(Path(config.load_from), described=False)[0],
            source=config.load_from,
        )
    if weights is not None:
        _start_weights(runner, weights)
    try:
        # mmengine loads the checkpoint to go on from; torch then takes tensors and plain NumPy numbers only.
        with torch.serialization.safe_globals(trusted_globals()):
            runner.train()
    except OSError as error:
        raise OutputError(f"training stopped: {error}") from error
    finally:
        if runner.rank == 0:
            draw_curves(Path(config.work_dir))
            draw_router_health(Path(config.work_dir))


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    if arguments.weights is not None and arguments.resume:
        raise UsageError("--weights starts a run and --resume goes on with one; use one of them")
    if arguments.weights is not None and not Path(arguments.weights).is_file():
        raise CheckpointError(f"no weights at {arguments.weights}; check the path")
    with process_group(arguments.launcher):
        import torch

        from pcmoe_det.cli.configs import point_at_data
        from pcmoe_det.models.config_files import read_config

        if arguments.threads is not None:
            torch.set_num_threads(arguments.threads)
        config = read_config(Path(arguments.config))
        point_at_data(config, data_root=arguments.data_root, generated_root=arguments.generated_root)
        _change(config, arguments.set)
        _prepare(config, arguments)
        train(config, weights=arguments.weights)
    return EXIT_OK


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
