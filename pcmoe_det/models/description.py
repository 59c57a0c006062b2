"""What a weights file or a packed model says of its detector, read with suspicion.

The text comes from whoever made the file, so nothing about it is taken for granted: it may be damaged, of
another release, or made up. What its model's configuration may name is checked in ``trusted_types``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from pcmoe_det.errors import CheckpointError

__all__ = [
    "FORMAT_VERSION",
    "WeightsInfo",
    "check_version",
    "class_names_problem",
    "info_from_fields",
    "parse_json",
    "whole_number",
]

FORMAT_VERSION = 1
_DEEPEST = 60
"""Levels of lists and objects. mmdet's configurations have about ten; the walks over them are recursive."""


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says about itself.

    Attributes:
        model: Configuration of the mmdet detector (plain data); of a backbone alone where its only key
            is ``backbone``.
        class_names: By class id; empty for a backbone alone.
        long_side: Images are resized so that their longer side has this many pixels.
        format_version: Of this description.
    """

    model: dict[str, Any]
    class_names: tuple[str, ...] = ()
    long_side: int = 0
    format_version: int = FORMAT_VERSION

    @property
    def is_backbone(self) -> bool:
        """Whether the file holds a backbone without the rest of a detector."""
        return set(self.model) == {"backbone"}


def parse_json(text: str) -> Any:
    """Parse JSON that a stranger may have written.

    Raises:
        ValueError: No JSON, or nested so deep that walking it would exhaust the stack.
    """
    too_deep = f"it is nested deeper than {_DEEPEST} levels"
    try:
        content = json.loads(text)
    except RecursionError as error:
        raise ValueError(too_deep) from error
    level = [content]
    for _ in range(_DEEPEST):
        level = [item for value in level for item in _children(value)]
        if not level:
            return content
    raise ValueError(too_deep)


def _children(value: Any) -> Iterator[Any]:
    if isinstance(value, dict):
        yield from value.values()
    elif isinstance(value, list):
        yield from value


def whole_number(value: Any, name: str, *, smallest: int = 0, limit: int = 1 << 62) -> int:
    """``value``, if it is an int from ``smallest`` and below ``limit``.

    Raises:
        ValueError: Names the value and what is allowed.
    """
    # True is an int to Python, and 1.0 equals one: neither is what a writer of ours writes.
    if isinstance(value, bool) or not isinstance(value, int) or not smallest <= value < limit:
        raise ValueError(f"{name} is {_shown(value)}; it must be a whole number of {smallest} or more")
    return value


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:40]}..."


def check_version(value: Any, *, newest: int, source: str) -> int:
    """A format version that this release reads.

    Args:
        value: As read.
        newest: The highest that this release knows.
        source: Where it was read, for the message.

    Raises:
        CheckpointError: A newer one.
        ValueError: Not a whole number from 1.
    """
    version = whole_number(value, "format_version", smallest=1)
    if version > newest:
        raise CheckpointError(
            f"{source} has format version {version}; this release reads up to {newest}: "
            "install a newer pcmoe_det"
        )
    return version


def info_from_fields(fields: Any, *, source: str) -> WeightsInfo:
    """Make a ``WeightsInfo`` of plain data.

    Args:
        fields: As parsed.
        source: Where they were read, for the message about versions.

    Raises:
        CheckpointError: Of a newer format.
        ValueError: A field has a value that it cannot have.
        KeyError: A field is missing.
    """
    if not isinstance(fields, dict):
        raise ValueError(f"the description is a {type(fields).__name__}; it must be an object")
    version = check_version(fields["format_version"], newest=FORMAT_VERSION, source=source)
    model, names = fields["model"], fields["class_names"]
    if not isinstance(model, dict) or not model:
        raise ValueError(f"model is {_shown(model)}; it must be a model's configuration")
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f"class_names is {_shown(names)}; it must be a list of names")
    info = WeightsInfo(
        model=model,
        class_names=tuple(names),
        long_side=whole_number(fields["long_side"], "long_side"),
        format_version=version,
    )
    if info.is_backbone and not isinstance(model["backbone"], dict):
        raise ValueError(f"backbone is {_shown(model['backbone'])}; it must be a backbone's configuration")
    problem = None if info.is_backbone else class_names_problem(model, info.class_names)
    if problem is not None:
        raise ValueError(problem)
    return info


def class_names_problem(model: Mapping[str, Any], class_names: Sequence[str]) -> str | None:
    """What is wrong with the names of a detector's classes; None if they fit its heads.

    A head that finds more classes than have names would give detections that nothing can name.

    Args:
        model: The detector's configuration.
        class_names: By class id.
    """
    if not class_names:
        return "class_names is empty; it must name every class of the model"
    for number in _numbers_of_classes(model):
        if number != len(class_names):
            return f"its model finds num_classes={number!r} classes, and class_names has {len(class_names)}"
    return None


def _numbers_of_classes(config: Any) -> Iterator[int]:
    """``num_classes`` of every box head. Other heads (RPN, masks of stuff) count differently."""
    if isinstance(config, Mapping):
        heads = config.get("bbox_head")
        for head in heads if isinstance(heads, list | tuple) else [heads]:
            if isinstance(head, Mapping) and isinstance(head.get("num_classes"), int):
                yield head["num_classes"]
        config = list(config.values())
    if isinstance(config, list | tuple):
        for value in config:
            yield from _numbers_of_classes(value)
