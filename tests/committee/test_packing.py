"""What a pack holds, as other programs read it; what is refused."""

from __future__ import annotations

import errno
import fcntl
import json
import os
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from pcmoe_det.committee import packed_folder
from pcmoe_det.committee.packed_format import PACK_FILES
from pcmoe_det.committee.packed_model import PackedModel
from pcmoe_det.committee.packing import pack, pack_random
from pcmoe_det.errors import CheckpointError, ConfigError, OutputError, UsageError
from pcmoe_det.models.weights_file import WeightsInfo, save_weights
from tests.committee.packed_samples import (
    CLASSES,
    LAYERS,
    record_positions,
    save_tiny,
    tiny_config,
    tiny_info,
)


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_tiny(path)
    return path


@pytest.mark.parametrize("source_dtype", [torch.float32, torch.bfloat16], ids=["from32", "from16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["to32", "to16"])
def test_records_hold_the_weights_rounded_once(
    tmp_path: Path, source_dtype: torch.dtype, dtype: torch.dtype
) -> None:
    source = save_tiny(tmp_path / "w.safetensors", dtype=source_dtype)
    packed = pack(None, tmp_path / "w.safetensors", tmp_path / "packed", dtype=dtype)
    records = load_file(str(packed.experts_path))
    assert set(records) == {f"{name}/{expert}" for name in LAYERS for expert in range(3)}
    for spec in packed.layers:
        for expert in range(3):
            views = spec.layout.views(records[f"{spec.name}/{expert}"].clone())
            for field, value in views.items():
                assert torch.equal(value, source[f"{spec.name}.experts.{field}"][expert].to(dtype)), field


def test_dense_file_holds_the_rest_in_the_precision_of_the_weights(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "w.safetensors")
    pack(None, tmp_path / "w.safetensors", tmp_path / "packed", dtype=torch.bfloat16)
    dense = load_file(str(tmp_path / "packed" / "dense.safetensors"))
    assert set(dense) == {name for name in source if ".experts." not in name}
    assert all(
        value.dtype == source[name].dtype and torch.equal(value, source[name])
        for name, value in dense.items()
    )


def test_records_start_at_pages_and_the_description_fits_them(tmp_path: Path, weights: Path) -> None:
    packed = pack(None, weights, tmp_path / "packed", dtype=torch.bfloat16)
    content = json.loads((packed.path / "model.json").read_text())
    file = packed.experts_path.read_bytes()
    positions = record_positions(packed.path)
    assert len(positions) == 6
    for spec, entry in zip(packed.layers, content["layers"], strict=True):
        for key in spec.keys:
            start, size = positions[f"{spec.name}/{key.expert}"]
            assert start % 4096 == 0
            assert (start, size) == (packed.record_offset_bytes(key), spec.record_bytes)
            assert zlib.crc32(file[start : start + size]) == entry["crc32"][key.expert]
    dense = (packed.path / "dense.safetensors").read_bytes()
    assert content["dense"] == {"bytes": len(dense), "crc32": zlib.crc32(dense)}
    assert content["info"]["model"] == tiny_config()
    assert content["dtype"] == "bfloat16"
    modes = {entry.stat().st_mode & 0o777 for entry in packed.path.iterdir()}
    assert len(modes) == 1


def test_norms_are_those_before_rounding(tmp_path: Path) -> None:
    source = save_tiny(tmp_path / "w.safetensors")
    packed = pack(None, tmp_path / "w.safetensors", tmp_path / "packed", dtype=torch.bfloat16)
    for spec in packed.layers:
        for expert, norm in enumerate(spec.norms):
            parts = [
                source[f"{spec.name}.experts.{field}"][expert].double().numpy().ravel()
                for field in ("fc1_weight", "fc2_weight")
            ]
            exact = float(np.linalg.norm(np.concatenate(parts)))
            rounded = [torch.from_numpy(part).bfloat16().double().numpy() for part in parts]
            assert abs(norm - exact) < 1e-5 * exact
            assert abs(norm - float(np.linalg.norm(np.concatenate(rounded)))) > abs(norm - exact)


def test_weights_in_several_files_with_a_config(tmp_path: Path, weights: Path) -> None:
    tensors = load_file(str(weights))
    names = sorted(tensors)
    parts = [tmp_path / "a.safetensors", tmp_path / "b.safetensors"]
    save_file({name: tensors[name] for name in names[::2]}, str(parts[0]))
    save_file({name: tensors[name] for name in names[1::2]}, str(parts[1]))
    config = tmp_path / "config.py"
    config.write_text(f"model = {tiny_config()!r}\nclass_names = {CLASSES!r}\nlong_side = 96\n")
    joined = pack(config, parts, tmp_path / "joined", dtype=torch.float32)
    whole = pack(None, weights, tmp_path / "whole", dtype=torch.float32)
    assert joined.experts_path.read_bytes() == whole.experts_path.read_bytes()
    assert joined.info.long_side == 96
    with pytest.raises(CheckpointError, match="again; name each part"):
        pack(config, [*parts, parts[0]], tmp_path / "twice", dtype=torch.float32)
    with pytest.raises(CheckpointError, match=r"a\.safetensors does not fit the model: \d+ missing"):
        pack(config, parts[0], tmp_path / "half", dtype=torch.float32)
    assert not list(tmp_path.glob("*.part"))


def test_a_training_checkpoint_packs_like_its_weights(tmp_path: Path) -> None:
    state = save_tiny(tmp_path / "w.safetensors")
    torch.save({"state_dict": state, "meta": {}}, tmp_path / "epoch.pth")
    from_checkpoint = pack(tiny_info(), tmp_path / "epoch.pth", tmp_path / "a", dtype=torch.bfloat16)
    from_weights = pack(None, tmp_path / "w.safetensors", tmp_path / "b", dtype=torch.bfloat16)
    assert from_checkpoint.experts_path.read_bytes() == from_weights.experts_path.read_bytes()


def test_random_packs_repeat_with_their_seed(tmp_path: Path) -> None:
    packs = [
        pack_random(tiny_info(), tmp_path / name, dtype=torch.bfloat16, seed=seed)
        for name, seed in (("a", 7), ("b", 7), ("c", 8))
    ]
    first, again, other = (
        [(packed.path / name).read_bytes() for name in ("experts.safetensors", "dense.safetensors")]
        for packed in packs
    )
    assert first == again
    assert first[0] != other[0]
    assert first[1] != other[1]
    records = load_file(str(packs[0].experts_path))
    assert len({record.numpy().tobytes() for record in records.values()}) == 6


class TestRefusals:
    def test_a_detector_without_moe_layers(self, tmp_path: Path) -> None:
        save_tiny(tmp_path / "w.safetensors", num_experts=0)
        with pytest.raises(ConfigError, match="CascadeRCNN has no MoE layers"):
            pack(None, tmp_path / "w.safetensors", tmp_path / "packed", dtype=torch.float32)

    def test_weights_of_another_size(self, tmp_path: Path, weights: Path) -> None:
        with pytest.raises(CheckpointError, match=r"mlp\S+ is \(3, .*the model has \(4, "):
            pack(tiny_info(num_experts=4), weights, tmp_path / "packed", dtype=torch.float32)

    def test_weights_that_do_not_describe_themselves(self, tmp_path: Path, weights: Path) -> None:
        save_file(load_file(str(weights)), str(tmp_path / "bare.safetensors"))
        with pytest.raises(CheckpointError, match="does not describe its model"):
            pack(None, tmp_path / "bare.safetensors", tmp_path / "packed", dtype=torch.float32)

    def test_a_backbone_alone(self, tmp_path: Path) -> None:
        info = WeightsInfo(model={"backbone": tiny_config()["backbone"]})
        save_weights(tmp_path / "w.safetensors", {"backbone.x": torch.zeros(1)}, info)
        with pytest.raises(CheckpointError, match="a backbone alone"):
            pack(None, tmp_path / "w.safetensors", tmp_path / "packed", dtype=torch.float32)

    def test_another_dtype_and_no_weights(self, tmp_path: Path, weights: Path) -> None:
        with pytest.raises(UsageError, match=r"torch.float16; there are float32 and bfloat16"):
            pack(None, weights, tmp_path / "packed", dtype=torch.float16)
        with pytest.raises(UsageError, match="no weights to pack"):
            pack(tiny_info(), [], tmp_path / "packed", dtype=torch.float32)

    def test_a_packed_folder_as_weights(self, tmp_path: Path, weights: Path) -> None:
        pack(None, weights, tmp_path / "packed", dtype=torch.float32)
        with pytest.raises(CheckpointError, match="is a folder; pack the weights file"):
            pack(None, tmp_path / "packed", tmp_path / "again", dtype=torch.float32)

    def test_a_config_that_is_no_plain_data(self, tmp_path: Path) -> None:
        info = WeightsInfo(model={**tiny_config(), "init_cfg": None}, class_names=CLASSES)
        info.model["backbone"]["window_size"] = np.int64(4)
        with pytest.raises(ConfigError, match="no plain data"):
            pack_random(info, tmp_path / "packed", dtype=torch.float32)
        assert not list(tmp_path.iterdir())

    def test_a_number_in_the_config_that_is_not_finite(self, tmp_path: Path) -> None:
        info = WeightsInfo(model={**tiny_config(), "init_cfg": None}, class_names=CLASSES)
        info.model["test_cfg"]["rcnn"]["score_thr"] = float("nan")
        with pytest.raises(ConfigError, match=r"no plain data .*; use finite numbers"):
            pack_random(info, tmp_path / "packed", dtype=torch.float32)
        assert not list(tmp_path.iterdir())

    def test_a_config_whose_pack_nothing_would_open(self, tmp_path: Path, weights: Path) -> None:
        scoped = WeightsInfo(model={**tiny_config(), "type": "mmdet.MoEDetector"}, class_names=CLASSES)
        fewer = WeightsInfo(model=tiny_config(), class_names=CLASSES[:1])
        for info, reason in (
            (scoped, r"model\.type is 'mmdet\.MoEDetector'.*by their plain names"),
            (fewer, "num_classes=2 classes, and class_names has 1"),
        ):
            with pytest.raises(ConfigError, match=reason):
                pack(info, weights, tmp_path / "packed", dtype=torch.float32)
            with pytest.raises(ConfigError, match=reason):
                pack_random(info, tmp_path / "packed", dtype=torch.float32)

    @pytest.mark.parametrize("field", ["fc1_weight", "fc2_bias"])
    @pytest.mark.parametrize("value", [float("nan"), float("inf")])
    def test_an_expert_that_is_not_finite(
        self, tmp_path: Path, weights: Path, field: str, value: float
    ) -> None:
        tensors = load_file(str(weights))
        tensors[f"{LAYERS[1]}.experts.{field}"][2].flatten()[0] = value
        save_weights(weights, tensors, tiny_info())
        with pytest.raises(
            CheckpointError, match=rf"expert 2 of layer {LAYERS[1]} .*{field} that are not finite"
        ):
            pack(None, weights, tmp_path / "packed", dtype=torch.float32)
        assert [entry.name for entry in tmp_path.iterdir()] == [weights.name]

    def test_a_value_too_large_for_the_pack(self, tmp_path: Path, weights: Path) -> None:
        tensors = load_file(str(weights))
        tensors[f"{LAYERS[0]}.experts.fc1_bias"][0, 0] = torch.finfo(torch.float32).max
        save_weights(weights, tensors, tiny_info())
        pack(None, weights, tmp_path / "float32", dtype=torch.float32)
        with pytest.raises(CheckpointError, match=r"fc1_bias that are not finite .* too large for bfloat16"):
            pack(None, weights, tmp_path / "bfloat16", dtype=torch.bfloat16)

    @pytest.mark.parametrize("length", [300, 251], ids=["name", "name with .part"])
    def test_a_name_that_is_too_long(self, tmp_path: Path, weights: Path, length: int) -> None:
        with pytest.raises(OutputError, match=r"cannot write .*x: File name too long; name another folder"):
            pack(None, weights, tmp_path / ("x" * length), dtype=torch.float32)
        assert [entry.name for entry in tmp_path.iterdir()] == [weights.name]

    def test_outputs_in_the_way(self, tmp_path: Path, weights: Path) -> None:
        first = pack(None, weights, tmp_path / "packed", dtype=torch.float32)
        with pytest.raises(OutputError, match="already exists; use --overwrite"):
            pack(None, weights, first.path, dtype=torch.float32)
        (tmp_path / "mine").mkdir()
        (tmp_path / "mine" / "thesis.txt").write_text("years of work")
        for target, message in (
            (tmp_path / "mine", "holds 'thesis.txt'"),
            (weights, "is not a folder"),
            (tmp_path / "no" / "packed", "there is no folder"),
            (tmp_path / "x.part", "name a new folder"),
        ):
            with pytest.raises(OutputError, match=message):
                pack(None, weights, target, dtype=torch.float32, overwrite=True)
        assert (tmp_path / "mine" / "thesis.txt").exists()


@pytest.mark.parametrize("can_exchange", [True, False])
def test_overwriting_replaces_the_pack(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, can_exchange: bool
) -> None:
    if not can_exchange:
        monkeypatch.setattr(packed_folder, "_exchange", lambda: None)
    pack(None, weights, tmp_path / "packed", dtype=torch.float32)
    packed = pack(None, weights, tmp_path / "packed", dtype=torch.bfloat16, overwrite=True)
    assert packed.dtype == PackedModel.open(packed.path).dtype == torch.bfloat16
    assert {entry.name for entry in tmp_path.iterdir()} == {"packed", "weights.safetensors"}


def test_a_replacement_cut_between_its_renames_is_undone(tmp_path: Path, weights: Path) -> None:
    target = tmp_path / "packed"
    pack(None, weights, target, dtype=torch.float32)
    target.rename(tmp_path / "packed.old")  # as a process leaves it that is killed there
    with pytest.raises(RuntimeError, match="stop"), packed_folder.whole_folder(target):
        raise RuntimeError("stop")
    assert PackedModel.open(target).dtype == torch.float32
    assert {entry.name for entry in tmp_path.iterdir()} == {"packed", "weights.safetensors"}


def test_two_processes_do_not_fill_one_folder(tmp_path: Path, weights: Path) -> None:
    part = tmp_path / "packed.part"
    part.mkdir()
    (part / "experts.safetensors").write_bytes(b"half")
    other = os.open(part, os.O_RDONLY)
    fcntl.flock(other, fcntl.LOCK_EX)
    with pytest.raises(OutputError, match="is being written by another process"):
        pack(None, weights, tmp_path / "packed", dtype=torch.float32)
    assert (part / "experts.safetensors").read_bytes() == b"half"
    os.close(other)  # as when that process dies: what it left is replaced
    (part / "leftover").mkdir()
    packed = pack(None, weights, tmp_path / "packed", dtype=torch.float32)
    assert not part.exists()
    assert {entry.name for entry in packed.path.iterdir()} == set(PACK_FILES)


def test_a_full_disk_is_one_sentence_and_leaves_nothing(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write = os.write
    written = 0

    def full(descriptor: int, data: memoryview) -> int:
        nonlocal written
        written += len(data)
        if written > 20_000:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:1000])  # a short write is no error

    monkeypatch.setattr(os, "write", full)
    with pytest.raises(OutputError, match=r"cannot write .*packed.*No space left") as caught:
        pack(None, weights, tmp_path / "packed", dtype=torch.float32)
    assert "\n" not in str(caught.value)
    assert [entry.name for entry in tmp_path.iterdir()] == ["weights.safetensors"]
