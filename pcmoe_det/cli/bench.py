"""``pcmoe-bench``: speed and memory as ratios measured in one run."""

from __future__ import annotations

import argparse
import json
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcmoe_det.cli.committee_choice import committee_settings
from pcmoe_det.cli.committee_options import add_committee_options, open_detector
from pcmoe_det.cli.entry import EXIT_OK, make_parser, run, whole_number
from pcmoe_det.cli.outputs import check_no_input, check_output_file, write_json
from pcmoe_det.errors import UsageError

if TYPE_CHECKING:
    from pcmoe_det.structures import FrameDetector

__all__ = ["entry", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pcmoe-bench",
        "Measure variants in turn (A B A B) in one process and report medians and their ratio: absolute "
        "times drift, ratios hold. Leave the machine alone meanwhile.",
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the result here")
    parser.add_argument("--threads", type=whole_number(1), metavar="N", help="threads of torch")
    commands = parser.add_subparsers(dest="command", required=True)

    backbone = commands.add_parser("backbone", help="our dense backbone against mmdet's SwinTransformer")
    backbone.add_argument("--size", default="256x416", metavar="HxW")
    backbone.add_argument("--embed-dims", type=whole_number(1), default=48)
    backbone.add_argument("--window", type=whole_number(1), default=7)
    backbone.add_argument("--rounds", type=whole_number(1), default=20)

    committee = commands.add_parser("committee", help="frame times of policies on one packed model")
    committee.add_argument("model", type=Path, help="packed model (tools/pack.py)")
    committee.add_argument("--expert-budget", default="0.5", metavar="SHARE|SIZE")
    committee.add_argument("--frames", type=whole_number(1), default=100)
    committee.add_argument("--size", default="360x640", metavar="HxW", help="of the generated frames")
    committee.add_argument("--cold-reads", action="store_true")
    committee.add_argument("--store-bandwidth", metavar="SIZE")

    soak = commands.add_parser("soak", help="many frames with forced swaps: memory and counters")
    soak.add_argument("model", type=Path, help="packed model")
    soak.add_argument("--expert-budget", default="0.5", metavar="SHARE|SIZE")
    soak.add_argument("--frames", type=whole_number(1), default=20000)
    soak.add_argument("--size", default="64x96", metavar="HxW")

    pipeline = commands.add_parser(
        "pipeline", help="decoding, drawing and H.264 with the detector, against the detector alone"
    )
    pipeline.add_argument("clip", type=Path, help="a video file")
    pipeline.add_argument(
        "--model", metavar="PATH", help="weights or packed model; default: the shipped ones"
    )
    pipeline.add_argument(
        "--stand-in",
        type=float,
        metavar="MS",
        help="instead of a model: keep one core busy for so many milliseconds a frame",
    )
    pipeline.add_argument("--frames", type=int, default=60)
    pipeline.add_argument("--rounds", type=int, default=5)
    pipeline.set_defaults(config=None, device="cpu", dtype="auto")
    add_committee_options(pipeline, loading="background")
    return parser


def _size(text: str) -> tuple[int, int]:
    height, cross, width = text.partition("x")
    if not (cross and height.isdigit() and width.isdigit() and int(height) and int(width)):
        raise UsageError(f"--size {text!r}: write it as HEIGHTxWIDTH, such as 256x416")
    return int(height), int(width)


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    if arguments.json is not None:
        check_output_file(arguments.json, overwrite=True)
        check_no_input(arguments.json, [getattr(arguments, "model", None), getattr(arguments, "clip", None)])
    result = _pipeline(arguments) if arguments.command == "pipeline" else _models(arguments)
    print(json.dumps(result, indent=2))
    if arguments.json is not None:
        write_json(arguments.json, result)
    if arguments.command == "soak":
        from pcmoe_det.cli.bench_runs import check_soak

        check_soak(result)
    return EXIT_OK


def _pipeline(arguments: argparse.Namespace) -> dict[str, Any]:
    from pcmoe_det.cli.bench_pipeline import StandInDetector, compare_pipeline

    for name in ("frames", "rounds"):
        if getattr(arguments, name) < 1:
            raise UsageError(f"--{name} {getattr(arguments, name)}: give a whole number from 1")
    settings = committee_settings(arguments)
    if arguments.trace is not None:
        raise UsageError("--trace records one stream; use it with tools/stream.py")
    with ExitStack() as stack:
        detector: FrameDetector
        if arguments.stand_in is not None:
            if arguments.model is not None or settings is not None:
                raise UsageError("--stand-in is instead of a model; leave out one of the two")
            detector, name = StandInDetector(arguments.stand_in), f"stand-in of {arguments.stand_in:g} ms"
        else:
            opened = stack.enter_context(
                open_detector(arguments.model, arguments, score_threshold=0.3, settings=settings)
            )
            detector, name = opened.for_frames(), arguments.model or "shipped weights"
        result = compare_pipeline(
            arguments.clip, detector=detector, frames=arguments.frames, rounds=arguments.rounds
        )
    committee = None if settings is None else settings.to_json_dict()
    return {"detector": name, "committee": committee, "threads": arguments.threads, **result}


def _models(arguments: argparse.Namespace) -> dict[str, Any]:
    size = _size(arguments.size)

    import torch

    from pcmoe_det.cli import bench_runs

    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    result: dict[str, Any]
    if arguments.command == "backbone":
        result = bench_runs.compare_backbones(
            size, embed_dims=arguments.embed_dims, window=arguments.window, rounds=arguments.rounds
        )
    elif arguments.command == "committee":
        result = bench_runs.compare_policies(
            arguments.model,
            size,
            budget=arguments.expert_budget,
            frames=arguments.frames,
            cold=arguments.cold_reads,
            bandwidth=arguments.store_bandwidth,
        )
    else:
        result = bench_runs.soak(
            arguments.model, size, budget=arguments.expert_budget, frames=arguments.frames
        )
    return result


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
