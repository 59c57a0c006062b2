"""``pcmoe-analyze``: what traces and runs say about experts."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from pcmoe_det.cli.entry import EXIT_OK, make_parser, run, whole_number
from pcmoe_det.cli.outputs import check_no_input, check_output_file, check_outputs_apart, write_json
from pcmoe_det.errors import UsageError

__all__ = ["entry", "main"]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("pcmoe-analyze", "Analyse what a detector's experts did.")
    commands = parser.add_subparsers(dest="command", required=True)
    locality = commands.add_parser(
        "locality",
        help="do consecutive frames use the same experts?",
        description="Draw the heat map of a trace (frames x experts) and print how much the most used "
        "experts of frames t and t+n overlap, against the same frames shuffled, and how much of a frame they "
        "serve: chosen in that frame, in the one before, once for the whole trace, or at random.",
    )
    locality.add_argument(
        "trace", type=Path, help="file written by --trace of tools/stream.py or tools/test.py"
    )
    locality.add_argument("--output", type=Path, help="the picture; default: the trace's name with .png")
    locality.add_argument("--json", type=Path, metavar="FILE", help="write the statistics here")
    locality.add_argument(
        "--top", type=whole_number(1), metavar="N", help="experts compared; default: half of a layer's"
    )
    locality.add_argument("--lags", default="1,5,25,100", help="frames between t and t+n")
    locality.add_argument("--measure", choices=("tokens", "importance"), default="tokens")
    locality.set_defaults(work=_locality)
    compare = commands.add_parser(
        "compare",
        help="how much worse are runs than a baseline, and could it be chance?",
        description="Score runs of tools/test.py --detections on the same frames, and the difference of each "
        "from a baseline with its 95 % interval from a paired bootstrap.",
    )
    compare.add_argument("runs", type=Path, nargs="+", metavar="RUN.npz", help="written by tools/test.py")
    compare.add_argument(
        "--baseline", type=Path, required=True, metavar="RUN.npz", help="such as --policy all"
    )
    compare.add_argument(
        "--truth",
        default="labels",
        metavar="labels|baseline|RUN.npz",
        help="score against the labels, or against the confident detections of the baseline or of another "
        "run (agreement); default: labels",
    )
    compare.add_argument(
        "--unit", choices=("frame", "video"), default="frame", help="what the bootstrap draws"
    )
    compare.add_argument("--resamples", type=int, default=1000, help="draws of the bootstrap")
    compare.add_argument("--json", type=Path, metavar="FILE", help="write the table here")
    compare.set_defaults(work=_compare)
    return parser


def _lags(text: str) -> list[int]:
    try:
        lags = [int(part) for part in text.split(",")]
    except ValueError as error:
        raise UsageError(f"--lags {text!r}: write whole numbers with commas, such as 1,5,25") from error
    if any(lag < 1 for lag in lags):
        raise UsageError(f"--lags {text!r}: every lag must be 1 or more")
    return lags


def main(arguments: argparse.Namespace) -> int:
    """Do the work of the command; returns the exit code."""
    code: int = arguments.work(arguments)
    return code


def _compare(arguments: argparse.Namespace) -> int:
    if arguments.json is not None:
        check_output_file(arguments.json, overwrite=True)
        check_no_input(arguments.json, [*arguments.runs, arguments.baseline, arguments.truth])
    if arguments.resamples < 1:
        raise UsageError(f"--resamples is {arguments.resamples}; it must be 1 or more")

    from pcmoe_det.evaluation.comparison import compare_runs, format_comparison
    from pcmoe_det.evaluation.detection_files import read_detections

    baseline = read_detections(arguments.baseline)
    reference = baseline if arguments.truth == "baseline" else None
    if arguments.truth not in ("labels", "baseline"):
        reference = read_detections(Path(arguments.truth))
    rows = compare_runs(
        {name: read_detections(path) for name, path in _names(arguments.runs).items()},
        baseline,
        reference=reference,
        unit=arguments.unit,
        resamples=arguments.resamples,
    )
    print(format_comparison(rows))
    if arguments.json is not None:
        write_json(arguments.json, {"runs": [row.to_json_dict() for row in rows]})
    return EXIT_OK


def _names(paths: list[Path]) -> dict[str, Path]:
    """Each file by its name without the ending, or by its whole path where two have the same name."""
    stems = [path.stem for path in paths]
    return {path.stem if stems.count(path.stem) == 1 else str(path): path for path in paths}


def _locality(arguments: argparse.Namespace) -> int:
    if not arguments.trace.name:
        raise UsageError(f"{arguments.trace} is a folder; name a file written by --trace")
    picture = arguments.output or arguments.trace.with_suffix(".png")
    check_output_file(picture, overwrite=True, suffix=".png")
    check_no_input(picture, [arguments.trace])
    if arguments.json is not None:
        check_output_file(arguments.json, overwrite=True)
        check_no_input(arguments.json, [arguments.trace])
    check_outputs_apart({"--output": picture, "--json": arguments.json})
    lags = _lags(arguments.lags)

    from pcmoe_det.committee.locality import draw_heat_map, locality_statistics
    from pcmoe_det.committee.trace import read_trace

    header, frames = read_trace(arguments.trace)
    recorded = list(frames)
    statistics = locality_statistics(
        header, recorded, lags=lags, top=arguments.top, measure=arguments.measure
    )
    draw_heat_map(picture, header, recorded, measure=arguments.measure)
    print(_locality_text(statistics, lags))
    print(f"wrote {picture}")
    if arguments.json is not None:
        write_json(arguments.json, json.loads(json.dumps(statistics)))
    return EXIT_OK


def _locality_text(statistics: dict[str, Any], lags: list[int]) -> str:
    layers = statistics["layers"]
    overlaps = [
        [*(layer["overlap"][str(lag)] for lag in lags), layer["shuffled_overlap"], layer["chance_overlap"]]
        for layer in layers
    ]
    of_streams = f" of {statistics['streams']} streams" if statistics["streams"] > 1 else ""
    coverages = [list(layer["coverage"].values()) for layer in layers]
    return "\n".join(
        [
            f"{statistics['frames']} frames{of_streams}; overlap of the top experts (1 is the same set)",
            *_rows(layers, [*(f"t+{lag}" for lag in lags), "shuffled", "chance"], overlaps),
            f"share of a frame's {statistics['measure']} that as many experts get, by how they are chosen",
            *_rows(layers, ["same frame", "frame before", "best fixed", "any"], coverages),
        ]
    )


def _rows(layers: list[dict[str, Any]], titles: list[str], values: list[list[float | None]]) -> list[str]:
    """A table with a row for each layer; None is a dash."""
    widths = [max(8, len(title)) for title in titles]
    head = " ".join(f"{title:>{width}}" for title, width in zip(titles, widths, strict=True))
    lines = [f"{'layer':<34} {'top':>3} {head}"]
    for layer, row in zip(layers, values, strict=True):
        cells = ("-" if value is None else f"{value:.3f}" for value in row)
        text = " ".join(f"{cell:>{width}}" for cell, width in zip(cells, widths, strict=True))
        lines.append(f"{layer['name']:<34} {layer['top']:>3} {text}")
    return lines


def entry() -> int:
    """Console script."""
    return run(_parser(), main)
