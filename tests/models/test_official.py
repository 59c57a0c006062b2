"""Conversion of official checkpoints: what is mapped, and what is refused."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from pcmoe_det.errors import CheckpointError
from pcmoe_det.models.official import (
    backbone_config,
    convert_mmdet_swin,
    convert_official_swin,
    read_sharded,
)
from pcmoe_det.models.swin_moe import SwinMoE

State = dict[str, Tensor]
_LAYER = "layers.1.blocks.1.mlp._moe_layer"


def official_state(*, gate: str = "linear", continuous: bool = True) -> State:
    """A Swin-MoE of two stages of one and two blocks in official names; four experts in the last block."""
    generator = torch.Generator().manual_seed(0)

    def make(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    state = {
        "patch_embed.proj.weight": make(8, 3, 4, 4),
        "patch_embed.proj.bias": make(8),
        "patch_embed.norm.weight": make(8),
        "patch_embed.norm.bias": make(8),
        "layers.0.downsample.norm.weight": make(32),
        "layers.0.downsample.norm.bias": make(32),
        "layers.0.downsample.reduction.weight": make(16, 32),
        "norm.weight": make(16),
        "norm.bias": make(16),
        "head.weight": make(10, 16),
        "head.bias": make(10),
    }
    for stage, block, width, heads in ((0, 0, 8, 1), (1, 0, 16, 2), (1, 1, 16, 2)):
        prefix = f"layers.{stage}.blocks.{block}."
        names: State = {
            "norm1.weight": make(width),
            "norm1.bias": make(width),
            "norm2.weight": make(width),
            "norm2.bias": make(width),
            "attn.qkv.weight": make(3 * width, width),
            "attn.qkv.bias": make(3 * width),
            "attn.proj.weight": make(width, width),
            "attn.proj.bias": make(width),
            "attn.relative_position_index": torch.zeros(16, 16),
        }
        if continuous:
            names["attn.relative_coords_table"] = make(1, 7, 7, 2)
            names["attn.cpb_mlp.0.weight"] = make(512, 2)
            names["attn.cpb_mlp.0.bias"] = make(512)
            names["attn.cpb_mlp.2.weight"] = make(heads, 512)
        else:
            names["attn.relative_position_bias_table"] = make(49, heads)
        if (stage, block) != (1, 1):
            names["mlp.fc1.weight"] = make(4 * width, width)
            names["mlp.fc1.bias"] = make(4 * width)
            names["mlp.fc2.weight"] = make(width, 4 * width)
        state |= {prefix + name: tensor for name, tensor in names.items()}
    state |= {
        f"{_LAYER}._num_global_experts": torch.tensor(4),
        f"{_LAYER}.experts.batched_fc1_w": make(4, 64, 16),
        f"{_LAYER}.experts.batched_fc2_w": make(4, 64, 16),
        f"{_LAYER}.experts.batched_fc1_bias": make(4, 64),
    }
    if gate == "linear":
        state[f"{_LAYER}.gates.0.wg.weight"] = make(4, 16)
    else:
        state |= {
            f"{_LAYER}.gates.0.cosine_projector.weight": make(8, 16),
            f"{_LAYER}.gates.0.cosine_projector.bias": make(8),
            f"{_LAYER}.gates.0.sim_matrix": make(8, 4),
            f"{_LAYER}.gates.0.temperature": make(1),
        }
    return state


def write_shards(folder: Path, *, ranks: int = 2) -> tuple[Path, State]:
    """Split a state as official checkpoints are; returns the prefix and the whole."""
    state = official_state()
    own = {name for name in state if ".experts." in name}
    master = {name: tensor for name, tensor in state.items() if name not in own}
    torch.save({"model": master, "epoch": 3}, folder / "swin.pth.master")
    for rank in range(ranks):
        shard = {name: state[name].chunk(ranks)[rank].clone() for name in own}
        torch.save({"model": shard}, folder / f"swin.pth.rank{rank}")
    return folder / "swin.pth", state


@pytest.mark.parametrize("gate", ["linear", "cosine"])
@pytest.mark.parametrize("continuous", [True, False])
def test_every_variant_converts_into_a_backbone(gate: str, continuous: bool) -> None:
    source = official_state(gate=gate, continuous=continuous)
    conversion = convert_official_swin(source)
    config = backbone_config(conversion, source)
    assert config == {
        "type": "SwinMoE",
        "embed_dims": 8,
        "depths": [1, 2],
        "num_heads": [1, 2],
        "window_size": 4,
        "mlp_ratio": 4.0,
        "num_experts": 4,
        "moe_blocks": [[], [1]],
        "fc2_bias": False,
        "position_bias": "continuous" if continuous else "table",
        "out_indices": [1],
        "gate": gate,
        **({"gate_projection": 8} if gate == "cosine" else {}),
    }
    config.pop("type")
    SwinMoE(**config).load_state_dict(conversion.tensors)
    assert len(conversion.tensors) + len(conversion.skipped) == len(source) + 1
    assert conversion.added == ("stages.1.blocks.1.mlp.experts.fc2_bias",)
    assert conversion.tensors[conversion.added[0]].abs().sum() == 0


def test_the_second_layer_of_the_experts_is_transposed() -> None:
    source = official_state()
    ours = convert_official_swin(source).tensors["stages.1.blocks.1.mlp.experts.fc2_weight"]
    theirs = source[f"{_LAYER}.experts.batched_fc2_w"]
    hidden = torch.randn(64)
    for expert in range(4):
        torch.testing.assert_close(ours[expert] @ hidden, hidden @ theirs[expert])


@pytest.mark.parametrize("ranks", [1, 2, 4])
def test_shards_merge_to_the_whole(tmp_path: Path, ranks: int) -> None:
    prefix, state = write_shards(tmp_path, ranks=ranks)
    merged = read_sharded(prefix)
    assert merged.keys() == state.keys()
    assert all(torch.equal(merged[name], state[name]) for name in state)


def test_a_name_with_wildcards_is_a_name(tmp_path: Path) -> None:
    folder = tmp_path / "run[1]"
    folder.mkdir()
    prefix, state = write_shards(folder)
    assert read_sharded(prefix).keys() == state.keys()


def rewrite(path: Path, change: Callable[[State], None]) -> None:
    content = torch.load(path, weights_only=True)
    change(content["model"])
    torch.save(content, path)


def drop_a_tensor(path: Path) -> None:
    rewrite(path, lambda model: model.pop(f"{_LAYER}.experts.batched_fc1_bias"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:2000])


def no_model(path: Path) -> None:
    torch.save({"state_dict": {}}, path)


def with_code(path: Path) -> None:
    path.write_bytes(pickle.dumps({"model": {"x": print}}, protocol=2))


@pytest.mark.parametrize(
    ("name", "damage", "reason"),
    [
        ("master", Path.unlink, "give the path without '.master'"),
        ("rank0", Path.unlink, "found: swin.pth.rank1"),
        ("rank1", Path.unlink, "rank0 hold 2 experts .* the master says 4: a rank file is missing"),
        ("rank1", drop_a_tensor, "batched_fc1_bias .* not in swin.pth.rank1"),
        ("rank0", drop_a_tensor, "batched_fc1_bias .* not in swin.pth.rank0"),
        ("rank1", cut, "swin.pth.rank1 is damaged"),
        ("master", no_model, "no state dict under 'model'"),
        ("master", with_code, "swin.pth.master is damaged or no checkpoint of tensors"),
    ],
)
def test_shards_that_cannot_be_merged(
    tmp_path: Path, name: str, damage: Callable[[Path], None], reason: str
) -> None:
    prefix, _ = write_shards(tmp_path)
    damage(tmp_path / f"swin.pth.{name}")
    with pytest.raises(CheckpointError, match=reason):
        read_sharded(prefix)


def test_a_folder_that_is_not_there() -> None:
    with pytest.raises(CheckpointError, match=r"no /no/such/swin\.pth\.master"):
        read_sharded(Path("/no/such/swin.pth"))


@pytest.mark.parametrize(
    "name",
    [
        "patch_embed.proj.weight",
        "layers.0.blocks.0.mlp.fc1.weight",
        "layers.0.blocks.0.attn.cpb_mlp.2.weight",
    ],
)
def test_a_checkpoint_without_a_part_of_every_swin(name: str) -> None:
    source = official_state()
    del source[name]
    conversion = convert_official_swin(source)
    with pytest.raises(CheckpointError, match="no whole Swin"):
        backbone_config(conversion, source)


@pytest.mark.parametrize("convert", [convert_official_swin, convert_mmdet_swin])
def test_other_networks_are_refused(convert: Callable[[State], object]) -> None:
    with pytest.raises(CheckpointError, match="no Swin stages"):
        convert({"conv1.weight": torch.zeros(3, 3)})
