"""The committee as an mmengine hook: test loop, validation with EMA, exceptions."""

from __future__ import annotations

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from mmengine.config import Config
from mmengine.evaluator import BaseMetric
from mmengine.hooks import EMAHook
from mmengine.model import BaseModel
from mmengine.registry import HOOKS
from mmengine.runner import Runner
from torch import Tensor
from torch.utils.data import DataLoader

from pcmoe_det.committee.hook import CommitteeHook
from pcmoe_det.committee.modules import MaskedGate
from pcmoe_det.errors import UsageError
from tests.committee.small_model import SmallDetector, video


class Wrapped(BaseModel):
    """The small detector with the interface of mmengine's loops."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone = SmallDetector().backbone
        self.fail_at: int | None = None
        self.calls = 0

    def forward(self, inputs: Any, data_samples: Any = None, mode: str = "tensor") -> Any:
        self.calls += 1
        if self.fail_at == self.calls:
            raise RuntimeError("broken frame")
        maps = self.backbone(torch.cat(list(inputs)))
        if mode == "loss":
            return {"loss": sum(feature.square().mean() for feature in maps)}
        return [maps[-1].mean().reshape(1)]


class Collect(BaseMetric):
    def process(self, data_batch: Any, data_samples: Any) -> None:
        self.results.extend(float(value) for value in data_samples)

    def compute_metrics(self, results: list[float]) -> dict[str, float]:
        return {"mean": sum(results) / len(results)}


def loader(frames: list[Tensor]) -> DataLoader[Any]:
    return DataLoader(
        [{"inputs": frame} for frame in frames],  # type: ignore[arg-type]
        batch_size=1,
        collate_fn=lambda items: {"inputs": [item["inputs"] for item in items]},
    )


def is_patched(model: torch.nn.Module) -> bool:
    return any(isinstance(module, MaskedGate) for module in model.modules())


def runner(tmp_path: Path, model: Wrapped, *, train: bool = False, hooks: list[Any]) -> Runner:
    frames = video(6)
    settings: dict[str, Any] = {}
    if train:
        settings = dict(
            train_dataloader=loader(frames),
            train_cfg=dict(by_epoch=True, max_epochs=2, val_interval=1),
            optim_wrapper=dict(optimizer=dict(type="SGD", lr=1e-3)),
            val_dataloader=loader(frames),
            val_cfg={},
            val_evaluator=[Collect()],
        )
    return Runner(
        model=model,
        work_dir=str(tmp_path),
        test_dataloader=loader(frames),
        test_cfg={},
        test_evaluator=[Collect()],
        default_scope="mmengine",
        custom_hooks=hooks,
        log_level="ERROR",
        experiment_name=f"{tmp_path.name}{id(model)}",
        **settings,
    )


@pytest.mark.timeout(60)
def test_a_test_loop_runs_patched_and_ends_restored(tmp_path: Path) -> None:
    model = Wrapped()
    hook = CommitteeHook(policy="random_keep", expert_budget=0.4)
    patched = runner(tmp_path, model, hooks=[hook]).test()
    assert hook.committee is not None
    assert hook.committee.accounting.frames == 6
    assert not is_patched(model)
    plain = runner(tmp_path, model, hooks=[]).test()
    assert plain != patched
    whole = runner(tmp_path, model, hooks=[CommitteeHook(policy="all")]).test()
    assert whole == plain


@pytest.mark.timeout(60)
def test_an_exception_in_the_test_loop_is_repaired_before_the_next(tmp_path: Path) -> None:
    model = Wrapped()
    hook = CommitteeHook(policy="pcmoe", expert_budget=0.5)
    run = runner(tmp_path, model, hooks=[hook])
    model.fail_at = 3
    with pytest.raises(RuntimeError, match="broken frame"):
        run.test()
    assert is_patched(model)  # mmengine's loop has no finally
    gates = [id(gate) for gate in (layer.gate.original for _, layer in model.backbone.moe_layers())]
    model.fail_at = None
    run.test()
    assert not is_patched(model)
    assert [id(layer.gate) for _, layer in model.backbone.moe_layers()] == gates


@pytest.mark.timeout(120)
def test_validation_with_averaged_weights(tmp_path: Path) -> None:
    model = Wrapped()
    names = [name for name, _ in model.named_parameters()]
    hook = CommitteeHook(policy="on_demand", expert_budget=0.5)
    ema = EMAHook(momentum=0.5)
    run = runner(tmp_path, model, train=True, hooks=[ema, hook])
    seen: list[bool] = []
    model.backbone.register_forward_hook(
        lambda module, *_: seen.append(is_patched(module)) if not module.training else None
    )
    run.train()
    assert seen == [True] * 12
    assert not is_patched(model)
    assert [name for name, _ in model.named_parameters()] == names
    # On-demand is exact: the patched validation saw the averaged weights, not those being trained.
    averaged = Wrapped()
    averaged.load_state_dict(ema.ema_model.module.state_dict())
    expected = runner(tmp_path, averaged, hooks=[]).test()
    assert run.message_hub.get_scalar("val/mean").current() == pytest.approx(expected["mean"], abs=1e-12)


def test_the_shipped_configs_know_the_hook(monkeypatch: pytest.MonkeyPatch) -> None:
    # As in a process that has imported nothing of it yet.
    monkeypatch.delitem(HOOKS.module_dict, "CommitteeHook")
    monkeypatch.delitem(sys.modules, "pcmoe_det.committee.hook")
    root = Path(__file__).resolve().parents[2]
    Config.fromfile(str(root / "configs" / "small" / "cascade_swin_moe_small_8e.py"))
    hook = HOOKS.build(dict(type="CommitteeHook", policy="random_keep", expert_budget=0.4))
    assert hook.settings.policy.name == "random_keep"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(policy_options=dict(seed="x")), "seed is 'x'"),
        (dict(policy_options=dict(seed=-1)), "seed is -1"),
        (dict(policy_options=dict(seed=2**80)), "seed is 1208925819614629174706176"),
        (dict(policy_options=dict(margin=float("nan"))), "margin is nan"),
        (dict(policy_options=dict(margin="big")), "margin is 'big'"),
        (dict(policy_options=dict(importance="luck")), "importance is 'luck'"),
        (dict(policy_options=[1]), "they must be a dict"),
        (dict(policy="best"), "unknown policy"),
    ],
)
def test_settings_that_cannot_be_are_named(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        CommitteeHook(**options)


@pytest.mark.parametrize("reset", [True, False])
def test_the_committee_hears_of_each_video(reset: bool) -> None:
    calls: list[tuple[str, bool]] = []
    hook = CommitteeHook(reset_each_video=reset)
    hook.committee = SimpleNamespace(  # type: ignore[assignment]
        enter_video=lambda name, *, keep_residents: calls.append((name, keep_residents))
    )
    for batch in ({"data_samples": [SimpleNamespace(metainfo={"video_name": "a"})]}, {}):
        hook.before_test_iter(None, 0, batch)
    assert calls == [("a", not reset), ("", not reset)]
