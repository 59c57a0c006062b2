"""Opening packed models: the same detections, no experts in memory, damage refused."""

from __future__ import annotations

import json
import shutil
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcmoe_det.committee.layers import ExpertKey
from pcmoe_det.committee.packed_model import PackedExperts, PackedModel, is_packed, materialize_experts
from pcmoe_det.committee.packing import pack
from pcmoe_det.committee.store import DiskExpertStore, ExpertReadError
from pcmoe_det.errors import CheckpointError, UsageError
from pcmoe_det.models.inference import Detector, load_detector
from pcmoe_det.models.moe import MoELayer
from tests.committee.packed_samples import (
    CLASSES,
    LAYERS,
    flip_bit,
    pictures,
    record_positions,
    save_tiny,
)
from tests.committee.store_faulty import FaultyStore


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    save_tiny(folder / "w.safetensors")
    pack(None, folder / "w.safetensors", folder / "packed", dtype=torch.float32)
    return folder


@pytest.fixture
def folder(made_once: Path, tmp_path: Path) -> Path:
    """A packed folder to damage."""
    return Path(shutil.copytree(made_once / "packed", tmp_path / "packed"))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("source", [torch.float32, torch.bfloat16], ids=["from32", "from16"])
def test_with_all_experts_detections_equal_those_of_the_unpacked_weights(
    tmp_path: Path, source: torch.dtype, dtype: Any
) -> None:
    weights = tmp_path / "w.safetensors"
    save_tiny(weights, dtype=source)
    unpacked = load_detector(str(weights), dtype=dtype, score_threshold=0.0)
    packed = pack(None, weights, tmp_path / "packed", dtype=getattr(torch, dtype))
    model = packed.build_detector_model()
    packed.materialize_experts(model)

    expected = unpacked.model.state_dict()
    own = model.state_dict()
    assert own.keys() == expected.keys()
    for name, value in own.items():
        assert value.dtype == expected[name].dtype, name
        assert torch.equal(value, expected[name]), name
    assert not any(parameter.requires_grad for parameter in model.parameters())
    modes = {name: module.training for name, module in unpacked.model.named_modules()}
    assert {name: module.training for name, module in model.named_modules()} == modes

    ours = Detector(model, class_names=packed.info.class_names, long_side=packed.info.long_side)
    for left, right in zip(ours.detect(pictures()), unpacked.detect(pictures()), strict=True):
        assert len(left.scores) > 0
        assert left.boxes_xyxy.tobytes() == right.boxes_xyxy.tobytes()
        assert left.scores.tobytes() == right.scores.tobytes()
        assert left.class_ids.tobytes() == right.class_ids.tobytes()


def test_what_opening_knows(made_once: Path) -> None:
    packed = PackedModel.open(made_once / "packed")
    assert is_packed(packed.path)
    assert not is_packed(made_once / "w.safetensors")
    assert packed.info.class_names == CLASSES
    assert [(spec.index, spec.name) for spec in packed.layers] == list(enumerate(LAYERS))
    assert [(spec.num_experts, spec.channels, spec.hidden) for spec in packed.layers] == [
        (3, 32, 128),
        (3, 64, 256),
    ]
    assert packed.expert_bytes == sum(size for _, size in record_positions(packed.path).values())


def test_opening_reads_no_expert_and_leaves_the_random_state(folder: Path) -> None:
    for start, size in record_positions(folder).values():
        with (folder / "experts.safetensors").open("r+b") as file:
            file.seek(start)
            file.write(bytes(size))
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    model = PackedModel.open(folder).build_detector_model()
    assert torch.equal(torch.rand(3), expected)
    placeholders = [module for module in model.modules() if isinstance(module, PackedExperts)]
    assert [placeholder.spec.name for placeholder in placeholders] == list(LAYERS)
    assert not any(list(placeholder.parameters()) for placeholder in placeholders)
    assert not any(tensor.is_meta for tensor in model.state_dict().values())


def test_without_a_committee_it_loads_on_demand_and_is_exact(made_once: Path) -> None:
    packed = PackedModel.open(made_once / "packed")
    on_demand, whole = packed.build_detector_model(), packed.build_detector_model()
    packed.materialize_experts(whole)
    found, expected = (
        Detector(model, class_names=CLASSES, long_side=96).detect(pictures()) for model in (on_demand, whole)
    )
    for ours, theirs in zip(found, expected, strict=True):
        assert np.array_equal(ours.boxes_xyxy, theirs.boxes_xyxy)
        assert np.array_equal(ours.scores, theirs.scores)


def test_a_failed_load_can_be_done_again(made_once: Path) -> None:
    packed = PackedModel.open(made_once / "packed")
    model = packed.build_detector_model()
    with DiskExpertStore(packed) as disk:
        bad = ExpertKey(1, 2)
        store = FaultyStore(disk, fails=lambda key, attempt: key == bad and attempt == 1)
        with pytest.raises(ExpertReadError, match=f"expert 2 of layer {LAYERS[1]}"):
            materialize_experts(model, store)
        layers = [module for module in model.modules() if isinstance(module, MoELayer)]
        assert [isinstance(layer.experts, PackedExperts) for layer in layers] == [False, True]
        materialize_experts(model, store)
    assert all(value.isfinite().all() for value in model.state_dict().values())
    with pytest.raises(UsageError, match="no packed experts"):
        packed.materialize_experts(model)


def _seal(content: dict[str, Any]) -> None:
    """Give a description the checksum of what it says: CRC32 of its JSON without blanks, keys in order."""
    said = {key: value for key, value in content.items() if key != "crc32"}
    content["crc32"] = zlib.crc32(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())


def _edit(change: Callable[[dict[str, Any]], object], *, seal: bool = True) -> Callable[[Path], object]:
    """Change what a description says; with its checksum, as somebody would who means it."""

    def damage(folder: Path) -> None:
        path = folder / "model.json"
        content = json.loads(path.read_text())
        change(content)
        if seal:
            _seal(content)
        path.write_text(json.dumps(content))

    return damage


def _cut(name: str, num_bytes: int) -> Callable[[Path], object]:
    def damage(folder: Path) -> None:
        with (folder / name).open("r+b") as file:
            file.truncate((folder / name).stat().st_size - num_bytes)

    return damage


def _append(folder: Path) -> None:
    with (folder / "dense.safetensors").open("ab") as file:
        file.write(b"x")


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "no folder": (shutil.rmtree, "does not exist; name a folder made by tools/pack.py"),
    "no description": (
        lambda folder: (folder / "model.json").unlink(),
        "has no model.json: .*not written to",
    ),
    "no weights": (
        lambda folder: [(folder / name).unlink() for name in ("dense.safetensors", "experts.safetensors")],
        "has no dense.safetensors and no experts.safetensors",
    ),
    "not JSON": (lambda folder: (folder / "model.json").write_text("{"), r"model\.json is damaged"),
    "not text": (
        lambda folder: (folder / "model.json").write_bytes(b"\xff\xfe{}"),
        r"model\.json is damaged",
    ),
    "not ours": (lambda folder: (folder / "model.json").write_text("[]"), "no 'format' of ours"),
    "from the future": (
        _edit(lambda content: (content.update(format_version=3), content.pop("layers"))),
        "has format version 3; this release reads up to 2: install a newer",
    ),
    "odd version": (_edit(lambda content: content.update(format_version="1")), "format_version is '1'"),
    "a version of True": (_edit(lambda content: content.update(format_version=True)), "is True; it must be"),
    "a negative version": (_edit(lambda content: content.update(format_version=-3)), "is -3; it must be"),
    "a model from the future": (
        _edit(lambda content: content["info"].update(format_version=2)),
        "has format version 2; this release reads up to 1: install a newer",
    ),
    "a changed digit": (
        _edit(lambda content: content["info"].update(long_side=95), seal=False),
        "it was changed since it was written: its CRC32 differs",
    ),
    "no checksum": (_edit(lambda content: content.pop("crc32"), seal=False), "no 'crc32'"),
    "nothing but brackets": (
        lambda folder: (folder / "model.json").write_text("[" * 200_000),
        "nested deeper than",
    ),
    "no class names": (
        _edit(lambda content: content["info"].update(class_names=[])),
        "class_names is empty",
    ),
    "a class name more": (
        _edit(lambda content: content["info"]["class_names"].append("bus")),
        "num_classes=2 classes, and class_names has 3",
    ),
    "a huge norm": (
        _edit(lambda content: content["layers"][0]["norms"].__setitem__(0, 10**400)),
        "too large",
    ),
    "no layers": (_edit(lambda content: content.pop("layers")), "no 'layers'"),
    "empty layers": (_edit(lambda content: content.update(layers=[])), "no MoE layers"),
    "a checksum less": (
        _edit(lambda content: content["layers"][1]["crc32"].pop()),
        f"layer {LAYERS[1]} has 3 experts and 2 checksums",
    ),
    "a norm less": (_edit(lambda content: content["layers"][0]["norms"].pop()), "3 experts and 2 norms"),
    "a norm of NaN": (
        _edit(lambda content: content["layers"][0].update(norms=[float("nan")] * 3)),
        "a norm that is no number",
    ),
    "many experts": (
        _edit(lambda content: content["layers"][0].update(num_experts=1 << 60)),
        "experts and 3 norms",
    ),
    "other sizes": (_edit(lambda content: content["layers"][0].update(hidden=999)), "its sizes give"),
    "odd dtype": (_edit(lambda content: content.update(dtype="int8")), "dtype is 'int8'; there are float32"),
    "a negative size": (
        _edit(lambda content: content["dense"].update(bytes=-1)),
        "dense bytes is -1; it must be",
    ),
    "other total": (_edit(lambda content: content["experts"].update(bytes=1)), "do not add up"),
    "truncated by an expert": (
        _cut("experts.safetensors", 4096),
        r"experts\.safetensors has \d+ bytes and should have \d+: it is truncated",
    ),
    "truncated dense": (_cut("dense.safetensors", 1), r"dense\.safetensors has .* truncated"),
    "longer dense": (_append, r"dense\.safetensors has .* longer"),
    "another expert file": (
        lambda folder: flip_bit(folder / "experts.safetensors", 60),
        "header of .* does not belong to model.json",
    ),
    "renamed layer": (
        _edit(lambda content: content["layers"][0].update(name=LAYERS[0].replace("2", "9"))),
        "does not belong to model.json",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_refused_when_opening(folder: Path, damage: str) -> None:
    spoil, message = DAMAGES[damage]
    spoil(folder)
    with pytest.raises(CheckpointError, match=message) as caught:
        PackedModel.open(folder)
    assert "\n" not in str(caught.value)


def test_a_pack_of_version_1_opens_without_a_checksum(folder: Path) -> None:
    _edit(lambda content: (content.update(format_version=1), content.pop("crc32")), seal=False)(folder)
    assert PackedModel.open(folder).info.class_names == CLASSES


def test_the_layout_of_the_text_does_not_matter(folder: Path) -> None:
    path = folder / "model.json"
    path.write_text(json.dumps(dict(reversed(json.loads(path.read_text()).items()))))
    assert PackedModel.open(folder).info.class_names == CLASSES


def test_code_in_a_description_is_refused_and_not_run(folder: Path, tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    evil = {"type": "subprocess.call", "args": ["touch", str(trace)]}
    _edit(lambda content: content["info"]["model"].update(backbone=evil))(folder)
    packed = PackedModel.open(folder)
    with pytest.raises(
        CheckpointError, match=r"model\.json is not opened.*model\.backbone\.type is 'subprocess"
    ):
        packed.build_detector_model()
    assert not trace.exists()


@pytest.mark.parametrize("device", ["banana", "meta"])
def test_a_device_that_cannot_be(made_once: Path, device: str) -> None:
    with pytest.raises(UsageError, match=device):
        PackedModel.open(made_once / "packed").build_detector_model(device=device)


def test_a_path_that_is_too_long_is_no_packed_model() -> None:
    path = Path("x" * 300)
    assert not is_packed(path)
    with pytest.raises(CheckpointError, match="does not exist"):
        PackedModel.open(path)


def test_a_file_is_no_packed_model(made_once: Path) -> None:
    with pytest.raises(CheckpointError, match="is a file, not a packed folder"):
        PackedModel.open(made_once / "w.safetensors")


def test_a_changed_dense_file_is_refused(folder: Path) -> None:
    flip_bit(folder / "dense.safetensors", (folder / "dense.safetensors").stat().st_size - 5)
    packed = PackedModel.open(folder)
    with pytest.raises(CheckpointError, match=r"dense\.safetensors was changed or damaged"):
        packed.build_detector_model()


def test_a_configuration_of_other_layers_is_refused(folder: Path) -> None:
    _edit(lambda content: content["info"]["model"]["backbone"].update(num_experts=4))(folder)
    with pytest.raises(CheckpointError, match="contradicts itself"):
        PackedModel.open(folder).build_detector_model()
