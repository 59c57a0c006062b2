"""``make_street``: street videos with exact labels, as a SHIFT data set or as a clip."""

from __future__ import annotations

import argparse
import os
from pathlib import Path

from pcmoe_det.cli.entry import EXIT_OK, make_parser, run
from pcmoe_det.errors import UsageError

__all__ = ["entry"]


def _size(text: str) -> tuple[int, int]:
    width, cross, height = text.lower().partition("x")
    if not (cross and width.isdigit() and height.isdigit()):
        raise argparse.ArgumentTypeError(f"'{text}' is not a size; write it as 640x360")
    return int(width), int(height)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pcmoe-make-street",
        "Make street videos of moving vehicles and people, with exact boxes and track ids.",
    )
    parser.add_argument(
        "--output",
        type=Path,
        required=True,
        metavar="DIR|FILE.mp4",
        help="root of a SHIFT-layout data set, or a clip (.mp4, .mov or .mkv)",
    )
    what = parser.add_argument_group("what is shown")
    what.add_argument("--seed", type=int, default=0, help="of the first video; the others count on from it")
    what.add_argument("--videos", type=int, default=1, metavar="N", help="number of videos")
    what.add_argument("--frames", type=int, default=100, metavar="N", help="frames in each video")
    what.add_argument(
        "--size", type=_size, default="640x360", metavar="WxH", help="of the pictures, in pixels"
    )
    what.add_argument("--fps", type=float, default=10.0, help="frames per second")
    what.add_argument(
        "--shift",
        default="random",
        metavar="NAME",
        help="course of weather and time of day, such as clear, night or daytime_to_night",
    )
    what.add_argument(
        "--camera", default="random", choices=("dashcam", "roadside", "random"), help="where the camera is"
    )
    what.add_argument(
        "--density", type=float, default=1.0, help="factor on the number of vehicles and people"
    )
    layout = parser.add_argument_group("data set")
    layout.add_argument("--subset", default="discrete/videos", help="part of SHIFT's path before the split")
    layout.add_argument("--split", default="val", help="name of the split")
    layout.add_argument("--view", default="front", help="name of SHIFT's camera")
    layout.add_argument(
        "--archive", default="zip", choices=("zip", "tar", "folder"), help="how pictures are kept"
    )
    layout.add_argument("--jpeg-quality", type=int, default=92, metavar="1-100", help="of the pictures")
    parser.add_argument(
        "--workers",
        type=int,
        default=len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1,
        metavar="N",
        help="processes that draw, a video each (data sets; the files are the same for any number)",
    )
    parser.add_argument("--overwrite", action="store_true", help="replace output that is there")
    return parser


def _is_clip(output: Path) -> bool:
    """Whether ``output`` names a clip, not the folder of a data set.

    Raises:
        UsageError: It has the ending of a video that is not written.
    """
    from pcmoe_det.datasets.street_writer import CLIP_FORMATS
    from pcmoe_det.offline.job import VIDEO_FILE_SUFFIXES

    suffix = output.suffix.lower()
    if suffix in VIDEO_FILE_SUFFIXES and suffix not in CLIP_FORMATS:
        raise UsageError(
            f"--output {output}: clips are not written as {suffix}; use {', '.join(CLIP_FORMATS)}, or a name "
            "without the ending of a video for the folder of a data set"
        )
    return suffix in CLIP_FORMATS


def _work(arguments: argparse.Namespace) -> int:
    from tqdm import tqdm

    from pcmoe_det.datasets.street_video import StreetVideo
    from pcmoe_det.datasets.street_writer import write_clip, write_shift_split

    if arguments.videos < 1:
        raise UsageError(f"--videos {arguments.videos} is below 1")
    clip = _is_clip(arguments.output)
    if clip and arguments.videos != 1:
        raise UsageError(f"a clip holds one video, not {arguments.videos}; give a folder as --output")
    width, height = arguments.size
    videos = [
        StreetVideo(
            arguments.seed + index,
            width=width,
            height=height,
            fps=arguments.fps,
            num_frames=arguments.frames,
            shift=arguments.shift,
            camera=arguments.camera,
            density=arguments.density,
            view=arguments.view,
        )
        for index in range(arguments.videos)
    ]
    with tqdm(total=arguments.videos * arguments.frames, unit="frame", disable=None) as bar:
        if clip:
            written = write_clip(
                arguments.output, videos[0], overwrite=arguments.overwrite, on_frame=bar.update
            )
        else:
            written = write_shift_split(
                arguments.output,
                subset=arguments.subset,
                split=arguments.split,
                view=arguments.view,
                videos=videos,
                archive=arguments.archive,
                jpeg_quality=arguments.jpeg_quality,
                overwrite=arguments.overwrite,
                workers=arguments.workers,
                on_frame=bar.update,
            )
    print(f"wrote {written}: {arguments.videos} video(s) of {arguments.frames} frames")
    return EXIT_OK


def entry() -> int:
    """Run the command; returns the exit code."""
    return run(_parser(), _work)


if __name__ == "__main__":
    raise SystemExit(entry())
