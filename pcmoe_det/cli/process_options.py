"""The options of ``tools/process.py``. Imports nothing heavy, so that ``--help`` is quick."""

from __future__ import annotations

import argparse
from pathlib import Path

from pcmoe_det.cli.committee_options import add_committee_options
from pcmoe_det.cli.entry import make_parser, whole_number
from pcmoe_det.cli.stream_options import add_model_options

__all__ = ["make_process_parser"]

_DESCRIPTION = """Detect objects in all videos of a folder and its subfolders.

Each video NAME becomes NAME.jsonl (and NAME.mp4 with --video) in the same tree under --output; a result
is there whole or not at all. What became of each file is in DIR/status.jsonl. Run the same command again
after a crash or Ctrl-C: files that are done stay, a file that has changed since is done again. Names that
begin with a dot are left out, links to folders are not followed.
"""
_NOTES = """With --ray every machine of the cluster needs, under the same absolute paths, FOLDER, DIR and the
model (a shared file system), and this package in the same version in the Python that Ray uses. Give a folder
of tools/pack.py as --model where you use --policy, so that no worker packs the weights again.

Exit codes: 0 all files are done, 1 some failed, 2 wrong use, 130 interrupted.
"""


def make_process_parser() -> argparse.ArgumentParser:
    """The parser of the command."""
    parser = make_parser("pcmoe-process", _DESCRIPTION)
    parser.epilog = _NOTES
    parser.add_argument("folder", type=Path, metavar="FOLDER", help="the videos")
    output = parser.add_argument_group("files")
    output.add_argument("--output", type=Path, required=True, metavar="DIR", help="where the results go")
    output.add_argument(
        "--glob",
        action="append",
        metavar="PATTERN",
        help="take files with such names (with a /: such paths in FOLDER) instead of all with a video's "
        "ending; may be given several times",
    )
    output.add_argument(
        "--pictures", action="store_true", help="also take each folder that holds pictures, as one video"
    )
    output.add_argument("--video", action="store_true", help="also write each video with boxes drawn (H.264)")
    output.add_argument(
        "--max-frames", type=whole_number(1), metavar="N", help="stop each file after so many frames"
    )
    output.add_argument(
        "--retry-failed", action="store_true", help="try files again that failed in an earlier run"
    )
    output.add_argument(
        "--overwrite",
        action="store_true",
        help="replace results that this job did not make, or made with other settings",
    )
    workers = parser.add_argument_group("workers", "Each has the model open and works on one file.")
    workers.add_argument(
        "--workers",
        type=whole_number(1),
        metavar="N",
        help="how many; default: 1, with --ray one for each machine. Each has the cores of its machine "
        "divided by their number, or --threads",
    )
    workers.add_argument(
        "--ray",
        metavar="ADDRESS",
        help="run them on the Ray cluster there (host:port, ray://host:port, or auto for this machine's); "
        "needs the package ray",
    )
    add_model_options(parser)
    add_committee_options(parser, loading="synchronous")
    return parser
