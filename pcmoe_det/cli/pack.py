"""``pcmoe-pack``: weights into a packed model, whose experts are read one by one."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcmoe_det.cli.entry import EXIT_OK, make_parser, run
from pcmoe_det.errors import UsageError

__all__ = ["entry", "main"]

_CONFIG_ENDINGS = (".py", ".json", ".yaml", ".yml")


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pcmoe-pack",
        "Write a detector with MoE layers as a packed model: a folder that every tool takes in place of "
        "weights, and that is opened without holding all experts in memory.",
    )
    parser.add_argument(
        "inputs",
        nargs="*",
        type=Path,
        metavar="[CONFIG] [WEIGHTS]",
        help="mmengine config (.py; not needed for weights that describe themselves), then the weights "
        "(.safetensors) or training checkpoint (.pth), or several files that hold parts of one; the shipped "
        "weights if none are named",
    )
    parser.add_argument("--output", type=Path, required=True, help="the folder to make")
    parser.add_argument(
        "--dtype",
        choices=("auto", "float32", "bfloat16"),
        default="auto",
        help="of the experts and of the arithmetic; auto is bfloat16 where this machine is fast in it",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing packed model")
    parser.add_argument(
        "--random-weights",
        type=int,
        metavar="SEED",
        help="pack the config with random weights of this seed, to measure memory and time",
    )
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    config, weights = _split(arguments.inputs)
    if arguments.random_weights is not None:
        if config is None or weights:
            raise UsageError("--random-weights makes the weights: name a config and no weights with it")
        if not 0 <= arguments.random_weights < 2**32:
            raise UsageError(f"--random-weights is {arguments.random_weights}; it must be 0 to {2**32 - 1}")

    from pcmoe_det.committee.packed_folder import check_output_folder
    from pcmoe_det.committee.packed_format import PACK_FILES

    check_output_folder(arguments.output, overwrite=arguments.overwrite, own_files=PACK_FILES)

    import torch

    from pcmoe_det.committee.packing import pack, pack_random
    from pcmoe_det.models.inference import fast_bfloat16, shipped_weights

    low = arguments.dtype == "bfloat16"
    if arguments.dtype == "auto":
        low = fast_bfloat16(torch.device("cpu"))
    dtype = torch.bfloat16 if low else torch.float32
    if arguments.random_weights is not None and config is not None:
        packed = pack_random(
            config,
            arguments.output,
            dtype=dtype,
            seed=arguments.random_weights,
            overwrite=arguments.overwrite,
        )
    else:
        packed = pack(
            config, weights or shipped_weights(), arguments.output, dtype=dtype, overwrite=arguments.overwrite
        )
    experts = sum(spec.num_experts for spec in packed.layers)
    print(
        f"wrote {packed.path}: {len(packed.layers)} MoE layers with {experts} experts in "
        f"{str(packed.dtype).removeprefix('torch.')}, {packed.expert_bytes / 1e6:.1f} MB; "
        f"everything else {packed.dense_bytes / 1e6:.1f} MB"
    )
    return EXIT_OK


def _split(inputs: list[Path]) -> tuple[Path | None, list[Path]]:
    """The config, if the first input is one, and the weights."""
    if inputs and inputs[0].suffix in _CONFIG_ENDINGS:
        return inputs[0], inputs[1:]
    return None, inputs


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
