"""Training with the command: progress, checkpoints, going on, start weights, two processes, errors."""

from __future__ import annotations

import copy
import json
from pathlib import Path
from typing import Any

import pytest
import torch

from pcmoe_det.cli import training_log
from pcmoe_det.cli.training_curves import read_scalars
from pcmoe_det.models.weights_file import WeightsInfo, read_weights, save_weights, trusted_globals
from tests.cli.commands import run_command, run_in_two_processes
from tests.cli.conftest import TinyRun
from tests.cli.tiny import write_config, write_split, write_street

pytestmark = pytest.mark.usefixtures("hasty")


def load_plain(path: Path) -> dict[str, Any]:
    """What torch reads without running code, trusting plain NumPy numbers only."""
    assert not set(torch.serialization.get_safe_globals()) & set(trusted_globals())
    with torch.serialization.safe_globals(trusted_globals()):
        content: dict[str, Any] = torch.load(path, weights_only=True)
    return content


class Spy:
    """Copies of model and optimiser at the hook points of a runner."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.models: dict[str, dict[str, torch.Tensor]] = {}
        self.optimisers: dict[str, dict[str, Any]] = {}
        self.iterations: dict[str, int] = {}
        call_hook = training_log.PlainLogRunner.call_hook

        def spy(runner: Any, point: str, **kwargs: Any) -> None:
            call_hook(runner, point, **kwargs)
            if point in ("before_train_epoch", "before_val_iter", "after_train"):
                self.models[point] = copy.deepcopy(runner.model.state_dict())
                self.optimisers[point] = copy.deepcopy(runner.optim_wrapper.state_dict())
                self.iterations[point] = runner.iter

        monkeypatch.setattr(training_log.PlainLogRunner, "call_hook", spy)


def assert_same_state(ours: dict[str, torch.Tensor], expected: dict[str, torch.Tensor]) -> None:
    assert ours.keys() == expected.keys()
    different = [name for name in ours if not torch.equal(ours[name], expected[name])]
    assert different == []


def test_training_leaves_checkpoints_curves_and_a_log(tiny_run: TinyRun) -> None:
    assert {path.name for path in tiny_run.work_dir.glob("*.pth")} == {"iter_2.pth", "iter_4.pth"}
    curves = (tiny_run.work_dir / "curves.png").read_bytes()
    assert curves.startswith(b"\x89PNG")
    assert len(curves) > 10_000
    records = read_scalars(tiny_run.work_dir)
    losses = [record for record in records if "loss" in record]
    assert [record["step"] for record in losses] == [1, 2, 3, 4]
    for record in losses:
        assert record["loss_balance"] > 0
        assert 1 <= record["busiest_expert"] <= 4
        terms = sum(value for name, value in record.items() if "loss" in name and name != "loss")
        assert record["loss"] == pytest.approx(terms, rel=1e-4)
    assert [record["step"] for record in records if "mAP50" in record] == [2, 4]


def test_the_terminal_shows_progress_and_no_dumps(tiny_run: TinyRun) -> None:
    lines = tiny_run.outcome.out.strip().splitlines()
    assert tiny_run.outcome.err == ""
    assert all(" - INFO - " in line for line in lines), tiny_run.outcome.out
    for wanted in ("Iter(train) [4/4]", "eta: ", "loss_balance: ", "mAP50: ", "Saving checkpoint at 4"):
        assert any(wanted in line for line in lines), wanted
    assert len(lines) < 30
    log = next(tiny_run.work_dir.glob("*/*.log")).read_text()
    assert "paramwise_options" not in log
    assert "Initialization information" not in log
    assert "embed_dims=12" in log  # the file has the whole config


def test_checkpoints_are_plain_data(tiny_run: TinyRun) -> None:
    content = load_plain(tiny_run.checkpoint)
    assert content["meta"]["iter"] == 4
    assert {"state_dict", "optimizer", "param_schedulers", "ema_state_dict"} <= content.keys()


def test_resume_goes_on_with_the_same_state(
    tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    work_dir = tmp_path / "run"
    first = run_command("train", tiny_run.config, "--work-dir", work_dir, "--set", "train_cfg.max_iters=2")
    assert first.code == 0, first.err
    stopped = copy.deepcopy(spy)

    moved = work_dir.rename(tmp_path / "moved")
    again = run_command("train", tiny_run.config, "--work-dir", moved, "--resume")
    assert again.code == 0, again.err
    assert "Iter(train) [2/4]" not in again.out
    assert "Iter(train) [3/4]" in again.out
    assert spy.iterations["before_train_epoch"] == 2
    assert_same_state(spy.models["before_train_epoch"], stopped.models["after_train"])
    before, after = stopped.optimisers["after_train"], spy.optimisers["before_train_epoch"]
    assert after["state"].keys() == before["state"].keys()
    for index, state in before["state"].items():
        assert_same_state(after["state"][index], state)
    assert {float(state["step"]) for state in after["state"].values()} == {2.0}
    assert [record["step"] for record in read_scalars(moved) if "loss" in record] == [1, 2, 3, 4]
    assert load_plain(moved / "iter_4.pth")["meta"]["iter"] == 4


def test_resume_reads_no_data_of_the_past(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from pcmoe_det.datasets.shift import ShiftDataset

    config = write_config(tmp_path, write_street(tmp_path / "street"), num_experts=0)
    short = ("--set", "val_cfg=None", "val_dataloader=None", "val_evaluator=None")
    work_dir = tmp_path / "run"
    assert run_command("train", config, "--work-dir", work_dir, *short, "train_cfg.max_iters=2").code == 0
    read = []
    prepare = ShiftDataset.prepare_data

    def count(self: ShiftDataset, index: int) -> Any:
        read.append(index)
        return prepare(self, index)

    monkeypatch.setattr(ShiftDataset, "prepare_data", count)
    outcome = run_command(
        "train", config, "--work-dir", work_dir, "--resume", *short, "train_cfg.max_iters=3"
    )
    assert outcome.code == 0, outcome.err
    assert "going on after iteration 2" in outcome.out
    assert len(read) == 2  # one batch of two images


def test_the_average_is_what_is_validated_saved_and_exported(
    tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    work_dir = tmp_path / "run"
    assert run_command("train", tiny_run.config, "--work-dir", work_dir).code == 0
    tensors, _ = read_weights(work_dir / "iter_4.pth", described=False)
    assert_same_state(tensors, spy.models["before_val_iter"])
    trained = spy.models["after_train"]
    assert not torch.equal(tensors["rpn_head.rpn_conv.weight"], trained["rpn_head.rpn_conv.weight"])

    output = tmp_path / "w.safetensors"
    exported = run_command(
        "export", tiny_run.config, work_dir / "iter_4.pth", "--output", output, "--dtype", "float32"
    )
    assert exported.code == 0, exported.err
    assert_same_state(read_weights(output)[0], tensors)


def test_start_weights_are_not_initialised_away(
    tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    outcome = run_command(
        *("train", tiny_run.config, "--work-dir", tmp_path / "run", "--weights", tiny_run.checkpoint),
        *("--set", "train_cfg.max_iters=1", "val_cfg=None", "val_dataloader=None", "val_evaluator=None"),
    )
    assert outcome.code == 0, outcome.err
    tensors, _ = read_weights(tiny_run.checkpoint, described=False)
    assert_same_state(spy.models["before_train_epoch"], tensors)


def backbone_weights(path: Path, tiny_run: TinyRun, *, leave_out: str = "norm1.") -> dict[str, torch.Tensor]:
    tensors, _ = read_weights(tiny_run.checkpoint, described=False)
    backbone = {
        name: torch.randn_like(tensor)
        for name, tensor in tensors.items()
        if name.startswith("backbone.") and not name.startswith(f"backbone.{leave_out}")
    }
    save_weights(path, backbone, WeightsInfo(model={"backbone": {"type": "SwinMoE", "embed_dims": 12}}))
    return backbone


def test_weights_of_a_backbone_alone_start_a_detector(
    tmp_path: Path, tiny_run: TinyRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    spy = Spy(monkeypatch)
    backbone = backbone_weights(tmp_path / "backbone.safetensors", tiny_run)
    outcome = run_command(
        *("train", tiny_run.config, "--work-dir", tmp_path / "run"),
        *("--weights", tmp_path / "backbone.safetensors"),
        *("--set", "train_cfg.max_iters=1", "val_cfg=None", "val_dataloader=None", "val_evaluator=None"),
    )
    assert outcome.code == 0, outcome.err
    assert "into the backbone; the rest of the model is new, and backbone.norm1.weight" in outcome.out
    started = spy.models["before_train_epoch"]
    assert_same_state({name: started[name] for name in backbone}, backbone)
    assert torch.equal(started["backbone.norm1.weight"], torch.ones(24))


def test_a_backbone_that_does_not_fit_is_refused(tmp_path: Path, tiny_run: TinyRun) -> None:
    backbone_weights(tmp_path / "backbone.safetensors", tiny_run, leave_out="stages.0.blocks.0.attn.qkv.")
    outcome = run_command(
        *("train", tiny_run.config, "--work-dir", tmp_path / "run"),
        *("--weights", tmp_path / "backbone.safetensors"),
    )
    assert outcome.code == 1
    line = outcome.error_line()
    assert "2 missing, e.g. backbone.stages.0.blocks.0.attn.qkv.weight" in line
    assert "dict(type='SwinMoE', embed_dims=12)" in line


def test_a_run_is_not_overwritten_nor_resumed_where_there_is_none(tmp_path: Path, tiny_run: TinyRun) -> None:
    again = run_command("train", tiny_run.config, "--work-dir", tiny_run.work_dir)
    assert again.code == 2
    assert "holds a run already; add --resume" in again.error_line()
    nothing = run_command("train", tiny_run.config, "--work-dir", tmp_path, "--resume")
    assert nothing.code == 2
    assert "has no last_checkpoint" in nothing.error_line()
    both = run_command("train", tiny_run.config, "--resume", "--weights", tiny_run.checkpoint)
    assert both.code == 2
    assert "use one of them" in both.error_line()


@pytest.mark.parametrize("damage", ["cut", "gone", "other model"])
def test_a_checkpoint_that_cannot_be_resumed(tmp_path: Path, tiny_run: TinyRun, damage: str) -> None:
    config = tiny_run.config
    checkpoint = tmp_path / "run" / "iter_4.pth"
    checkpoint.parent.mkdir()
    (checkpoint.parent / "last_checkpoint").write_text(str(checkpoint))
    if damage == "cut":
        checkpoint.write_bytes(tiny_run.checkpoint.read_bytes()[:50_000])
        reason = "iter_4.pth is not a readable checkpoint"
    elif damage == "gone":
        reason = "iter_4.pth, which does not exist"
    else:
        checkpoint.write_bytes(tiny_run.checkpoint.read_bytes())
        config = write_config(tmp_path, tiny_run.data_root, num_experts=3)
        reason = "does not fit the model"
    outcome = run_command("train", config, "--work-dir", checkpoint.parent, "--resume")
    assert outcome.code == 1
    assert reason in outcome.error_line()


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["--set", "model.backbone.embed_dims"], 2, "write KEY=VALUE"),
        (["--set", "model.backbone.depths=[1,2"], 2, "the brackets of '[1,2' do not match"),
        (["--set", "model.backbone.depths=),("], 2, "the brackets of '),(' do not match"),
        (["--set", "model.backbone.depths.9.x=1"], 2, "the config has no such place"),
        (["--set", "model.backbone.windowsize=8"], 2, "windowsize"),
        (["--set", "model.backbone.type=SwinnMoE"], 2, "SwinnMoE"),
        (["--set", "optim_wrapper.optimizer.type=Adamm"], 2, "does not build"),
        (["--set", "train_dataloader.dataset.subsett=x"], 2, "subsett"),
        (["--set", "train_dataloader.dataset.teacher_labels=maybe"], 2, "teacher_labels 'maybe'"),
        (["--data-root", "/no/such/folder"], 1, "there is no such data root"),
        (["--weights", "/no/such/weights.safetensors"], 1, "no weights at"),
        (["--launcher", "pytorch"], 2, "needs a launcher"),
    ],
)
def test_wrong_arguments_give_one_line(
    tmp_path: Path, tiny_run: TinyRun, arguments: list[str], code: int, reason: str
) -> None:
    outcome = run_command("train", tiny_run.config, "--work-dir", tmp_path / "run", *arguments)
    assert outcome.code == code
    assert reason in outcome.error_line()


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no config at"),
        ("model = dict(", "is not a readable config"),
        ("_base_ = ['nowhere.py']", "is not a readable config"),
        ("x = 1", "has no 'model'"),
        ("model = dict(type='MoEDetector', detector='CascadeRCNN')", "does not build"),
    ],
)
def test_wrong_configs_give_one_line(tmp_path: Path, text: str | None, reason: str) -> None:
    config = tmp_path / "config.py"
    if text is not None:
        config.write_text(text)
    outcome = run_command("train", config, "--work-dir", tmp_path / "run")
    assert outcome.code == 2
    assert reason in outcome.error_line()


def test_a_work_dir_that_cannot_be_made(tmp_path: Path, tiny_run: TinyRun) -> None:
    (tmp_path / "file").write_text("")
    outcome = run_command("train", tiny_run.config, "--work-dir", tmp_path / "file" / "run")
    assert outcome.code == 1
    assert "cannot make the work dir" in outcome.error_line()


@pytest.mark.usefixtures("quick_to_end_workers")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path: Path, workers: int) -> None:
    import zipfile

    root = tmp_path / "street"
    write_split(root, "train", {"a": 3})
    write_split(root, "val", {"c": 1})
    archive = root / "discrete" / "images" / "train" / "front" / "img.zip"
    with zipfile.ZipFile(archive) as whole:
        names = whole.namelist()
    with zipfile.ZipFile(archive, "w") as broken:
        for name in names:
            broken.writestr(name, b"\xff\xd8 this is no picture")
    config = write_config(tmp_path, root, num_experts=0)
    outcome = run_command(
        "train", config, "--work-dir", tmp_path / "run", "--set", f"train_dataloader.num_workers={workers}"
    )
    assert outcome.code == 1
    line = outcome.error_line()
    assert "img.zip" in line
    assert "a/0000000" in line


def test_curves_of_a_killed_run(tmp_path: Path) -> None:
    log = tmp_path / "20260101_000000" / "vis_data" / "scalars.json"
    log.parent.mkdir(parents=True)
    lines = [json.dumps({"loss": 2.0, "step": 1}), json.dumps({"time": 0.1, "step": 1}), '{"loss": 1.0, "st']
    log.write_text("\n".join(lines))
    assert [record.get("loss") for record in read_scalars(tmp_path)] == [None, 2.0]


def test_two_processes_train_together(tmp_path: Path, tiny_run: TinyRun) -> None:
    work_dir = tmp_path / "run"
    outcome = run_in_two_processes(
        *("train", tiny_run.config, "--work-dir", work_dir, "--weights", tiny_run.checkpoint),
        *("--set", "train_cfg.max_iters=1"),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("Iter(train) [1/1]") == 1
    records = read_scalars(work_dir)
    assert [record["step"] for record in records if "loss" in record] == [1]
    assert [record["step"] for record in records if "mAP50" in record] == [1]
    assert (work_dir / "curves.png").is_file()
    names = set(read_weights(work_dir / "iter_1.pth", described=False)[0])
    assert names == set(read_weights(tiny_run.checkpoint, described=False)[0])
