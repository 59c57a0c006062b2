"""Official Swin-MoE checkpoints as weights of a backbone, and a detector that starts from them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pcmoe_det.models.registry import SwinMoE
from pcmoe_det.models.weights_file import read_weights
from tests.cli.commands import Outcome, run_command
from tests.cli.tiny import write_config, write_split
from tests.models.test_official import cut, no_model, write_shards
from tests.reference import shared


def convert(prefix: Path, output: Path, *options: object) -> Outcome:
    return run_command("convert_swin_moe", prefix, "--output", output, *options)


def test_what_was_read_written_added_and_skipped_is_listed(tmp_path: Path) -> None:
    prefix, state = write_shards(tmp_path)
    output = tmp_path / "w.safetensors"
    outcome = convert(prefix, output)
    assert outcome.code == 0, outcome.err
    lines = outcome.out.splitlines()
    tensors, info = read_weights(output)
    assert lines[0] == f"{len(state)} tensors read, {len(tensors)} written to {output}"
    assert "added as zeros (official shards leave them out): 1" in lines
    assert "  backbone.stages.1.blocks.1.mlp.experts.fc2_bias" in lines
    skipped = [line for line in lines if line.startswith("  ") and line.endswith(")")]
    assert f"skipped: {len(skipped)}" in lines
    assert "  head.weight (classification head)" in skipped
    assert len(tensors) == len(state) - len(skipped) + 1
    assert lines[-1].endswith(f"pcmoe-train CONFIG --weights {output}")
    assert lines[-2] == (
        "backbone: 4 experts in blocks [[], [1]], embed_dims=8, depths=[1, 2], window_size=4"
    )
    assert info is not None
    assert info.is_backbone
    assert info.class_names == ()
    SwinMoE(**{key: value for key, value in info.model["backbone"].items() if key != "type"})


@pytest.mark.usefixtures("hasty")
def test_a_detector_starts_from_the_converted_backbone(tmp_path: Path) -> None:
    prefix, _ = write_shards(tmp_path)
    output = tmp_path / "w.safetensors"
    assert convert(prefix, output).code == 0
    tensors, info = read_weights(output)
    assert info is not None
    root = tmp_path / "street"
    write_split(root, "train", {"a": 2})
    backbone = {**info.model["backbone"], "out_indices": (0, 1)}
    config = write_config(
        tmp_path,
        root,
        extra=f"""
model["backbone"] = dict(_delete_=True, **{backbone!r})
model["neck"] = dict(in_channels=[8, 16], out_channels=16, num_outs=5)
val_cfg = val_dataloader = val_evaluator = None
custom_hooks = []
train_cfg = dict(max_iters=1)
optim_wrapper = dict(optimizer=dict(lr=0.0))
""",
    )
    outcome = run_command("train", config, "--work-dir", tmp_path / "run", "--weights", output)
    assert outcome.code == 0, outcome.err
    assert f"start weights: {len(tensors)} tensors of {output} into the backbone" in outcome.out
    assert "backbone.norm0.weight, backbone.norm0.bias" in outcome.out
    trained, _ = read_weights(tmp_path / "run" / "iter_1.pth", described=False)
    assert all(torch.equal(trained[name], tensor) for name, tensor in tensors.items())


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("master", Path.unlink, "give the path without '.master' and '.rank0'"),
        ("rank0", Path.unlink, "must be rank0, rank1"),
        ("rank1", Path.unlink, "a rank file is missing"),
        ("rank1", cut, "swin.pth.rank1 is damaged"),
        ("master", no_model, "no state dict under 'model'"),
    ],
)
def test_damaged_shards_give_one_line(tmp_path: Path, name: str, damage: Any, reason: str) -> None:
    prefix, _ = write_shards(tmp_path)
    damage(tmp_path / f"swin.pth.{name}")
    outcome = convert(prefix, tmp_path / "w.safetensors")
    assert outcome.code == 1
    assert reason in outcome.error_line()
    assert not (tmp_path / "w.safetensors").exists()


def test_a_missing_tensor_gives_one_line(tmp_path: Path) -> None:
    prefix, _ = write_shards(tmp_path)
    content = torch.load(tmp_path / "swin.pth.master", weights_only=True)
    del content["model"]["layers.1.blocks.0.attn.proj.bias"]
    torch.save(content, tmp_path / "swin.pth.master")
    outcome = convert(prefix, tmp_path / "w.safetensors")
    assert outcome.code == 1
    assert "1 missing, e.g. stages.1.blocks.0.attn.proj.bias" in outcome.error_line()


def test_outputs_are_checked_before_reading(tmp_path: Path) -> None:
    prefix, _ = write_shards(tmp_path)
    output = tmp_path / "w.safetensors"
    output.write_text("mine")
    outcome = convert(prefix, output)
    assert outcome.code == 1
    assert "already exists; use --overwrite" in outcome.error_line()
    assert output.read_text() == "mine"
    assert convert(prefix, output, "--overwrite").code == 0
    assert "must end in .safetensors" in convert(prefix, tmp_path / "w.pth").error_line()
    assert "there is no folder" in convert(prefix, tmp_path / "x" / "w.safetensors").error_line()


def test_the_reference_shards(tmp_path: Path) -> None:
    prefix = shared("reference", "swin_moe", "sharded.pth.master").with_name("sharded.pth")
    outcome = convert(prefix, tmp_path / "w.safetensors")
    assert outcome.code == 0, outcome.err
    tensors, info = read_weights(tmp_path / "w.safetensors")
    assert info is not None
    assert info.model["backbone"]["num_experts"] == 4
    with np.load(prefix.with_name("linear.weights.npz")) as arrays:
        whole = {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    source = "layers.3.blocks.1.mlp._moe_layer.experts.batched_fc1_w"
    assert torch.equal(tensors["backbone.stages.3.blocks.1.mlp.experts.fc1_weight"], whole[source])
    skipped = [line.split()[0] for line in outcome.out.splitlines() if line.endswith(")")]
    added = sum(line.startswith("  backbone.") for line in outcome.out.splitlines())
    assert len(tensors) - added + len(set(skipped) & set(whole)) == len(whole)
