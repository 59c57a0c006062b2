"""``tools/convert_results.py``: JSON Lines results as COCO results or MOT Challenge text."""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pcmoe_det.cli.entry import EXIT_OK, make_parser, run
from pcmoe_det.cli.outputs import check_no_input
from pcmoe_det.errors import ConfigError, DataError, UsageError
from pcmoe_det.structures import SHIFT_CLASSES

if TYPE_CHECKING:
    from pcmoe_det.streaming.coco_sink import CocoResultsFile
    from pcmoe_det.streaming.mot_sink import MotFile
    from pcmoe_det.streaming.output_files import OutputFile
    from pcmoe_det.streaming.record_files import RecordReader

__all__ = ["convert_results", "entry", "read_categories"]


def entry() -> int:
    """The command ``pcmoe-convert-results``."""
    return run(_parser(), convert_results)


def convert_results(arguments: argparse.Namespace) -> int:
    """Convert one file in one pass; memory does not grow with it.

    Args:
        arguments: As the parser of ``entry`` gives them.

    Returns:
        The exit code 0.

    Raises:
        PcmoeError: A damaged line (the message has its number), a class without an id, an output that
            cannot be written or would replace an input. No output is left then.
    """
    from pcmoe_det.streaming.coco_sink import CocoResultsFile, category_ids_of
    from pcmoe_det.streaming.mot_sink import MotFile
    from pcmoe_det.streaming.output_files import OutputFile
    from pcmoe_det.streaming.record_files import RecordReader

    if arguments.coco is None and arguments.mot is None:
        raise UsageError("nothing to write: give --coco FILE, --mot FILE or both")
    ids = category_ids_of(SHIFT_CLASSES)
    if arguments.categories is not None:
        ids = read_categories(Path(arguments.categories))
    reader = RecordReader(arguments.results, source=arguments.source)
    targets = {
        option: OutputFile(
            getattr(arguments, option), overwrite=arguments.overwrite, source=arguments.results
        )
        for option in ("coco", "mot")
        if getattr(arguments, option) is not None
    }
    _check_names(targets, inputs=(arguments.results, arguments.categories))
    outputs: list[CocoResultsFile | MotFile] = []
    with ExitStack() as on_failure:
        if "coco" in targets:
            outputs.append(CocoResultsFile(targets["coco"], category_ids=ids))
            on_failure.callback(outputs[-1].discard)
        if "mot" in targets:
            outputs.append(MotFile(targets["mot"]))
            on_failure.callback(outputs[-1].discard)
        frames, unseen = _copy(reader, outputs, only_classes=arguments.category)
        on_failure.pop_all()
    paths = [path for output in outputs for path in output.close("complete")]
    unfinished = ", 1 unfinished last line left out" if reader.unfinished_lines else ""
    print(f"{outputs[0].count} detections in {frames} frames{unfinished}")
    for name in unseen:
        print(f"no detection is of the class {name!r}")
    for path in paths:
        print(f"wrote {path}")
    return EXIT_OK


def read_categories(path: Path) -> dict[str, int]:
    """Ids by class name from the ``categories`` of a COCO file: ground truth, or what ``--coco`` wrote.

    Raises:
        ConfigError: There is no such file, or its categories are not a list of unique names and ids.
    """
    try:
        content = json.loads(path.read_bytes())
        categories = content["categories"] if isinstance(content, dict) else None
        pairs = [(item["name"], item["id"]) for item in categories or ()]
    except OSError as error:
        raise ConfigError(f"{path} cannot be read: {error.strerror or error}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{path} is no COCO file with categories: {error}") from error
    if not pairs or not all(isinstance(name, str) and type(id_) is int for name, id_ in pairs):
        raise ConfigError(f"{path} has no list 'categories' of objects with a text 'name' and a number 'id'")
    ids = dict(pairs)
    if len(ids) < len(pairs) or len(set(ids.values())) < len(pairs):
        raise ConfigError(f"{path} has two categories of one name or id")
    return ids


def _check_names(targets: Mapping[str, OutputFile], *, inputs: Sequence[str | None]) -> None:
    """Refuse to write what is read, and to write one file twice, under temporary names too.

    Raises:
        OutputError: An output, or the file it is until it is whole, is an input, or cannot be written.
        UsageError: Two options would write one file.
    """
    from pcmoe_det.streaming.coco_sink import categories_target

    taken: dict[Path, str] = {}
    for option, target in targets.items():
        files = (target, categories_target(target)) if option == "coco" else (target,)
        for path in (path for file in files for path in (file.path, file.partial_path)):
            check_no_input(path, inputs)
            if taken.setdefault(path.absolute(), option) != option:
                raise UsageError(f"--coco and --mot both write {path}; give them different names")


def _copy(
    reader: RecordReader,
    outputs: Sequence[CocoResultsFile | MotFile],
    *,
    only_classes: Sequence[str] | None,
) -> tuple[int, list[str]]:
    """Give every record to every output.

    Returns:
        The number of frames, and which of ``only_classes`` did not occur.
    """
    frames = 0
    seen: set[str] = set()
    for record in reader:
        if only_classes is not None:
            kept = tuple(found for found in record.detections if found.category in only_classes)
            seen.update(found.category for found in kept)
            record = replace(record, detections=kept)
        for output in outputs:
            try:
                output.append(record)
            except ValueError as error:
                raise DataError(
                    f"frame {record.frame_index}: {error}; give the model's classes with --categories, or "
                    "choose classes with --category"
                ) from error
        frames += 1
    return frames, [name for name in only_classes or () if name not in seen]


def _parser() -> argparse.ArgumentParser:
    parser = make_parser(
        "pcmoe-convert-results", "Convert the JSON Lines of pcmoe-stream to COCO results or MOT text."
    )
    parser.add_argument("results", metavar="IN.jsonl", help="also a .part file of a run that did not finish")
    parser.add_argument(
        "--coco",
        metavar="OUT.json",
        help="write COCO results (image_id is the frame's index, from 0) and OUT.categories.json",
    )
    parser.add_argument(
        "--mot",
        metavar="OUT.txt",
        help="write MOT Challenge text (frames and pixels from 1; id -1 without tracks)",
    )
    parser.add_argument(
        "--categories",
        metavar="FILE",
        help="take the category ids of a COCO file; otherwise SHIFT's six classes are 1 to 6",
    )
    parser.add_argument(
        "--category", action="append", metavar="NAME", help="only this class; may be repeated"
    )
    parser.add_argument("--source", metavar="NAME", help="only records of this source")
    parser.add_argument("--overwrite", action="store_true", help="replace existing output files")
    return parser
