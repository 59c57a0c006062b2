"""Options of commands that run a detector under an expert budget, and the detector they describe."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pcmoe_det.cli.outputs import check_output_file
from pcmoe_det.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from pcmoe_det.committee.committee import Committee
    from pcmoe_det.committee.packed_model import PackedModel
    from pcmoe_det.committee.settings import CommitteeSettings
    from pcmoe_det.models.inference import Detector

__all__ = ["OpenedDetector", "add_committee_options", "committee_settings", "open_detector"]

# Named here too, so that --help needs neither torch nor the policies; a test compares the two.
POLICY_NAMES = ("all", "magnitude_keep", "on_demand", "pcmoe", "random_keep")
MISS_HANDLINGS = ("exchange", "skip", "rerank", "load")
STAND_IN_WEIGHTS = ("own", "wanted", "renormalized")
DEFAULT_STAND_IN_WEIGHT = "own"


@dataclass(frozen=True)
class OpenedDetector:
    """A detector, and the committee inside it if it runs under one."""

    detector: Detector
    committee: Committee | None


def add_committee_options(
    parser: argparse.ArgumentParser, *, loading: Literal["background", "synchronous"]
) -> None:
    """Add the group of options to a command whose default way of loading is ``loading``."""
    group = parser.add_argument_group(
        "committee", "Keep only some experts in memory (models with experts; see tools/pack.py)."
    )
    group.add_argument(
        "--policy", choices=POLICY_NAMES, help="which experts are resident; default: all of them"
    )
    group.add_argument(
        "--expert-budget",
        metavar="SHARE|SIZE",
        help="memory for experts: 0.5 (of all expert bytes), 50%%, 300MiB; default: 0.5 with --policy",
    )
    group.add_argument(
        "--on-miss",
        type=_miss_handlings,
        metavar="HOW[,HOW...]",
        help="what a token does whose expert is absent: exchange (take the best resident expert), skip "
        "(none), rerank (either, by its score) or load (exact); one for all MoE layers, or one for each; "
        "default: the policy's",
    )
    group.add_argument(
        "--stand-in-weight",
        choices=STAND_IN_WEIGHTS,
        default=DEFAULT_STAND_IN_WEIGHT,
        help="gate weight of an expert that stands in for an absent one: its own score, the absent one's, or "
        "its own over the sum of the resident ones'",
    )
    group.add_argument(
        "--importance", choices=("eq1", "counts", "magnitude", "random"), help="of --policy pcmoe"
    )
    group.add_argument("--margin", type=float, help="how much better a challenger must be (--policy pcmoe)")
    group.add_argument("--update-period", type=int, default=1, help="frames between updates")
    group.add_argument("--max-swaps-per-frame", type=int, default=2, help="most loads started after a frame")
    group.add_argument("--policy-seed", type=int, default=0, help="of --policy random_keep")
    group.add_argument(
        "--store-bandwidth", metavar="SIZE", help="read experts at most this fast a second, such as 300MiB"
    )
    group.add_argument(
        "--cold-reads",
        action="store_true",
        help="read experts past the page cache, as on a machine without room",
    )
    group.add_argument(
        "--loading",
        choices=("background", "synchronous"),
        default=loading,
        help="load experts while frames compute, or between them (deterministic)",
    )
    group.add_argument("--trace", type=Path, metavar="FILE", help="record each frame's routing (JSON Lines)")


def _miss_handlings(text: str) -> str | tuple[str, ...]:
    names = tuple(part.strip() for part in text.split(","))
    for name in names:
        if name not in MISS_HANDLINGS:
            raise argparse.ArgumentTypeError(f"{name!r} is none of {', '.join(MISS_HANDLINGS)}")
    return names[0] if len(names) == 1 else names


def _check(arguments: argparse.Namespace, settings: CommitteeSettings | None) -> None:
    if arguments.policy is None and settings is None:
        for name in ("expert_budget", "on_miss", "importance", "margin", "trace", "store_bandwidth"):
            if getattr(arguments, name) is not None:
                option = "--" + name.replace("_", "-")
                raise UsageError(f"{option} needs --policy; choose one of {', '.join(POLICY_NAMES)}")
    if arguments.trace is not None:
        check_output_file(arguments.trace, overwrite=True)


@contextmanager
def open_detector(
    model: str | None,
    arguments: argparse.Namespace,
    *,
    score_threshold: float,
    settings: CommitteeSettings | None = None,
) -> Iterator[OpenedDetector]:
    """Open weights or a packed folder, with the committee that the options ask for.

    Args:
        model: Weights file or packed folder; None is the shipped weights.
        arguments: Those of ``add_committee_options``, and ``config``, ``device``, ``threads``, ``dtype``.
        score_threshold: Detections below it are dropped.
        settings: Of the committee; None takes those of the options.

    Raises:
        PcmoeError: The model, the options or the budget cannot be used.
    """
    _check(arguments, settings)
    from pcmoe_det.committee.packed_model import is_packed
    from pcmoe_det.models.inference import load_detector, shipped_weights

    path = shipped_weights() if model is None else Path(model)
    with ExitStack() as stack:
        settings = settings or committee_settings(arguments)
        if settings is None and not is_packed(path):
            detector = load_detector(
                model,
                config=arguments.config,
                device=arguments.device,
                threads=arguments.threads,
                score_threshold=score_threshold,
                dtype=arguments.dtype,
            )
            yield OpenedDetector(detector, None)
            return
        packed = _packed(path, arguments, stack)
        yield _open_packed(packed, settings, arguments, stack, threshold=score_threshold)


def _packed(path: Path, arguments: argparse.Namespace, stack: ExitStack) -> PackedModel:
    """The packed model itself, or plain weights packed into a temporary folder."""
    from pcmoe_det.committee.packed_model import PackedModel, is_packed
    from pcmoe_det.committee.packing import pack
    from pcmoe_det.models.inference import inference_dtype, info_from_config

    if is_packed(path):
        return PackedModel.open(path)
    if not path.exists():
        raise CheckpointError(f"no weights at {path}; check the path")
    import torch

    folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pcmoe-pack-")))
    return pack(
        None if arguments.config is None else info_from_config(Path(arguments.config)),
        path,
        folder / "packed",
        dtype=inference_dtype(arguments.dtype, torch.device(arguments.device)),
    )


def _open_packed(
    packed: PackedModel,
    settings: CommitteeSettings | None,
    arguments: argparse.Namespace,
    stack: ExitStack,
    *,
    threshold: float,
) -> OpenedDetector:
    import torch

    from pcmoe_det.committee.budget import parse_budget
    from pcmoe_det.committee.store import DiskExpertStore
    from pcmoe_det.committee.trace import TraceWriter
    from pcmoe_det.models.inference import Detector

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    model = packed.build_detector_model(device=arguments.device)
    detector = Detector(
        model,
        class_names=packed.info.class_names,
        long_side=packed.info.long_side,
        score_threshold=threshold,
    )
    if settings is None:
        packed.materialize_experts(model)
        return OpenedDetector(detector, None)
    bandwidth = None
    if arguments.store_bandwidth is not None:
        bandwidth = float(parse_budget(arguments.store_bandwidth, total_bytes=0))
        if bandwidth <= 0:
            raise UsageError(f"--store-bandwidth {arguments.store_bandwidth}: write a size such as 300MiB")
    store = DiskExpertStore(packed, cold=arguments.cold_reads, bandwidth_bytes_per_second=bandwidth)
    stack.callback(store.close)
    trace = None
    if arguments.trace is not None:
        trace = stack.enter_context(TraceWriter(arguments.trace, packed.layers))
    committee = settings.build(model, store, device=torch.device(arguments.device), trace=trace)
    stack.callback(committee.close)
    stack.enter_context(committee.patched(model))
    return OpenedDetector(detector, committee)


def committee_settings(arguments: argparse.Namespace) -> CommitteeSettings | None:
    """What the options of ``add_committee_options`` ask for; None without a ``--policy``.

    Raises:
        UsageError: Options that do not go together, or a value out of range.
    """
    if arguments.policy is None:
        return None

    from pcmoe_det.committee.options import CommitteeOptions
    from pcmoe_det.committee.policies import create_policy
    from pcmoe_det.committee.settings import CommitteeSettings

    return CommitteeSettings(
        create_policy(arguments.policy, _policy_options(arguments)),
        arguments.expert_budget or "0.5",
        CommitteeOptions(
            on_miss=arguments.on_miss,
            stand_in_weight=arguments.stand_in_weight,
            update_period=arguments.update_period,
            max_swaps_per_frame=arguments.max_swaps_per_frame,
            synchronous=arguments.loading == "synchronous",
        ),
    )


def _policy_options(arguments: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": arguments.policy_seed}
    for name in ("importance", "margin"):
        value = getattr(arguments, name)
        if value is not None:
            if arguments.policy != "pcmoe":
                raise UsageError(f"--{name} is an option of --policy pcmoe, not of {arguments.policy}")
            options[name] = value
    return options
