"""``pcmoe-upcycle``: start weights for an MoE detector from those of its dense twin."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcmoe_det.cli.entry import EXIT_OK, make_parser, run
from pcmoe_det.cli.outputs import check_output_file
from pcmoe_det.errors import CheckpointError, UsageError

if TYPE_CHECKING:
    from torch import Tensor, nn

    from pcmoe_det.models.moe import MoELayer
    from pcmoe_det.models.upcycling import Upcycled
    from pcmoe_det.models.weights_file import WeightsInfo

__all__ = ["entry", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pcmoe-upcycle",
        "Make start weights for an MoE detector by copying each dense FFN into all experts of its layer.",
    )
    parser.add_argument("config", type=Path, help="mmengine config of the MoE detector")
    parser.add_argument(
        "dense",
        type=Path,
        help="weights or training checkpoint of the dense twin; or, with --write-share alone, of the MoE "
        "detector itself",
    )
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    parser.add_argument(
        "--data-root",
        help="set the gates by clustering the tokens of this data (SHIFT layout, discrete/images, train); "
        "without it they stay random",
    )
    parser.add_argument("--images", type=int, default=64, help="images to cluster tokens of")
    parser.add_argument("--jitter", type=float, default=0.05, help="relative noise on the copied weights")
    parser.add_argument(
        "--redraw",
        type=float,
        default=0.0,
        metavar="SHARE",
        help="share of each expert's hidden units to draw anew, 0 to 1; 0.5 makes experts grow apart sooner",
    )
    parser.add_argument(
        "--write-share",
        type=float,
        metavar="SHARE",
        help="scale the experts up until each MoE layer adds at least this share of the residual stream's "
        "size (root mean square) to it, such as 0.3; needs --data-root",
    )
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _run_images(model: nn.Module, data_root: str, *, images: int) -> None:
    """Run the backbone on some training images, for the hooks that watch it."""
    import torch
    from mmengine.dataset import pseudo_collate

    from pcmoe_det.datasets.shift import ShiftDataset

    pipeline = [
        dict(type="LoadShiftImage"),
        dict(type="Resize", scale=(416, 416), keep_ratio=True),
        dict(type="PackDetInputs"),
    ]
    data = ShiftDataset(data_root, subset="discrete/images", split="train", test_mode=True, pipeline=pipeline)
    step = max(1, len(data) // images)
    with torch.inference_mode():
        for index in range(0, min(len(data), step * images), step):
            batch = model.data_preprocessor(pseudo_collate([data[index]]), False)  # type: ignore[operator]
            model.backbone(batch["inputs"])  # type: ignore[operator]


def _token_samples(dense: nn.Module, names: list[str], data_root: str, *, images: int) -> dict[str, Tensor]:
    """Inputs of the FFNs that become MoE layers, over some training images of the dense twin."""
    import torch

    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    modules = dict(dense.named_modules())

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            samples[name].append(inputs[0].flatten(0, -2).float())

        return hook

    handles = [modules[name].register_forward_pre_hook(keep(name)) for name in names]
    _run_images(dense, data_root, images=images)
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).clone() for name, parts in samples.items()}


def _write_factors(
    model: nn.Module, names: list[str], data_root: str, *, images: int, share: float
) -> dict[str, float]:
    """By how much to scale each MoE layer's output, so that it is ``share`` of the stream it is added to."""
    powers: dict[str, tuple[list[float], list[float]]] = {name: ([], []) for name in names}
    modules = dict(model.named_modules())

    def watch(name: str, index: int) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:  # noqa: ARG001
            seen = inputs[0] if index == 0 else output
            powers[name][index].append(float(seen.float().square().mean()))

        return hook

    for name in names:
        # What the block's second norm reads is the stream that the FFN's output is added to.
        modules[name.removesuffix("mlp") + "norm2"].register_forward_hook(watch(name, 0))
        modules[name].register_forward_hook(watch(name, 1))
    _run_images(model.eval(), data_root, images=images)
    return {
        name: max(1.0, share * (sum(stream) / max(sum(written), 1e-12)) ** 0.5)
        for name, (stream, written) in powers.items()
    }


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    check_output_file(arguments.output, overwrite=arguments.overwrite, suffix=".safetensors")
    if arguments.images < 1:
        raise UsageError(f"--images is {arguments.images}; it must be 1 or more")
    if arguments.write_share is not None:
        if not 0 < arguments.write_share <= 10:
            raise UsageError(f"--write-share is {arguments.write_share}; it must be above 0 and at most 10")
        if arguments.data_root is None:
            raise UsageError("--write-share measures on images: name their folder with --data-root")

    import torch

    from pcmoe_det.models.inference import build_model, info_from_config
    from pcmoe_det.models.moe import MoELayer
    from pcmoe_det.models.upcycling import scale_writes
    from pcmoe_det.models.weights_file import load_into, read_weights, save_weights

    torch.manual_seed(arguments.seed)
    info = info_from_config(arguments.config)
    model = build_model(info.model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
    if not layers:
        raise CheckpointError(f"{arguments.config} has no MoE layers; name the config of the MoE detector")
    tensors, _ = read_weights(arguments.dense, described=False)
    if any(".experts." in name for name in tensors):
        if arguments.write_share is None:
            raise UsageError(f"{arguments.dense} has experts already; only --write-share changes those")
        done = f"{len(layers)} MoE layers taken over"
    else:
        result = _from_dense(arguments, model, layers, tensors, info)
        tensors = result.tensors
        done = f"{result.copied} FFNs copied, {len(result.kept)} gate tensors new"
    load_into(model, tensors, source=str(arguments.dense))
    if arguments.write_share is not None:
        factors = _write_factors(
            model, list(layers), arguments.data_root, images=arguments.images, share=arguments.write_share
        )
        print("\n".join(f"{name}: experts scaled by {factor:.2f}" for name, factor in factors.items()))
        tensors = scale_writes(tensors, factors)
    save_weights(arguments.output, tensors, info)
    print(f"wrote {arguments.output}: {done}")
    return EXIT_OK


def _from_dense(
    arguments: argparse.Namespace,
    model: nn.Module,
    layers: dict[str, MoELayer],
    tensors: dict[str, Tensor],
    info: WeightsInfo,
) -> Upcycled:
    """Copy FFNs into experts; with data, set the gates by clustering tokens first."""
    import torch

    from pcmoe_det.models.gates import LinearGate
    from pcmoe_det.models.inference import build_model
    from pcmoe_det.models.upcycling import cluster_gates, upcycle
    from pcmoe_det.models.weights_file import load_into

    gate_weights: dict[str, float] = {}
    if arguments.data_root is not None:
        twin = build_model({**info.model, "backbone": {**info.model["backbone"], "num_experts": 0}}).eval()
        load_into(twin, tensors, source=str(arguments.dense))
        samples = _token_samples(twin, list(layers), arguments.data_root, images=arguments.images)
        for name, layer in layers.items():
            gate = layer.gate
            if not isinstance(gate, LinearGate):
                raise UsageError("--data-root sets linear gates only; leave it out for a cosine gate")
            tokens = samples[name]
            with torch.no_grad():
                gate.weight.copy_(cluster_gates(tokens, gate.num_experts))
                routing = gate.eval()(tokens)
            gate_weights[name] = float(routing.weights.sum(1).mean())
            share = torch.bincount(routing.experts[:, 0], minlength=gate.num_experts) / len(tokens)
            print(
                f"{name}: mean gate weight {gate_weights[name]:.2f}, tokens per expert (%) "
                + " ".join(f"{100 * value:.0f}" for value in share.tolist())
            )
    return upcycle(
        model,
        tensors,
        gate_weights=gate_weights,
        jitter=arguments.jitter,
        redrawn_share=arguments.redraw,
    )


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
