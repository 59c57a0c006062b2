"""The options of ``tools/stream.py``. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
import math
import re
from collections.abc import Callable

from pcmoe_det.cli.committee_options import add_committee_options
from pcmoe_det.cli.entry import make_parser, whole_number

__all__ = ["add_model_options", "make_stream_parser"]

# Named here too, so that --help needs no video library; a test compares them.
_MODES = ("auto", "every-frame", "freshest")
_TRACKERS = ("bytetrack", "sort", "ocsort")
_PREVIEW_PORT = 8080

_SEVERAL = (
    "With several sources --output, --jsonl, --coco and --mot take a folder, or a name with {source} (the "
    "source's name) or {n} (its number from 1); --crops and --frames make a folder for each."
)


def make_stream_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = make_parser(
        "pcmoe-stream", "Detect objects in videos, pictures and cameras, also in several at once."
    )
    _add_sources(parser)
    _add_outputs(parser)
    _add_pipeline(parser)
    _add_preview(parser)
    add_model_options(parser)
    add_committee_options(parser, loading="background")
    return parser


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """What to detect with."""
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="PATH",
        help="weights, or a folder of tools/pack.py; without it the shipped weights",
    )
    model.add_argument(
        "--config", metavar="PATH", help="the model's configuration, where the weights do not name it"
    )
    model.add_argument("--device", default="cpu", help="where the model runs")
    model.add_argument("--threads", type=whole_number(1), metavar="N", help="threads of the detector")
    model.add_argument(
        "--score-threshold", type=_score, default=0.3, metavar="S", help="leave out detections scored below"
    )
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="arithmetic")


def _add_sources(parser: argparse.ArgumentParser) -> None:
    source = parser.add_argument_group(
        "sources", "At least one; each may be given several times. All share one model and take turns."
    )
    source.add_argument(
        "--source",
        action="append",
        metavar="SOURCE",
        help="a video file, a folder or pattern of pictures, an rtsp://, http(s):// or udp:// address, or - "
        "for motion JPEG on standard input",
    )
    source.add_argument(
        "--camera", action="append", type=whole_number(0), metavar="N", help="a camera by its index, from 0"
    )
    source.add_argument(
        "--max-frames", type=whole_number(1), metavar="N", help="stop each after so many frames"
    )
    source.add_argument(
        "--open-timeout",
        type=_duration(),
        default=10.0,
        metavar="TIME",
        help="how long a source may take to answer",
    )
    source.add_argument(
        "--read-timeout",
        type=_duration(),
        default=10.0,
        metavar="TIME",
        help="after so long without a picture a live source is lost and opened again",
    )
    source.add_argument(
        "--reconnect",
        type=_reconnect,
        default="forever",
        metavar="N|forever",
        help="attempts in a row to get a lost live source back",
    )
    source.add_argument(
        "--frozen-after",
        type=_frozen_after,
        default=10.0,
        metavar="TIME|never",
        help="showing the very same picture so long, a live source is lost",
    )


def _add_outputs(parser: argparse.ArgumentParser) -> None:
    output = parser.add_argument_group("output", _SEVERAL)
    output.add_argument(
        "--output", metavar="FILE", help="write the video with boxes drawn (H.264: .mp4 .m4v .mov .mkv)"
    )
    output.add_argument("--jsonl", metavar="FILE", help="write one JSON object per frame")
    output.add_argument(
        "--coco", metavar="FILE", help="write the detections in COCO's results format (.json)"
    )
    output.add_argument("--mot", metavar="FILE", help="write the detections as MOT Challenge text")
    output.add_argument("--crops", metavar="FOLDER", help="write every detection as a picture")
    output.add_argument("--frames", metavar="FOLDER", help="write every frame with boxes as a picture")
    output.add_argument(
        "--max-images",
        type=whole_number(1),
        metavar="N",
        help="leave out and count pictures of --crops and of --frames beyond so many; default: the disk is "
        "the limit",
    )
    output.add_argument("--summary", metavar="FILE", help="write the final summary as JSON")
    output.add_argument("--show", action="store_true", help="open a window; q closes it and ends")
    output.add_argument("--overwrite", action="store_true", help="replace existing output files")


def _add_pipeline(parser: argparse.ArgumentParser) -> None:
    pipeline = parser.add_argument_group("pipeline")
    pipeline.add_argument(
        "--mode",
        choices=_MODES,
        default="auto",
        help="detect every frame, or always the freshest and drop what there is no time for; auto: every "
        "frame of files, the freshest of live sources",
    )
    pipeline.add_argument(
        "--max-latency",
        type=_duration(bare_number=False),
        metavar="TIME",
        help="drop frames that could not be answered within this time from their capture, such as 200ms "
        "(live sources and --mode freshest)",
    )
    pipeline.add_argument(
        "--track", nargs="?", const="bytetrack", choices=_TRACKERS, metavar="TRACKER",
        help=f"give objects numbers that last from frame to frame: {', '.join(_TRACKERS)}; default bytetrack",
    )  # fmt: skip


def _add_preview(parser: argparse.ArgumentParser) -> None:
    preview = parser.add_argument_group("preview", "A web page with the live picture, figures and /metrics.")
    preview.add_argument(
        "--preview", nargs="?", const=_PREVIEW_PORT, type=_port, metavar="PORT",
        help=f"serve it on this machine only; default port {_PREVIEW_PORT}",
    )  # fmt: skip
    preview.add_argument(
        "--preview-host", metavar="ADDRESS", help="serve it on another address; needs --preview-token"
    )
    preview.add_argument(
        "--preview-token",
        metavar="TOKEN",
        help="what a visitor must know; better in the environment as PCMOE_PREVIEW_TOKEN, where no list of "
        "processes shows it",
    )


def _port(text: str) -> int:
    value = int(text) if re.fullmatch(r"[0-9]{1,5}", text) else -1
    if not 0 <= value <= 65535:
        raise argparse.ArgumentTypeError(f"{text!r} is not a port (0 to 65535; 0 takes a free one)")
    return value


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value


def _duration(*, bare_number: bool = True) -> Callable[[str], float]:
    """Seconds of ``200ms``, ``0.2s``, ``2min`` and, with ``bare_number``, ``0.2``."""

    def parse(text: str) -> float:
        match = re.fullmatch(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|min)?\s*", text)
        if match is None or (match[2] is None and not bare_number):
            raise argparse.ArgumentTypeError(f"{text!r} is not a time; write it like 200ms or 0.2s")
        seconds = float(match[1]) * {"ms": 1e-3, "s": 1.0, "min": 60.0, None: 1.0}[match[2]]
        if seconds <= 0 or math.isinf(seconds):
            raise argparse.ArgumentTypeError(f"{text!r} is not a time above 0")
        return seconds

    return parse


def _frozen_after(text: str) -> float:
    return math.inf if text == "never" else _duration()(text)


def _reconnect(text: str) -> int | None:
    return None if text == "forever" else whole_number(0)(text)
