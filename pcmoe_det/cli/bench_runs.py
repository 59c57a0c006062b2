"""What ``pcmoe-bench`` measures."""

from __future__ import annotations

import copy
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from mmdet.models.backbones.swin import SwinTransformer
from numpy.typing import NDArray

from pcmoe_det.cli.committee_choice import parse_bandwidth
from pcmoe_det.committee.accounting import anonymous_memory_bytes
from pcmoe_det.committee.committee import Committee
from pcmoe_det.committee.loading import LOADER_NAME
from pcmoe_det.committee.options import CommitteeOptions
from pcmoe_det.committee.packed_model import PackedModel
from pcmoe_det.committee.policies import create_policy
from pcmoe_det.committee.settings import CommitteeSettings
from pcmoe_det.committee.store import DiskExpertStore
from pcmoe_det.datasets.street_video import StreetVideo
from pcmoe_det.errors import DataError
from pcmoe_det.models.inference import Detector, fast_bfloat16
from pcmoe_det.models.official import convert_mmdet_swin
from pcmoe_det.models.prepacked import can_prepack, prepack
from pcmoe_det.models.swin_moe import SwinMoE

__all__ = ["check_soak", "compare_backbones", "compare_policies", "soak"]

_WARM_UP = 3


def _in_turn(variants: Mapping[str, Callable[[], object]], *, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of each variant, run in turn ``rounds`` times after a warm-up."""
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(_WARM_UP + rounds):
        for name, call in variants.items():
            start = time.perf_counter()
            call()
            if number >= _WARM_UP:
                times[name].append(1000 * (time.perf_counter() - start))
    return times


def compare_backbones(size: tuple[int, int], *, embed_dims: int, window: int, rounds: int) -> dict[str, Any]:
    """Our backbone as inference runs it against mmdet's of the same size and weights.

    mmdet's runs as it is shipped (float32) and, where bfloat16 is fast, under autocast too.
    """
    torch.manual_seed(0)
    sizes = dict(embed_dims=embed_dims, depths=(2, 2, 6, 2), num_heads=(3, 6, 12, 24), window_size=window)
    theirs = SwinTransformer(**sizes, init_cfg=None)
    theirs.eval()
    ours = SwinMoE(**sizes, num_experts=0)  # type: ignore[arg-type]
    ours.load_state_dict(convert_mmdet_swin(theirs.state_dict()).tensors)
    ours.eval().requires_grad_(False)
    image = torch.randn(1, 3, *size)
    cpu = torch.device("cpu")
    ready: dict[torch.dtype, torch.nn.Module] = {torch.float32: ours}
    if fast_bfloat16(cpu):
        ready[torch.bfloat16] = copy.deepcopy(ours).to(torch.bfloat16)
    if can_prepack(cpu):
        for backbone in ready.values():
            prepack(backbone)
    with torch.inference_mode():
        expected = theirs(image)
        difference = max(
            float((a - b).abs().max()) for a, b in zip(ready[torch.float32](image), expected, strict=True)
        )
        variants: dict[str, Callable[[], object]] = {}
        for dtype, backbone in ready.items():
            name = str(dtype).removeprefix("torch.")
            variants[f"mmdet {name}"] = partial(_autocast, theirs, image, dtype)
            variants[f"ours {name}"] = partial(backbone, image.to(dtype))
        times = _in_turn(variants, rounds=rounds)
    medians = {name: float(np.median(values)) for name, values in times.items()}
    ratios = {
        f"{ours_name} / {mmdet_name}": medians[ours_name] / medians[mmdet_name]
        for ours_name in medians
        for mmdet_name in medians
        if ours_name.startswith("ours") and mmdet_name.startswith("mmdet")
    }
    return {
        "threads": torch.get_num_threads(),
        "largest_difference_float32": difference,
        "median_ms": medians,
        "ratios": ratios,
    }


def _autocast(model: torch.nn.Module, image: torch.Tensor, dtype: torch.dtype) -> object:
    if dtype == torch.float32:
        return model(image)
    with torch.autocast("cpu", dtype=dtype):
        return model(image)


def _pictures(size: tuple[int, int], frames: int) -> list[NDArray[np.uint8]]:
    height, width = size
    video = StreetVideo(
        1, width=max(width, 64), height=max(height, 64), num_frames=min(frames, 200), shift="clear"
    )
    return [frame.image for frame in video]


def _committee(
    stack: ExitStack, packed: PackedModel, name: str, *, budget: str, **store: Any
) -> tuple[Detector, Committee]:
    """A detector of its own under a policy; ``forced`` is pcmoe with random importance."""
    forced = name == "forced"
    policy = create_policy(
        "pcmoe" if forced else name, {"importance": "random", "margin": 0.0} if forced else {}
    )
    experts = DiskExpertStore(packed, **store)
    stack.callback(experts.close)
    model = packed.build_detector_model()
    options = CommitteeOptions(smoothing=0.0 if forced else CommitteeOptions.smoothing)
    settings = CommitteeSettings(policy, budget, options)
    committee = settings.build(model, experts, device=torch.device("cpu"))
    stack.callback(committee.close)
    stack.enter_context(committee.patched(model))
    detector = Detector(model, class_names=packed.info.class_names, long_side=packed.info.long_side)
    return detector, committee


def compare_policies(
    path: Path, size: tuple[int, int], *, budget: str, frames: int, cold: bool, bandwidth: str | None
) -> dict[str, Any]:
    """Frame times under ``all``, ``pcmoe``, forced swaps, a still committee and ``on_demand``, in turn."""
    limit = None if bandwidth is None else parse_bandwidth(bandwidth)
    packed = PackedModel.open(path)
    pictures = _pictures(size, frames)
    with ExitStack() as stack:
        made = {
            name: _committee(stack, packed, name, budget=budget, cold=cold, bandwidth_bytes_per_second=limit)
            for name in ("all", "random_keep", "pcmoe", "forced", "on_demand")
        }
        times: dict[str, list[float]] = {name: [] for name in made}
        in_flight: list[float] = []
        for number in range(_WARM_UP + frames):
            for name, (detector, committee) in made.items():
                loading = bool(committee.memory.in_flight)
                start = time.perf_counter()
                detector.detect([pictures[number % len(pictures)]])
                elapsed = 1000 * (time.perf_counter() - start)
                if number >= _WARM_UP:
                    times[name].append(elapsed)
                    if name == "forced" and loading:
                        in_flight.append(elapsed)
        medians = {name: float(np.median(values)) for name, values in times.items()}
        still = medians["random_keep"]
        return {
            "threads": torch.get_num_threads(),
            "read_mode": made["pcmoe"][1].store.read_mode,
            "bandwidth_bytes_per_second": limit,
            "median_ms": medians,
            "ratio_to_all": {name: value / medians["all"] for name, value in medians.items()},
            "forced_frames_with_a_load_in_flight": len(in_flight),
            "in_flight_ratio_to_still": float(np.median(in_flight)) / still if in_flight else None,
            "accounting": {name: committee.report()["summary"] for name, (_, committee) in made.items()},
        }


def soak(path: Path, size: tuple[int, int], *, budget: str, frames: int) -> dict[str, Any]:
    """Forced background swaps for many frames; memory is sampled along the way."""
    packed = PackedModel.open(path)
    pictures = _pictures(size, 50)
    samples: list[tuple[int, int]] = []
    with ExitStack() as stack:
        detector, committee = _committee(stack, packed, "forced", budget=budget)
        detector.long_side = 0
        for number in range(frames):
            detector.detect([pictures[number % len(pictures)]])
            if number % max(1, frames // 40) == 0 or number + 1 == frames:
                samples.append((number, anonymous_memory_bytes() or 0))
        committee.wait_for_loads()
        report = committee.report()
        counters = committee.store.counters
    settled = [memory for frame, memory in samples if frame >= min(1000, frames // 2)]
    return {
        "frames": frames,
        "anonymous_bytes": samples,
        "growth_after_settling_bytes": settled[-1] - settled[0],
        "accounting": {key: value for key, value in report.items() if key != "layers"},
        "store": asdict(counters),
        "threads_left": [thread.name for thread in threading.enumerate() if thread.name == LOADER_NAME],
    }


def check_soak(result: Mapping[str, Any]) -> None:
    """Compare the committee's account of a soak with what the store itself counted.

    Raises:
        DataError: They differ, or a thread was left.
    """
    account, store = result["accounting"], result["store"]
    for what, own, others in (
        ("reads", store["reads"], account["fills"] + account["swaps"] + account["miss_loads"]),
        ("bytes", store["bytes_read"], account["bytes_read"]),
        ("failures", store["failures"], account["failed_loads"]),
    ):
        if own != others:
            raise DataError(f"the store counted {own} {what}, the committee {others}")
    if result["threads_left"]:
        raise DataError(f"threads were left: {', '.join(result['threads_left'])}")
