"""Options of commands that run a detector under an expert budget, and the detector they describe."""

from __future__ import annotations

import argparse
import logging
import math
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pcmoe_det.cli.committee_choice import (
    DEFAULT_STAND_IN_WEIGHT,
    LARGEST_SEED,
    MISS_HANDLINGS,
    POLICY_NAMES,
    STAND_IN_WEIGHTS,
    check_committee_options,
    committee_settings,
    parse_bandwidth,
)
from pcmoe_det.cli.entry import whole_number
from pcmoe_det.cli.temporary_pack import TemporaryPack
from pcmoe_det.errors import OutputError, UsageError

if TYPE_CHECKING:
    from pcmoe_det.committee.committee import Committee
    from pcmoe_det.committee.packed_model import PackedModel
    from pcmoe_det.committee.settings import CommitteeSettings
    from pcmoe_det.committee.store import ExpertStore
    from pcmoe_det.models.inference import Detector
    from pcmoe_det.structures import FrameDetector

__all__ = ["OpenedDetector", "add_committee_options", "open_detector"]

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class OpenedDetector:
    """A detector, and the committee inside it and its settings if it runs under one."""

    detector: Detector
    committee: Committee | None = None
    settings: CommitteeSettings | None = None

    def for_frames(self) -> FrameDetector:
        """The detector as a stream uses it: with a committee, each frame says what it cost."""
        if self.committee is None:
            return self.detector
        from pcmoe_det.committee.detector import CommitteeDetector

        return CommitteeDetector(self.detector, self.committee)


class _Given(argparse.Action):
    """Stores the value, and that it was given: a default has an effect or none, a wish must have one."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,  # noqa: ARG002
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,  # noqa: ARG002
    ) -> None:
        setattr(namespace, self.dest, values)
        names = getattr(namespace, "committee_options_given", ())
        namespace.committee_options_given = (*names, self.dest)


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
        action=_Given,
        choices=STAND_IN_WEIGHTS,
        default=DEFAULT_STAND_IN_WEIGHT,
        help="gate weight of an expert that stands in for an absent one: its own score, the absent one's, or "
        "its own over the sum of the resident ones'",
    )
    group.add_argument(
        "--importance", choices=("eq1", "counts", "magnitude", "random"), help="of --policy pcmoe"
    )
    group.add_argument("--margin", type=_margin, help="how much better a challenger must be (--policy pcmoe)")
    group.add_argument(
        "--update-period", action=_Given, type=whole_number(1), default=1, help="frames between updates"
    )
    group.add_argument(
        "--max-swaps-per-frame",
        action=_Given,
        type=whole_number(1),
        default=2,
        help="most loads started after a frame",
    )
    group.add_argument(
        "--policy-seed",
        action=_Given,
        type=whole_number(0, LARGEST_SEED),
        default=0,
        help="of --policy random_keep",
    )
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
        action=_Given,
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


def _margin(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0")
    return value


@contextmanager
def open_detector(
    model: str | None,
    arguments: argparse.Namespace,
    *,
    score_threshold: float,
    settings: CommitteeSettings | None = None,
    config_is_of_data: bool = False,
) -> Iterator[OpenedDetector]:
    """Open weights or a packed folder, with the committee that the options ask for.

    Args:
        model: Weights file or packed folder; None is the shipped weights.
        arguments: Those of ``add_committee_options``, and ``config``, ``device``, ``threads``, ``dtype``.
        score_threshold: Detections below it are dropped.
        settings: Of the committee; None takes those of the options.
        config_is_of_data: ``config`` also says what to evaluate on, so it is welcome beside a packed model,
            which has its own of the model.

    Raises:
        PcmoeError: The model, the options or the budget cannot be used.
    """
    check_committee_options(arguments, has_settings=settings is not None)
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
            yield OpenedDetector(detector)
            return
        if is_packed(path):
            packed = _packed(path, arguments, config_is_of_data=config_is_of_data)
            yield _open_packed(packed, settings, arguments, stack, threshold=score_threshold)
            return
        temporary = stack.enter_context(_temporary_pack())
        _warn_of_memory(temporary.path)
        packed = _pack(path, arguments, temporary.path / "packed")
        opened = _open_packed(packed, settings, arguments, stack, threshold=score_threshold)
        temporary.remove()  # dense weights are in the model, and the stores have the experts' file open
        yield opened


def _packed(path: Path, arguments: argparse.Namespace, *, config_is_of_data: bool) -> PackedModel:
    """The packed model itself, if the options agree with what it was packed as."""
    from pcmoe_det.committee.packed_model import PackedModel

    packed = PackedModel.open(path)
    own = str(packed.dtype).removeprefix("torch.")
    if arguments.dtype not in ("auto", own):
        raise UsageError(
            f"--dtype {arguments.dtype}: {path} was packed in {own}; leave the option out, or pack the "
            "weights again with it"
        )
    if arguments.config is not None and not config_is_of_data:
        raise UsageError(f"--config: the packed model {path} has its own configuration; leave the option out")
    return packed


def _temporary_pack() -> TemporaryPack:
    try:
        return TemporaryPack()
    except OSError as error:
        raise OutputError(
            f"no temporary folder to pack the weights into ({error.strerror or error}); set TMPDIR to one, "
            "or pack them once with tools/pack.py"
        ) from error


def _warn_of_memory(folder: Path) -> None:
    """A file system in memory would keep there what the committee spares."""
    from pcmoe_det.committee.store_disk import lies_in_memory

    with suppress(OSError):
        if lies_in_memory(folder):
            _log.warning(
                "the temporary folder %s is in memory, and all experts with it; pack the weights once with "
                "tools/pack.py, or set TMPDIR to a folder on a disk",
                folder.parent,
            )


def _pack(path: Path, arguments: argparse.Namespace, folder: Path) -> PackedModel:
    """Plain weights, packed into ``folder``."""
    from pcmoe_det.committee.packing import pack
    from pcmoe_det.models.devices import checked_device
    from pcmoe_det.models.inference import inference_dtype, info_from_config

    return pack(
        None if arguments.config is None else info_from_config(Path(arguments.config)),
        path,
        folder,
        dtype=inference_dtype(arguments.dtype, checked_device(arguments.device)),
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

    from pcmoe_det.committee.store import DiskExpertStore, PinnedHostStore
    from pcmoe_det.committee.trace import TraceWriter
    from pcmoe_det.models.devices import checked_device
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
        return OpenedDetector(detector)
    bandwidth = None
    if arguments.store_bandwidth is not None:
        bandwidth = parse_bandwidth(arguments.store_bandwidth)
    device = checked_device(arguments.device)
    store: ExpertStore = DiskExpertStore(
        packed, cold=arguments.cold_reads, bandwidth_bytes_per_second=bandwidth
    )
    stack.callback(store.close)
    if device.type == "cuda":
        store = PinnedHostStore(store)
        stack.callback(store.close)
    trace = None
    if arguments.trace is not None:
        trace = stack.enter_context(TraceWriter(arguments.trace, packed.layers))
    committee = settings.build(model, store, device=device, trace=trace)
    stack.callback(committee.close)
    stack.enter_context(committee.patched(model))
    return OpenedDetector(detector, committee, settings)
