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

__all__ = ["entry", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pcmoe-upcycle",
        "Make start weights for an MoE detector by copying each dense FFN into all experts of its layer.",
    )
    parser.add_argument("config", type=Path, help="mmengine config of the MoE detector")
    parser.add_argument("dense", type=Path, help="weights or training checkpoint of the dense twin")
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
    parser.add_argument("--seed", type=int, default=0)
    return parser


def _token_samples(dense: nn.Module, names: list[str], data_root: str, *, images: int) -> dict[str, Tensor]:
    """Inputs of the FFNs that become MoE layers, over some training images of the dense twin."""
    import torch
    from mmengine.dataset import pseudo_collate

    from pcmoe_det.datasets.shift import ShiftDataset

    pipeline = [
        dict(type="LoadShiftImage"),
        dict(type="Resize", scale=(416, 416), keep_ratio=True),
        dict(type="PackDetInputs"),
    ]
    data = ShiftDataset(data_root, subset="discrete/images", split="train", test_mode=True, pipeline=pipeline)
    samples: dict[str, list[Tensor]] = {name: [] for name in names}
    modules = dict(dense.named_modules())

    def keep(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Tensor, ...]) -> None:  # noqa: ARG001
            samples[name].append(inputs[0].flatten(0, -2).float())

        return hook

    handles = [modules[name].register_forward_pre_hook(keep(name)) for name in names]
    step = max(1, len(data) // images)
    with torch.inference_mode():
        for index in range(0, min(len(data), step * images), step):
            batch = dense.data_preprocessor(pseudo_collate([data[index]]), False)  # type: ignore[operator]
            dense.backbone(batch["inputs"])  # type: ignore[operator]
    for handle in handles:
        handle.remove()
    return {name: torch.cat(parts).clone() for name, parts in samples.items()}


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    check_output_file(arguments.output, overwrite=arguments.overwrite, suffix=".safetensors")
    if arguments.images < 1:
        raise UsageError(f"--images is {arguments.images}; it must be 1 or more")

    import torch

    from pcmoe_det.models.gates import LinearGate
    from pcmoe_det.models.inference import build_model, info_from_config
    from pcmoe_det.models.moe import MoELayer
    from pcmoe_det.models.upcycling import cluster_gates, upcycle
    from pcmoe_det.models.weights_file import load_into, read_weights, save_weights

    torch.manual_seed(arguments.seed)
    info = info_from_config(arguments.config)
    model = build_model(info.model)
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
    if not layers:
        raise CheckpointError(f"{arguments.config} has no MoE layers; name the config of the MoE detector")
    tensors, _ = read_weights(arguments.dense, described=False)

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
    result = upcycle(
        model,
        tensors,
        gate_weights=gate_weights,
        jitter=arguments.jitter,
        redrawn_share=arguments.redraw,
    )
    save_weights(arguments.output, result.tensors, info)
    print(f"wrote {arguments.output}: {result.copied} FFNs copied, {len(result.kept)} gate tensors new")
    return EXIT_OK


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
