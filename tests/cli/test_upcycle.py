"""Start weights of an MoE detector from its dense twin."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pcmoe_det.models.inference import build_model, info_from_config
from pcmoe_det.models.weights_file import read_weights
from tests.cli.commands import run_command
from tests.cli.tiny import write_config, write_split

LAYERS = ("backbone.stages.2.blocks.1.mlp", "backbone.stages.3.blocks.0.mlp")


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random static detector's checkpoint, beside the configs ``tiny_0e.py`` and ``tiny_4e.py``."""
    folder = tmp_path_factory.mktemp("dense")
    write_split(folder / "street", "train", {"a": 4, "b": 2})
    torch.manual_seed(0)
    config = write_config(folder, folder / "street", num_experts=0)
    state = build_model(info_from_config(config).model).state_dict()
    torch.save({"state_dict": state}, folder / "dense.pth")
    write_config(folder, folder / "street", num_experts=4)
    return folder / "dense.pth"


def upcycled(
    dense: Path, output: Path, *options: object, start: Path | None = None
) -> tuple[dict[str, torch.Tensor], str]:
    config = dense.parent / "tiny_4e.py"
    outcome = run_command("upcycle", config, start or dense, "--output", output, *options)
    assert outcome.code == 0, outcome.err
    tensors, info = read_weights(output)
    assert info is not None
    model = build_model(info.model)
    model.load_state_dict(tensors)
    return tensors, outcome.out


def test_experts_are_copies_and_the_rest_is_the_same(tmp_path: Path, dense: Path) -> None:
    tensors, out = upcycled(dense, tmp_path / "w.safetensors", "--jitter", 0)
    assert "2 FFNs copied, 2 gate tensors new" in out
    source, _ = read_weights(dense, described=False)
    for name in LAYERS:
        for expert in range(4):
            experts = f"{name}.experts."
            assert torch.equal(tensors[f"{experts}fc1_weight"][expert], source[f"{name}.fc1.weight"])
            assert torch.equal(tensors[f"{experts}fc2_weight"][expert], 4 * source[f"{name}.fc2.weight"])
    rest = [name for name in source if not name.startswith(LAYERS)]
    assert len(rest) == len(tensors) - 2 * 5
    assert all(torch.equal(tensors[name], source[name]) for name in rest)


def test_gates_from_data_are_reported_and_made_up_for(tmp_path: Path, dense: Path) -> None:
    options = ("--jitter", 0, "--data-root", dense.parent / "street", "--images", 3)
    tensors, out = upcycled(dense, tmp_path / "w.safetensors", *options)
    lines = [line for line in out.splitlines() if "mean gate weight" in line]
    assert [line.split(":")[0] for line in lines] == list(LAYERS)
    source, _ = read_weights(dense, described=False)
    for name, line in zip(LAYERS, lines, strict=True):
        reported = float(line.split("mean gate weight ")[1].split(",")[0])
        scale = tensors[f"{name}.experts.fc2_weight"][0] / source[f"{name}.fc2.weight"]
        assert float(scale.mean()) == pytest.approx(1 / reported, rel=0.03)
        shares = [int(share) for share in line.split("(%) ")[1].split()]
        assert len(shares) == 4
        assert sum(shares) == pytest.approx(100, abs=3)
        assert tensors[f"{name}.gate.weight"].std() > 0
    again, _ = upcycled(dense, tmp_path / "again.safetensors", *options)
    assert all(torch.equal(again[name], tensor) for name, tensor in tensors.items())
    other, _ = upcycled(dense, tmp_path / "other.safetensors", *options, "--seed", 1)
    assert not torch.equal(other[f"{LAYERS[0]}.gate.weight"], tensors[f"{LAYERS[0]}.gate.weight"])


def test_without_data_gates_stay_random(tmp_path: Path, dense: Path) -> None:
    tensors, out = upcycled(dense, tmp_path / "w.safetensors")
    assert "mean gate weight" not in out
    name = f"{LAYERS[0]}.experts.fc1_weight"
    assert not torch.equal(tensors[name][0], tensors[name][1])  # jitter is the default


def test_experts_are_scaled_until_they_write_their_share(tmp_path: Path, dense: Path) -> None:
    data = ("--data-root", dense.parent / "street", "--images", 3)
    plain, _ = upcycled(dense, tmp_path / "plain.safetensors", *data)
    loud, out = upcycled(dense, tmp_path / "loud.safetensors", *data, "--write-share", 0.5)
    options = (*data, "--write-share", 0.5)
    again, _ = upcycled(dense, tmp_path / "again.safetensors", *options, start=tmp_path / "plain.safetensors")
    lines = [line for line in out.splitlines() if "experts scaled by" in line]
    assert [line.split(":")[0] for line in lines] == list(LAYERS)
    for name, line in zip(LAYERS, lines, strict=True):
        factor = float(line.rpartition(" ")[2])
        assert factor > 1
        for tensor in ("fc2_weight", "fc2_bias"):
            expected = factor * plain[f"{name}.experts.{tensor}"]
            assert torch.allclose(loud[f"{name}.experts.{tensor}"], expected, rtol=5e-3, atol=1e-9)
    # An MoE detector's own weights are taken over, and nothing else is changed.
    scaled = {f"{name}.experts.{tensor}" for name in LAYERS for tensor in ("fc2_weight", "fc2_bias")}
    for name, tensor in plain.items():
        assert torch.allclose(again[name], loud[name], rtol=1e-5)
        assert torch.equal(loud[name], tensor) == (name not in scaled or not tensor.any())


def test_errors_give_one_line(tmp_path: Path, dense: Path) -> None:
    moe, static = dense.parent / "tiny_4e.py", dense.parent / "tiny_0e.py"
    cosine = tmp_path / "cosine.py"
    cosine.write_text(f"_base_ = [{str(moe)!r}]\nmodel = dict(backbone=dict(gate='cosine'))\n")
    street, output = dense.parent / "street", tmp_path / "w.safetensors"
    for arguments, code, reason in (
        ((static, dense), 1, "has no MoE layers"),
        ((moe, "/no/such/dense.pth"), 1, "no weights at"),
        (("/no/such/config.py", dense), 2, "no config at"),
        ((moe, dense, "--images", 0), 2, "--images is 0"),
        ((moe, dense, "--data-root", "/no/such/folder"), 1, "there is no such data root"),
        ((cosine, dense, "--data-root", street), 2, "sets linear gates only"),
        ((moe, moe), 1, "not a readable checkpoint"),
        ((moe, dense, "--write-share", 0, "--data-root", street), 2, "--write-share is 0.0"),
        ((moe, dense, "--write-share", 0.3), 2, "name their folder with --data-root"),
    ):
        outcome = run_command("upcycle", *arguments, "--output", output)
        assert outcome.code == code, outcome
        assert reason in outcome.error_line()
        assert not output.exists()
