"""Descriptions as a stranger may have written them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from pcmoe_det.errors import CheckpointError
from pcmoe_det.models.description import (
    FORMAT_VERSION,
    class_names_problem,
    info_from_fields,
    parse_json,
)
from tests.models.tiny_models import cascade_rcnn, retina_net

FIELDS: dict[str, Any] = dict(
    model={"type": "X", "bbox_head": {"num_classes": 2}},
    class_names=["car", "bus"],
    long_side=416,
    format_version=FORMAT_VERSION,
)


def test_what_is_read() -> None:
    info = info_from_fields(parse_json(json.dumps(FIELDS)), source="w")
    assert (info.class_names, info.long_side, info.format_version) == (("car", "bus"), 416, FORMAT_VERSION)
    assert info.model == FIELDS["model"]
    alone = info_from_fields({**FIELDS, "model": {"backbone": {"type": "X"}}, "class_names": []}, source="w")
    assert alone.is_backbone


@pytest.mark.parametrize("text", ["[" * 200_000, "[" * 900 + "]" * 900, '{"a":' * 200_000])
def test_deep_nesting_is_one_error(text: str) -> None:
    with pytest.raises(ValueError, match="nested deeper than 60 levels"):
        parse_json(text)


@pytest.mark.parametrize("version", [True, -3, 0, 1.0, "1", None, [1]])
def test_versions_are_whole_numbers_from_one(version: Any) -> None:
    with pytest.raises(ValueError, match=r"format_version is .*; it must be a whole number of 1 or more"):
        info_from_fields({**FIELDS, "format_version": version}, source="w")


def test_a_newer_version_asks_for_a_newer_release() -> None:
    newer = {"format_version": FORMAT_VERSION + 1}  # whatever else it may hold then
    with pytest.raises(CheckpointError, match=f"w has format version {FORMAT_VERSION + 1}.*install a newer"):
        info_from_fields(newer, source="w")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (dict(class_names=[]), "class_names is empty"),
        (dict(class_names=["car"]), "finds num_classes=2 classes, and class_names has 1"),
        (dict(class_names="ab"), "class_names is 'ab'; it must be a list"),
        (dict(class_names=[1, 2]), "must be a list of names"),
        (dict(model=[["type", "X"]]), "it must be a model's configuration"),
        (dict(model={}), "it must be a model's configuration"),
        (dict(model={"backbone": "X"}), "it must be a backbone's configuration"),
        (dict(long_side=-1), "long_side is -1; it must be a whole number of 0 or more"),
        (dict(long_side=True), "long_side is True"),
        (dict(long_side="9" * 1000), r"long_side is '9+\.\.\.; it must"),
    ],
    ids=str,
)
def test_fields_that_cannot_be(change: dict[str, Any], reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        info_from_fields({**FIELDS, **change}, source="w")


def test_every_box_head_counts_and_no_other() -> None:
    names = [str(number) for number in range(6)]
    for model in (cascade_rcnn(), retina_net()):
        assert class_names_problem({**model, "rpn_head": {"num_classes": 1}}, names) is None
        assert "class_names has 5" in str(class_names_problem(model, names[:5]))
    model = cascade_rcnn()
    model["roi_head"]["bbox_head"][2] = dict(model["roi_head"]["bbox_head"][2], num_classes=7)
    assert "num_classes=7" in str(class_names_problem(model, names))
