"""Names of a stream's outputs, checked before anything slow happens."""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pcmoe_det.cli.outputs import check_no_input, model_inputs
from pcmoe_det.errors import OutputError, SourceError, UsageError

if TYPE_CHECKING:
    from pcmoe_det.streaming import OutputFile

__all__ = ["StreamOutputs", "check_outputs", "file_stem", "make_folder"]

_FILE_ENDINGS = {"output": ".mp4", "jsonl": ".jsonl", "coco": ".json", "mot": ".txt"}
_FOLDERS = ("crops", "frames")


@dataclass
class StreamOutputs:
    """Where the outputs of one source go, by option."""

    files: dict[str, OutputFile] = field(default_factory=dict)
    folders: dict[str, Path] = field(default_factory=dict)


def file_stem(location: str | int) -> str:
    """What ``{source}`` stands for: a name without folders, credentials and characters that files lack.

    >>> file_stem("videos/street.mp4"), file_stem(0), file_stem("rtsp://me:secret@cam.local:554/live?key=1")
    ('street', 'camera-0', 'cam.local-554-live')

    Raises:
        UsageError: An address that cannot be understood.
    """
    if isinstance(location, int):
        return f"camera-{location}"
    if location == "-":
        return "stdin"
    from pcmoe_det.streaming.addresses import is_address, parse_address

    if is_address(location):
        name = parse_address(location).redacted.partition("://")[2].partition("?")[0]
    else:
        path = Path(location)
        name = path.name if os.path.isdir(path) else path.stem  # noqa: PTH112 (False for names too long)
    return re.sub(r"[^\w.-]+", "-", name).strip("-.") or "source"


def check_outputs(
    arguments: argparse.Namespace, locations: Sequence[str | int]
) -> tuple[list[StreamOutputs], OutputFile | None]:
    """The outputs of each source, and the file of the summary.

    The trace is checked like the others; who writes it opens it.

    Raises:
        PcmoeError: A name that several sources or outputs would share, a source or a file of the model, or
            an output that cannot be written.
    """
    from pcmoe_det.streaming import OutputFile
    from pcmoe_det.streaming.window_sink import check_display

    if arguments.max_images is not None and arguments.crops is None and arguments.frames is None:
        raise UsageError("--max-images needs --crops or --frames")
    taken: dict[Path, str] = {}
    outputs = [StreamOutputs() for _ in locations]
    for number, (location, output) in enumerate(zip(locations, outputs, strict=True), start=1):
        stem = file_stem(location)
        for option, ending in _FILE_ENDINGS.items():
            given = getattr(arguments, option)
            if given is None:
                continue
            name = _file_name(
                given, option, stem=stem, number=number, several=len(locations) > 1, ending=ending
            )
            _check_inputs(name, arguments, locations)
            target = _open_target(name, option, arguments.overwrite, location, taken)
            _check_inputs(target.partial_path, arguments, locations)
            output.files[option] = target
        for option in _FOLDERS:
            given = getattr(arguments, option)
            if given is not None:
                folder = _folder_name(given, stem=stem, number=number, several=len(locations) > 1)
                _check_folder(folder, option, arguments.overwrite, location, taken)
                output.folders[option] = folder
    of_all = {}
    for option in ("summary", "trace"):
        given = getattr(arguments, option)
        if given is not None:
            _check_inputs(Path(given), arguments, locations)
            of_all[option] = OutputFile(given, overwrite=arguments.overwrite)
            _check_inputs(of_all[option].partial_path, arguments, locations)
            _take(taken, of_all[option], option)
    if arguments.show:
        check_display()
    return outputs, of_all.get("summary")


def make_folder(folder: Path) -> Path:
    """``folder``, which a sink makes itself, with the folder around it made.

    Raises:
        OutputError: That cannot be made.
    """
    try:
        folder.parent.mkdir(exist_ok=True)
    except OSError as error:
        raise OutputError(f"{folder.parent} cannot be made: {error.strerror or error}") from error
    return folder


def _file_name(given: str, option: str, *, stem: str, number: int, several: bool, ending: str) -> Path:
    """``given`` with its placeholders filled in, or a name in it if it is a folder."""
    if given.endswith("/") or os.path.isdir(given):  # noqa: PTH112 (False for names too long)
        return Path(_filled(given, stem, number)) / f"{stem}{ending}"
    name = _filled(given, stem, number)
    if several and name == given:
        raise UsageError(
            f"--{option} {given} names one file for several sources; give a folder, or a name with "
            f"{{source}} or {{n}}, such as {Path(given).with_name('{source}' + Path(given).suffix)}"
        )
    return Path(name)


def _folder_name(given: str, *, stem: str, number: int, several: bool) -> Path:
    name = _filled(given, stem, number)
    return Path(given) / stem if several and name == given else Path(name)


def _filled(given: str, stem: str, number: int) -> str:
    return given.replace("{source}", stem).replace("{n}", str(number))


def _open_target(
    name: Path,
    option: str,
    overwrite: bool,
    location: str | int,
    taken: dict[Path, str],
) -> OutputFile:
    from pcmoe_det.streaming import OutputFile
    from pcmoe_det.streaming.coco_sink import categories_target
    from pcmoe_det.streaming.video_sink import check_video_suffix

    if option == "output":
        check_video_suffix(name)
    target = OutputFile(name, overwrite=overwrite, source=location if isinstance(location, str) else None)
    _take(taken, target, option)
    if option == "coco":
        _take(taken, categories_target(target), option)
    return target


def _check_inputs(name: Path, arguments: argparse.Namespace, locations: Sequence[str | int]) -> None:
    """Refuse to write what this run reads."""
    for location in locations:
        if isinstance(location, str) and _is_read(name, location):
            raise OutputError(f"the output {name} is the source itself; choose another name")
    check_no_input(name, model_inputs(arguments.model, arguments.config))


def _is_read(name: Path, location: str) -> bool:
    """Whether ``name`` is the source, or one of its pictures."""
    from pcmoe_det.streaming.image_source import find_pictures
    from pcmoe_det.streaming.still_pictures import PICTURE_SUFFIXES

    if _is_same_file(name, location):
        return True
    if name.suffix.lower() not in PICTURE_SUFFIXES or not os.path.exists(name):  # noqa: PTH110
        return False
    try:
        return any(_is_same_file(name, picture) for picture in find_pictures(location))
    except SourceError:  # no pictures there; what is wrong with it will be told when it is opened
        return False


def _is_same_file(one: str | Path, other: str | Path) -> bool:
    try:
        return Path(one).samefile(other)
    except (OSError, ValueError):  # not there, a name too long, a NUL character
        return False


def _take(taken: dict[Path, str], target: OutputFile, option: str) -> None:
    """Refuse a name that another output of this run has."""
    names = [_place(name) for name in (target.path, target.partial_path)]
    for name in names:
        other = taken.get(name)
        if other == option:
            raise UsageError(
                f"two sources would both write {name} with --{option}; "
                "put {n} into the name to tell them apart"
            )
        if other is not None:
            raise UsageError(f"--{other} and --{option} both write {name}; give them different names")
    for name in names:
        taken[name] = option


def _place(name: Path) -> Path:
    """The folder entry that would be written, however it is spelled."""
    return name.parent.resolve() / name.name


def _check_folder(
    folder: Path, option: str, overwrite: bool, location: str | int, taken: dict[Path, str]
) -> None:
    from pcmoe_det.streaming.image_sinks import check_image_folder

    other = taken.get(_place(folder))
    if other is not None:
        both = (
            f"two sources would both use {folder} with --{option}; put {{n}} into the name"
            if other == option
            else f"--{other} and --{option} both use {folder}; give them different names"
        )
        raise UsageError(both)
    taken[_place(folder)] = option
    # The folder around those of several sources is made by ``make_folder``, when there is something to keep.
    to_check = folder if os.path.exists(folder.parent) else folder.parent  # noqa: PTH110
    check_image_folder(to_check, overwrite=overwrite, source=location if isinstance(location, str) else None)
