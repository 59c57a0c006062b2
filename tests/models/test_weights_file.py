"""Weights files: there and back, and each way in which one can be wrong."""

from __future__ import annotations

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from pcmoe_det.errors import CheckpointError, ConfigError, OutputError
from pcmoe_det.models.weights_file import (
    FORMAT_VERSION,
    WeightsInfo,
    load_backbone_into,
    load_into,
    read_weights,
    save_weights,
)

INFO = WeightsInfo(model={"type": "X", "depths": (1, 2), "none": None}, class_names=("car",), long_side=96)


def tensors() -> dict[str, Tensor]:
    return {
        "weight": torch.randn(3, 4),
        "transposed": torch.randn(5, 2).T,
        "count": torch.tensor(7),
        "empty": torch.zeros(0, 3),
    }


def test_there_and_back(tmp_path: Path) -> None:
    path, source = tmp_path / "new folder" / "w.safetensors", tensors()
    save_weights(path, source, INFO)
    read, info = read_weights(path)
    assert info == WeightsInfo(
        model={"type": "X", "depths": [1, 2], "none": None}, class_names=("car",), long_side=96
    )
    assert read.keys() == source.keys()
    assert all(torch.equal(read[name], source[name]) for name in source)
    assert not info.is_backbone
    assert [file.name for file in path.parent.iterdir()] == ["w.safetensors"]


def test_a_smaller_dtype_is_for_floating_tensors(tmp_path: Path) -> None:
    path, source = tmp_path / "w.safetensors", tensors()
    save_weights(path, source, INFO, dtype=torch.bfloat16)
    read, _ = read_weights(path)
    assert {name: tensor.dtype for name, tensor in read.items()} == {
        "weight": torch.bfloat16,
        "transposed": torch.bfloat16,
        "count": torch.int64,
        "empty": torch.bfloat16,
    }
    assert torch.equal(read["weight"], source["weight"].bfloat16())


def test_tensors_that_share_memory_are_saved_apart(tmp_path: Path) -> None:
    shared = torch.randn(4)
    save_weights(tmp_path / "w.safetensors", {"a": shared, "b": shared, "c": shared[:2]}, INFO)
    assert torch.equal(read_weights(tmp_path / "w.safetensors")[0]["c"], shared[:2])


def test_a_failed_save_leaves_what_was_there(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, tensors(), INFO)
    before = path.read_bytes()
    with pytest.raises(ConfigError, match="must be plain data"):
        save_weights(path, tensors(), WeightsInfo(model={"type": nn.Linear}))
    (tmp_path / "w.safetensors.part").mkdir()
    with pytest.raises(OutputError, match="cannot write weights to"):
        save_weights(path, tensors(), INFO)
    assert path.read_bytes() == before


def cut(path: Path) -> None:
    save_weights(path, tensors(), INFO)
    path.write_bytes(path.read_bytes()[:-8])


def described_as(text: str) -> Callable[[Path], None]:
    def write(path: Path) -> None:
        save_file({"x": torch.zeros(1)}, str(path), metadata={"pcmoe_det": text})

    return write


_WHOLE: dict[str, Any] = dict(model={"type": "X"}, class_names=[], long_side=0, format_version=1)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda _: None, "no weights at"),
        (Path.mkdir, "no weights at"),
        (lambda path: path.write_bytes(b""), "damaged or no safetensors file"),
        (lambda path: path.write_text("these are no weights"), "damaged or no safetensors file"),
        (cut, "damaged or no safetensors file"),
        (lambda path: save_file({"x": torch.zeros(1)}, str(path)), "does not describe its model"),
        (described_as("{"), "its description is damaged"),
        (described_as("[1]"), "its description is damaged"),
        (described_as(json.dumps({**_WHOLE, "model": 3})), "its description is damaged"),
        (described_as(json.dumps({**_WHOLE, "long_side": "wide"})), "its description is damaged"),
        (described_as(json.dumps({"format_version": 1})), "its description is damaged"),
        (described_as(json.dumps(_WHOLE)), "class_names is empty"),
        (described_as(json.dumps({**_WHOLE, "format_version": True})), "format_version is True"),
        (described_as(json.dumps({**_WHOLE, "format_version": -3})), "format_version is -3"),
        (described_as("[" * 200_000), "nested deeper than"),
        (
            described_as(json.dumps({"format_version": FORMAT_VERSION + 1})),
            f"has format version {FORMAT_VERSION + 1}; this release reads up to {FORMAT_VERSION}",
        ),
    ],
)
def test_files_that_cannot_be_read(tmp_path: Path, write: Callable[[Path], Any], reason: str) -> None:
    path = tmp_path / "w.safetensors"
    write(path)
    with pytest.raises(CheckpointError, match=reason):
        read_weights(path)


def test_a_file_without_description_serves_where_none_is_needed(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_file({"x": torch.ones(1)}, str(path))
    read, info = read_weights(path, described=False)
    assert torch.equal(read["x"], torch.ones(1))
    assert info is None


def test_training_checkpoints(tmp_path: Path) -> None:
    path, state = tmp_path / "iter_1.pth", {"a": torch.randn(3)}
    torch.save({"state_dict": state, "meta": {"iter": 1}}, path)
    with pytest.raises(CheckpointError, match="training checkpoint; name its configuration with --config"):
        read_weights(path)
    read, info = read_weights(path, described=False)
    assert torch.equal(read["a"], state["a"])
    assert info is None
    for content in ({"model": state}, state):
        torch.save(content, path)
        assert torch.equal(read_weights(path, described=False)[0]["a"], state["a"])


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"some text", b"{}"])
def test_other_files_are_no_checkpoints(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "street.png"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"street\.png is no weights file; name a \.safetensors file"):
        read_weights(path)


class Payload:
    """Runs code when it is unpickled."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.target,)


@pytest.mark.parametrize("kind", ["pickle", "torch"])
def test_a_pickle_with_code_is_refused_and_not_run(tmp_path: Path, kind: str) -> None:
    path, trace = tmp_path / "w.pth", tmp_path / "it ran"
    content = {"state_dict": {"a": torch.zeros(1)}, "meta": Payload(trace)}
    if kind == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(CheckpointError, match="not a readable checkpoint of plain tensors") as caught:
        read_weights(path, described=False)
    assert not trace.exists()
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ([torch.zeros(1)], "holds a list, not a state dict"),
        ({"state_dict": {"note": "text"}}, "holds no tensors"),
        ({}, "holds no tensors"),
    ],
)
def test_checkpoints_without_tensors(tmp_path: Path, content: Any, reason: str) -> None:
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(CheckpointError, match=reason):
        read_weights(tmp_path / "w.pth", described=False)


def test_a_checkpoint_that_is_cut_or_no_checkpoint(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    torch.save({"state_dict": {"a": torch.randn(1000)}}, path)
    for content in (path.read_bytes()[:1500], b"text", b""):
        path.write_bytes(content)
        with pytest.raises(CheckpointError, match="not a readable checkpoint"):
            read_weights(path, described=False)


def test_every_name_and_shape_must_fit() -> None:
    model = nn.Linear(4, 3)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    wrong = {"weight": torch.zeros(4, 3), "extra": torch.zeros(1), "more": torch.zeros(1)}
    with pytest.raises(CheckpointError) as caught:
        load_into(model, wrong, source="w.pth")
    message = str(caught.value)
    assert "w.pth does not fit the model: 1 missing, e.g. bias; 2 unknown, e.g. extra; " in message
    assert "weight is (4, 3), the model has (3, 4)" in message
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    load_into(model, {"weight": torch.ones(3, 4).bfloat16(), "bias": torch.zeros(3)}, source="w.pth")
    assert torch.equal(model.weight, torch.ones(3, 4))


def detector() -> nn.Module:
    backbone = nn.Module()
    backbone.stem = nn.Linear(4, 3)
    backbone.norm0, backbone.norm1 = nn.LayerNorm(3), nn.LayerNorm(3)
    model = nn.Module()
    model.backbone, model.head = backbone, nn.Linear(3, 2)
    return model


def test_a_backbone_alone() -> None:
    model, info = detector(), WeightsInfo(model={"backbone": {"type": "SwinMoE", "window_size": 7}})
    assert info.is_backbone
    head = model.head.weight.detach().clone()  # type: ignore[union-attr]
    weights = {
        f"backbone.{name}": torch.randn_like(value)
        for name, value in model.backbone.state_dict().items()  # type: ignore[union-attr]
    }
    assert load_backbone_into(model, weights, info, source="w") == ()
    assert torch.equal(model.backbone.stem.weight, weights["backbone.stem.weight"])  # type: ignore[union-attr]
    for name in ("weight", "bias"):
        weights.pop(f"backbone.norm0.{name}")
    kept = load_backbone_into(detector(), weights, info, source="w")
    assert kept == ("backbone.norm0.weight", "backbone.norm0.bias")
    assert torch.equal(model.head.weight, head)  # type: ignore[union-attr]
    weights.pop("backbone.stem.bias")
    with pytest.raises(CheckpointError, match=r"1 missing, e\.g\. backbone\.stem\.bias.*window_size=7"):
        load_backbone_into(detector(), weights, info, source="w")
    with pytest.raises(CheckpointError, match=r"unknown, e\.g\. backbone\.norm9\.weight"):
        load_backbone_into(detector(), {**weights, "backbone.norm9.weight": torch.ones(3)}, info, source="w")
