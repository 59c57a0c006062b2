"""Shares of tokens by expert: counted over iterations, written as lines, drawn."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import cv2
import torch

from pcmoe_det.cli.router_health import RouterHealthHook, draw_router_health, read_router_health
from pcmoe_det.models.experts import ExpertFFN
from pcmoe_det.models.gates import LinearGate
from pcmoe_det.models.moe import MoELayer


def test_shares_are_those_of_the_tokens_since_the_last_line(tmp_path: Path) -> None:
    torch.manual_seed(0)
    layer = MoELayer(LinearGate(8, 4, noise=0.0), ExpertFFN(8, 16, 4)).train()
    with torch.no_grad():
        layer.gate.weight.normal_()
    runner = SimpleNamespace(model=torch.nn.ModuleDict({"block": layer}), work_dir=str(tmp_path), iter=0)
    hook = RouterHealthHook(interval=2)
    expected = []
    for runner.iter in range(4):
        tokens = torch.randn(2, 30, 8)
        layer(tokens)
        expected.append(torch.bincount(layer.gate.logits(tokens.view(-1, 8)).argmax(1), minlength=4))
        hook.after_train_iter(runner, runner.iter)
    lines = read_router_health(tmp_path)
    assert [line["step"] for line in lines] == [2, 4]
    for line, first in zip(lines, (0, 2), strict=True):
        counts = expected[first] + expected[first + 1]
        torch.testing.assert_close(
            torch.tensor(line["shares"]["block"]), counts / counts.sum(), atol=1e-5, rtol=0
        )


def test_the_picture_and_a_cut_last_line(tmp_path: Path) -> None:
    assert draw_router_health(tmp_path) is None
    lines = [
        json.dumps({"step": step, "shares": {"backbone.stages.2.blocks.1.mlp": [0.5, 0.25, 0.25]}})
        for step in (50, 100, 100)
    ]
    (tmp_path / "router.jsonl").write_text("\n".join(lines) + '\n{"step": 150, "sha')
    assert [line["step"] for line in read_router_health(tmp_path)] == [50, 100]
    picture = draw_router_health(tmp_path)
    assert picture is not None
    assert cv2.imread(str(picture)).std() > 10
