"""From the decoded JSON of one frame to a checked record.

What cannot be meant is an error that names the file and the frame; what a user would want skipped (a label
of an unknown category, a box beside the image) is skipped and counted.
"""

from __future__ import annotations

import json
import logging
import math
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from pcmoe_det.datasets.shift_records import LabelSource, ShiftFrame, ShiftLabel
from pcmoe_det.errors import DataError
from pcmoe_det.structures import SHIFT_CLASSES

__all__ = ["FrameReader", "SizeReader"]

_logger = logging.getLogger(__name__)

SizeReader = Callable[[str], tuple[int, int]]
"""From an archive member (``<videoName>/<name>``) to the ``(width, height)`` of its image in pixels."""


class _RawFrame(NamedTuple):
    """A frame before its size is known, since SHIFT's files end with the config; boxes as in the file."""

    position: int
    name: str
    video_name: str
    frame_index: int
    size: tuple[int, int] | None
    attributes: Mapping[str, str]
    annotated_categories: tuple[str, ...] | None
    labels: list[ShiftLabel]
    has_annotated_labels: bool


class FrameReader:
    """Turns decoded JSON into records, counting what it skips."""

    def __init__(self, path: Path, classes: tuple[str, ...]) -> None:
        self.path = path
        self.frames: list[_RawFrame] = []
        self.warnings: Counter[str] = Counter()
        self._class_ids = {name: class_id for class_id, name in enumerate(classes)}
        # One string object per class instead of one per label.
        self._class_names = {name: name for name in classes}
        self._known_names = frozenset(classes) | frozenset(SHIFT_CLASSES)
        self._examples: dict[str, str] = {}
        self._seen: dict[tuple[str, int | str], int] = {}
        # Millions of labels share a few hundred attribute sets; keeping one of each saves most of the memory.
        self._attribute_sets: dict[tuple[tuple[str, str], ...], dict[str, str]] = {}
        self._where = ""

    def consume(self, position: int, raw: object) -> None:
        """Check one element of ``frames`` and keep it."""
        self._where = f"frame {position}"
        if not isinstance(raw, dict):
            raise self._error(f"is not an object but {type(raw).__name__}; this is not a Scalabel file")
        name, video_name = self._text(raw, "name"), self._text(raw, "videoName")
        self._where = f"frame {position} ({video_name}/{name})"
        for key, text in (("name", name), ("videoName", video_name)):
            if text.startswith("/") or ".." in text.split("/"):
                raise self._error(f"has the {key} {text!r}, which points outside the image folder")
        frame_index = raw.get("frameIndex")
        if not isinstance(frame_index, int) or isinstance(frame_index, bool) or frame_index < 0:
            raise self._error(f"has the frameIndex {frame_index!r}; a whole number of 0 or more is needed")
        self._check_unique(video_name, frame_index, name, position)
        attributes = self._attributes(raw.get("attributes"))
        labels, has_annotated = self._labels(raw.get("labels"))
        self.frames.append(
            _RawFrame(
                position,
                name,
                video_name,
                frame_index,
                self._size(raw.get("size"), "size"),
                attributes,
                self._annotated_categories(attributes),
                labels,
                has_annotated,
            )
        )

    def config_size(self, config: object) -> tuple[int, int] | None:
        """``imageSize`` of the file's config, if there is one."""
        self._where = "config"
        if config is None:
            return None
        if not isinstance(config, dict):
            raise self._error(f"is not an object but {type(config).__name__}")
        return self._size(config.get("imageSize"), "imageSize")

    def finish(self, image_size: tuple[int, int] | None, read_size: SizeReader) -> tuple[ShiftFrame, ...]:
        """Sort, give every frame its size and clip its boxes. Empties ``frames``."""
        video_order: dict[str, int] = {}
        for raw in self.frames:
            video_order.setdefault(raw.video_name, len(video_order))
        self.frames.sort(key=lambda raw: (video_order[raw.video_name], raw.frame_index))
        self.frames.reverse()
        finished: list[ShiftFrame] = []
        while self.frames:
            finished.append(self._finish_frame(self.frames.pop(), image_size, read_size))
        return tuple(finished)

    def log_warnings(self) -> None:
        """Write one line with what was skipped, if anything was."""
        if self.warnings:
            counts = "; ".join(
                f"{kind}: {count} (first: {self._examples[kind]})"
                for kind, count in sorted(self.warnings.items())
            )
            _logger.warning("%s: skipped or repaired: %s", self.path, counts)

    def _finish_frame(
        self, raw: _RawFrame, image_size: tuple[int, int] | None, read_size: SizeReader
    ) -> ShiftFrame:
        member = f"{raw.video_name}/{raw.name}"
        self._where = f"frame {raw.position} ({member})"
        width, height = raw.size or image_size or read_size(member)
        labels: list[ShiftLabel] = []
        for label in raw.labels:
            box = self._clip(label.box_xyxy, width, height)
            if box is not None:
                labels.append(label if box is label.box_xyxy else replace(label, box_xyxy=box))
        return ShiftFrame(
            name=raw.name,
            video_name=raw.video_name,
            frame_index=raw.frame_index,
            width=width,
            height=height,
            attributes=raw.attributes,
            annotated_categories=raw.annotated_categories,
            labels=tuple(labels),
            has_annotated_labels=raw.has_annotated_labels,
        )

    def _clip(
        self, box: tuple[float, float, float, float], width: int, height: int
    ) -> tuple[float, float, float, float] | None:
        x1, y1, x2, y2 = box
        if x2 <= x1 or y2 <= y1:
            self._warn("box_degenerate", f"box {box}")
            return None
        if x1 >= 0 and y1 >= 0 and x2 <= width and y2 <= height:
            return box
        if x2 <= 0 or y2 <= 0 or x1 >= width or y1 >= height:
            self._warn("box_outside", f"box {box} in an image of {width}x{height}")
            return None
        self._warn("box_clipped", f"box {box} in an image of {width}x{height}")
        return max(x1, 0.0), max(y1, 0.0), min(x2, float(width)), min(y2, float(height))

    def _labels(self, raw_labels: object) -> tuple[list[ShiftLabel], bool]:
        """The labels of known categories that have a box, and whether any label at all is annotated."""
        if raw_labels is None:
            return [], False
        if not isinstance(raw_labels, list):
            raise self._error(f"has 'labels' that are not a list but {type(raw_labels).__name__}")
        labels: list[ShiftLabel] = []
        has_annotated = False
        for position, raw in enumerate(raw_labels):
            if not isinstance(raw, dict):
                raise self._error(f"has a label {position} that is not an object but {type(raw).__name__}")
            attributes = self._attributes(raw.get("attributes"))
            source = self._source(attributes, position)
            has_annotated = has_annotated or source == "annotated"
            category = self._category(raw.get("category"), position)
            box = None if category is None else self._box(raw.get("box2d"), position)
            if category is None or box is None:
                continue
            label_id = raw.get("id")
            labels.append(
                ShiftLabel(
                    str(position if label_id is None else label_id),
                    category,
                    self._class_ids[category],
                    box,
                    source,
                    attributes,
                )
            )
        return labels, has_annotated

    def _category(self, category: object, position: int) -> str | None:
        """The name if it is one of the classes asked for."""
        if not isinstance(category, str):
            raise self._error(f"has a label {position} whose category is {_shorten(category)}, not a name")
        known = self._class_names.get(category)
        if known is None and category not in self._known_names:
            self._warn("unknown_category", f"category {category!r}")
        return known

    def _source(self, attributes: Mapping[str, str], position: int) -> LabelSource:
        source = attributes.get("label_source", "annotated")
        if source == "annotated":
            return "annotated"
        if source == "teacher":
            return "teacher"
        raise self._error(
            f"has a label {position} of label_source {source!r}; known are annotated and teacher"
        )

    def _box(self, raw: object, position: int) -> tuple[float, float, float, float] | None:
        if raw is None:
            self._warn("label_without_box", f"label {position}")
            return None
        if not isinstance(raw, dict):
            raise self._error(f"has a label {position} whose box2d is not an object but {type(raw).__name__}")
        return (
            self._coordinate(raw.get("x1"), "x1", position),
            self._coordinate(raw.get("y1"), "y1", position),
            self._coordinate(raw.get("x2"), "x2", position),
            self._coordinate(raw.get("y2"), "y2", position),
        )

    def _coordinate(self, value: object, key: str, position: int) -> float:
        if isinstance(value, float) and math.isfinite(value):
            return value
        # 2**31 bounds whole numbers only so that float() cannot overflow.
        if isinstance(value, int) and not isinstance(value, bool) and abs(value) < 2**31:
            return float(value)
        raise self._error(
            f"has a label {position} whose box2d has {key} = {_shorten(value)}; a finite number is needed"
        )

    def _size(self, raw: object, key: str) -> tuple[int, int] | None:
        if raw is None:
            return None
        if isinstance(raw, dict):
            width, height = _pixels(raw.get("width")), _pixels(raw.get("height"))
            if width and height:
                return width, height
        raise self._error(
            f"has the {key} {_shorten(raw)}; width and height in whole pixels above 0 are needed"
        )

    def _annotated_categories(self, attributes: Mapping[str, str]) -> tuple[str, ...] | None:
        listed = attributes.get("annotated_categories")
        if listed is None:
            return None
        names = tuple(name.strip() for name in listed.split(",") if name.strip())
        for name in names:
            if name not in self._known_names:
                self._warn("unknown_annotated_category", f"category {name!r}")
        return names

    def _attributes(self, raw: object) -> Mapping[str, str]:
        if raw is None:
            return self._attribute_sets.setdefault((), {})
        if not isinstance(raw, dict):
            raise self._error(f"has attributes that are not an object but {type(raw).__name__}")
        try:
            known = self._attribute_sets.get(tuple(raw.items()))
        except TypeError:  # a list or an object among the values
            known = None
        if known is not None:
            return known
        # Only strings are kept as keys: a lookup must not take true for 1, which are equal in Python.
        texts = {key: value if isinstance(value, str) else json.dumps(value) for key, value in raw.items()}
        return self._attribute_sets.setdefault(tuple(texts.items()), texts)

    def _check_unique(self, video_name: str, frame_index: int, name: str, position: int) -> None:
        keys: tuple[tuple[str, int | str], ...] = (("frameIndex", frame_index), ("name", name))
        for what, key in keys:
            first = self._seen.setdefault((video_name, key), position)
            if first != position:
                raise self._error(f"has the same videoName and {what} ({key}) as frame {first}: a duplicate")

    def _text(self, raw: Mapping[str, object], key: str) -> str:
        value = raw.get(key)
        if not isinstance(value, str) or not value:
            raise self._error(
                f"has no usable {key!r} ({_shorten(value)}); this is not a Scalabel file in SHIFT's form"
            )
        return value

    def _warn(self, kind: str, example: str) -> None:
        self.warnings[kind] += 1
        if kind not in self._examples:
            self._examples[kind] = f"{example}, {self._where}"

    def _error(self, problem: str) -> DataError:
        return DataError(f"{self.path}: {self._where} {problem}")


def _pixels(value: object) -> int | None:
    """A positive whole number of pixels (also written as ``1280.0``), or None."""
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not 0 < value < 2**31:
        return None
    return int(value) if value == int(value) else None


def _shorten(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}..."
