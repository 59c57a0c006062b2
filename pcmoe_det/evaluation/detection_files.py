"""What a run of ``tools/test.py`` saw and found, as one file: labels and detections of every frame.

A NumPy archive of plain arrays (no pickles): detections and labels of all frames one after the other, with
the number of them in each frame, and the rest as JSON. Runs on the same frames can be compared later,
without running a model again.
"""

from __future__ import annotations

import json
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import DataError, OutputError
from pcmoe_det.evaluation.records import FrameTruth
from pcmoe_det.structures import Detections

__all__ = ["DetectionFile", "read_detections", "write_detections"]

_FORMAT = 1
# What NumPy and zipfile raise for a file that is damaged somewhere.
_DAMAGE = (
    OSError,
    ValueError,
    LookupError,
    TypeError,
    EOFError,
    MemoryError,
    RuntimeError,
    SyntaxError,
    struct.error,
    tokenize.TokenError,
    zipfile.BadZipFile,
    zlib.error,
)


@dataclass(frozen=True, slots=True, eq=False)
class DetectionFile:
    """One run.

    Attributes:
        truths: Labels of each frame, in the order of the data set.
        detections: What was found in each.
        class_names: Names by class id.
        settings: Of the run, such as the policy and its budget.
    """

    truths: tuple[FrameTruth, ...]
    detections: tuple[Detections, ...]
    class_names: tuple[str, ...]
    settings: Mapping[str, Any]


def write_detections(
    path: Path,
    truths: Sequence[FrameTruth],
    detections: Sequence[Detections],
    *,
    class_names: Sequence[str],
    settings: Mapping[str, Any],
) -> None:
    """Write a run, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    frames = [
        {
            "frame_id": truth.frame_id,
            "video": truth.video,
            "width": truth.width,
            "height": truth.height,
            "judged_classes": None if truth.judged_classes is None else sorted(truth.judged_classes),
            "groups": dict(truth.groups),
        }
        for truth in truths
    ]
    about = {
        "format": _FORMAT,
        "class_names": list(class_names),
        "settings": dict(settings),
        "frames": frames,
    }
    arrays: dict[str, NDArray[Any]] = {
        "about": np.frombuffer(json.dumps(about).encode(), np.uint8),
        "found_counts": np.array([len(found) for found in detections], np.int64),
        "found_boxes_xyxy": _joined([found.boxes_xyxy for found in detections], (0, 4), np.float32),
        "found_scores": _joined([found.scores for found in detections], (0,), np.float32),
        "found_class_ids": _joined([found.class_ids for found in detections], (0,), np.int64),
        "label_counts": np.array([len(truth.class_ids) for truth in truths], np.int64),
        "label_boxes_xyxy": _joined([truth.boxes_xyxy for truth in truths], (0, 4), np.float64),
        "label_class_ids": _joined([truth.class_ids for truth in truths], (0,), np.int64),
        "label_ignored": _joined([truth.ignored for truth in truths], (0,), np.bool_),
        "label_from_teacher": _joined(
            [
                np.zeros(len(truth.class_ids), bool) if truth.from_teacher is None else truth.from_teacher
                for truth in truths
            ],
            (0,),
            np.bool_,
        ),
    }
    part = path.with_name(path.name + ".part")
    try:
        with part.open("wb") as file:
            np.savez_compressed(file, allow_pickle=False, **arrays)
        part.replace(path)
    except OSError as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error


def read_detections(path: Path) -> DetectionFile:
    """Read what ``write_detections`` wrote.

    Raises:
        DataError: There is no such file, or it is damaged or something else.
    """
    try:
        with np.load(path, allow_pickle=False) as archive:
            arrays = {name: archive[name] for name in archive.files}
        about = json.loads(arrays["about"].tobytes())
        if about["format"] != _FORMAT:
            raise DataError(f"{path} has format {about['format']}, this program reads {_FORMAT}; update it")
        found = _split(arrays, "found", ("boxes_xyxy", "scores", "class_ids"))
        labels = _split(arrays, "label", ("boxes_xyxy", "class_ids", "ignored", "from_teacher"))
        truths = tuple(
            FrameTruth(
                frame_id=frame["frame_id"],
                video=frame["video"],
                width=frame["width"],
                height=frame["height"],
                judged_classes=None
                if frame["judged_classes"] is None
                else frozenset(frame["judged_classes"]),
                groups=frame["groups"],
                **label,
            )
            for frame, label in zip(about["frames"], labels, strict=True)
        )
        return DetectionFile(
            truths=truths,
            detections=tuple(
                Detections(each["boxes_xyxy"], each["scores"], each["class_ids"]) for each in found
            ),
            class_names=tuple(about["class_names"]),
            settings=about["settings"],
        )
    except FileNotFoundError:
        raise DataError(f"there is no file {path}; make one with tools/test.py --detections FILE") from None
    except _DAMAGE as error:
        raise DataError(
            f"{path} is not a file of detections ({type(error).__name__}); make one with "
            "tools/test.py --detections FILE"
        ) from error


def _joined(parts: Sequence[NDArray[Any]], empty: tuple[int, ...], dtype: type) -> NDArray[Any]:
    return np.concatenate([np.zeros(empty, dtype), *parts]).astype(dtype)


def _split(
    arrays: Mapping[str, NDArray[Any]], prefix: str, names: Sequence[str]
) -> list[dict[str, NDArray[Any]]]:
    """One mapping per frame."""
    counts = arrays[f"{prefix}_counts"]
    ends = np.cumsum(counts)[:-1]
    if any(len(arrays[f"{prefix}_{name}"]) != counts.sum() for name in names):
        raise ValueError("lengths differ")
    parts = {name: np.split(arrays[f"{prefix}_{name}"], ends) for name in names}
    return [{name: parts[name][index] for name in names} for index in range(len(counts))]
