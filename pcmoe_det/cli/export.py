"""``pcmoe-export``: a training checkpoint into weights that users run."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcmoe_det.cli.entry import EXIT_OK, make_parser, run
from pcmoe_det.cli.outputs import check_output_file
from pcmoe_det.errors import ConfigError

__all__ = ["entry", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pcmoe-export",
        "Write a training checkpoint (its averaged weights, if it has them) as a weights file that "
        "describes its own model.",
    )
    parser.add_argument("config", type=Path, help="mmengine config of the model")
    parser.add_argument("checkpoint", type=Path, help="training checkpoint (.pth) or weights (.safetensors)")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16", help="of the file")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    check_output_file(arguments.output, overwrite=arguments.overwrite, suffix=".safetensors")

    import torch

    from pcmoe_det.models.inference import build_model, info_from_config
    from pcmoe_det.models.trusted_types import untrusted_type
    from pcmoe_det.models.weights_file import load_into, read_weights, save_weights

    info = info_from_config(arguments.config)
    untrusted = untrusted_type(info.model)
    if untrusted is not None:  # nobody could open the file without the config
        raise ConfigError(f"{arguments.config} cannot be put into a weights file: {untrusted}")
    tensors, _ = read_weights(arguments.checkpoint, described=False)
    load_into(build_model(info.model), tensors, source=str(arguments.checkpoint))
    save_weights(arguments.output, tensors, info, dtype=getattr(torch, arguments.dtype))
    megabytes = arguments.output.stat().st_size / 1e6
    print(f"wrote {arguments.output}: {len(tensors)} tensors, {megabytes:.1f} MB, {arguments.dtype}")
    return EXIT_OK


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
