"""Training checkpoints as weights files that describe themselves."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from pcmoe_det.models.inference import load_detector
from pcmoe_det.models.weights_file import read_weights
from pcmoe_det.structures import SHIFT_CLASSES
from tests.cli.commands import run_command
from tests.cli.conftest import TinyRun
from tests.cli.tiny import make_images, write_config


def test_what_is_exported_runs_alone(tmp_path: Path, tiny_run: TinyRun) -> None:
    output = tmp_path / "w.safetensors"
    outcome = run_command("export", tiny_run.config, tiny_run.checkpoint, "--output", output)
    assert outcome.code == 0, outcome.err
    tensors, info = read_weights(output)
    assert outcome.out.startswith(f"wrote {output}: {len(tensors)} tensors, ")
    assert info is not None
    assert (info.class_names, info.long_side) == (SHIFT_CLASSES, 96)
    floating = {tensor.dtype for tensor in tensors.values() if tensor.is_floating_point()}
    assert floating == {torch.bfloat16}
    (found,) = load_detector(str(output), score_threshold=0.0).detect(make_images(1))
    assert len(found) > 0


def test_an_exported_file_can_be_exported_again(tmp_path: Path, tiny_run: TinyRun) -> None:
    first, again = tmp_path / "a.safetensors", tmp_path / "b.safetensors"
    options = ("--dtype", "float32")
    assert run_command("export", tiny_run.config, tiny_run.checkpoint, "--output", first, *options).code == 0
    assert run_command("export", tiny_run.config, first, "--output", again, *options).code == 0
    ours, theirs = read_weights(again), read_weights(first)
    assert ours[1] == theirs[1]
    assert all(torch.equal(ours[0][name], tensor) for name, tensor in theirs[0].items())


@pytest.mark.parametrize(
    ("changes", "code", "reason"),
    [
        ({"config": "/no/such/config.py"}, 2, "no config at"),
        ({"checkpoint": "/no/such/iter.pth"}, 1, "no weights at"),
        ({"output": "/no/such/folder/w.safetensors"}, 1, "there is no folder"),
        ({"output": "w.pth"}, 1, "must end in .safetensors"),
    ],
)
def test_wrong_arguments_give_one_line(
    tmp_path: Path, tiny_run: TinyRun, changes: dict[str, str], code: int, reason: str
) -> None:
    paths = {
        "config": tiny_run.config,
        "checkpoint": tiny_run.checkpoint,
        "output": tmp_path / "w.safetensors",
        **changes,
    }
    outcome = run_command("export", paths["config"], paths["checkpoint"], "--output", paths["output"])
    assert outcome.code == code
    assert reason in outcome.error_line()


def test_another_model_and_an_existing_file_are_refused(tmp_path: Path, tiny_run: TinyRun) -> None:
    output = tmp_path / "w.safetensors"
    other = write_config(tmp_path, tiny_run.data_root, num_experts=2)
    outcome = run_command("export", other, tiny_run.checkpoint, "--output", output)
    assert outcome.code == 1
    assert "does not fit the model" in outcome.error_line()
    assert not output.exists()
    output.write_text("mine")
    outcome = run_command("export", tiny_run.config, tiny_run.checkpoint, "--output", output)
    assert outcome.code == 1
    assert "already exists; use --overwrite" in outcome.error_line()
    assert output.read_text() == "mine"
    assert (
        run_command("export", tiny_run.config, tiny_run.checkpoint, "--output", output, "--overwrite").code
        == 0
    )
