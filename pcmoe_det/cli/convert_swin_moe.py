"""``pcmoe-convert-swin-moe``: official rank-sharded Swin-MoE checkpoints into a detector's backbone."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcmoe_det.cli.entry import EXIT_OK, make_parser, run
from pcmoe_det.cli.outputs import check_output_file
from pcmoe_det.errors import CheckpointError

__all__ = ["entry", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pcmoe-convert-swin-moe",
        "Convert an official Swin-MoE checkpoint (PREFIX.master, PREFIX.rank0, PREFIX.rank1, ...) into "
        "weights of a detector's backbone.",
    )
    parser.add_argument("prefix", type=Path, help="path without .master and .rank0, such as swin_moe.pth")
    parser.add_argument("--output", type=Path, required=True, help="the .safetensors file to write")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    check_output_file(arguments.output, overwrite=arguments.overwrite, suffix=".safetensors")

    from pcmoe_det.models.official import backbone_config, convert_official_swin, read_sharded
    from pcmoe_det.models.registry import SwinMoE
    from pcmoe_det.models.weights_file import WeightsInfo, load_into, save_weights

    source = read_sharded(arguments.prefix)
    conversion = convert_official_swin(source)
    config = backbone_config(conversion, source)
    try:
        backbone = SwinMoE(**{key: value for key, value in config.items() if key != "type"})
    except (TypeError, ValueError) as error:
        raise CheckpointError(f"{arguments.prefix} is no Swin-MoE that fits our backbone: {error}") from error
    load_into(backbone, conversion.tensors, source=str(arguments.prefix))  # every tensor, in name and shape
    prefixed = {f"backbone.{name}": tensor for name, tensor in conversion.tensors.items()}
    save_weights(arguments.output, prefixed, WeightsInfo(model={"backbone": config}))

    print(f"{len(source)} tensors read, {len(conversion.tensors)} written to {arguments.output}")
    if conversion.added:
        print(f"added as zeros (official shards leave them out): {len(conversion.added)}")
        for name in conversion.added:
            print(f"  backbone.{name}")
    print(f"skipped: {len(conversion.skipped)}")
    for name, reason in conversion.skipped.items():
        print(f"  {name} ({reason})")
    print(
        f"backbone: {config['num_experts']} experts in blocks {config['moe_blocks']}, "
        f"embed_dims={config['embed_dims']}, depths={config['depths']}, window_size={config['window_size']}"
    )
    print(f"start a detector with this backbone from it: pcmoe-train CONFIG --weights {arguments.output}")
    return EXIT_OK


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
