"""Expert budgets on the command line: evaluation, streams, analysis of their traces."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, get_args

import pytest

from pcmoe_det.cli import analyze, stream
from pcmoe_det.cli import test as test_command
from pcmoe_det.cli.committee_options import (
    DEFAULT_STAND_IN_WEIGHT,
    MISS_HANDLINGS,
    POLICY_NAMES,
    STAND_IN_WEIGHTS,
)
from pcmoe_det.committee.miss_handling import MissHandling
from pcmoe_det.committee.policies import POLICIES
from pcmoe_det.datasets.street_video import StreetVideo
from pcmoe_det.datasets.street_writer import write_clip, write_shift_split
from pcmoe_det.models import stand_ins
from pcmoe_det.models.stand_ins import StandInWeight
from pcmoe_det.models.weights_file import WeightsInfo, save_weights
from tests.committee.packed_samples import CLASSES, random_detector, tiny_config

CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=["pcmoe_det.models.registry"], allow_failed_imports=False)
model = {model!r}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny described weights, their config, two short videos with labels, and a clip."""
    folder = tmp_path_factory.mktemp("committee")
    config = tiny_config(num_experts=4)
    info = WeightsInfo(model=config, class_names=CLASSES, long_side=96)
    save_weights(folder / "tiny.safetensors", random_detector(info).state_dict(), info)
    base = str(Path(__file__).resolve().parents[2] / "configs" / "_base_" / "street_data.py")
    (folder / "config.py").write_text(CONFIG.format(base=base, model=config))
    videos = [StreetVideo(seed, width=96, height=64, num_frames=5) for seed in (1, 2)]
    write_shift_split(folder / "data", subset="discrete/videos", split="val", videos=videos)
    write_clip(folder / "clip.mp4", StreetVideo(3, width=96, height=64, num_frames=6))
    return folder


def evaluate(
    made: Path, monkeypatch: pytest.MonkeyPatch, name: str, *options: str, config: str = "config.py"
) -> dict[str, object]:
    result = made / f"{name}.json"
    command = ["pcmoe-test", str(made / config), str(made / "tiny.safetensors")]
    command += ["--data-root", str(made / "data"), "--subset", "discrete/videos", "--workers", "0"]
    monkeypatch.setattr("sys.argv", [*command, "--json", str(result), *options])
    assert test_command.entry() == 0
    report: dict[str, object] = json.loads(result.read_text())
    return report


def test_the_names_of_the_command_line_are_those_of_the_package() -> None:
    assert set(POLICY_NAMES) == set(POLICIES)
    assert set(MISS_HANDLINGS) == set(get_args(MissHandling))
    assert set(STAND_IN_WEIGHTS) == set(get_args(StandInWeight))
    assert stand_ins.DEFAULT_STAND_IN_WEIGHT == DEFAULT_STAND_IN_WEIGHT


def test_evaluation_under_a_budget(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = evaluate(made, monkeypatch, "plain")
    exact = evaluate(made, monkeypatch, "exact", "--policy", "on_demand", "--expert-budget", "0.4")
    first = evaluate(made, monkeypatch, "first", "--policy", "pcmoe", "--expert-budget", "0.5")
    second = evaluate(made, monkeypatch, "second", "--policy", "pcmoe", "--expert-budget", "0.5")
    assert plain["accounting"] == {}
    assert exact["per_class"] == plain["per_class"]
    for name in ("mAP50", "per_class", "per_video"):
        assert first[name] == second[name]
    counts, again = first["accounting"], second["accounting"]
    assert isinstance(counts, dict)
    assert isinstance(again, dict)
    assert counts["frames"] == 10
    assert 0 < counts["resident_expert_bytes"] <= 0.5 * counts["expert_bytes"]
    for name in ("hit_tokens", "miss_tokens", "swaps", "fills", "bytes_read"):
        assert counts[name] == again[name]


def test_the_hook_of_a_config_is_heeded_and_the_command_line_wins(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hook = dict(type="CommitteeHook", policy="random_keep", expert_budget=0.5, policy_options=dict(seed=3))
    text = (made / "config.py").read_text() + f"custom_hooks = [{hook!r}]\n"
    (made / "hooked.py").write_text(text)
    hooked = evaluate(made, monkeypatch, "hooked", config="hooked.py")
    options = ("--policy", "random_keep", "--expert-budget", "0.5", "--policy-seed", "3")
    spelled = evaluate(made, monkeypatch, "spelled", *options)
    assert hooked["per_class"] == spelled["per_class"]
    assert isinstance(hooked["accounting"], dict)
    assert isinstance(spelled["accounting"], dict)
    assert hooked["accounting"]["miss_tokens"] == spelled["accounting"]["miss_tokens"] > 0
    exact = evaluate(made, monkeypatch, "wins", "--policy", "on_demand", config="hooked.py")
    assert exact["per_class"] == evaluate(made, monkeypatch, "plain")["per_class"]


def test_each_layer_can_have_its_own_miss_handling(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    exact = evaluate(made, monkeypatch, "plain")
    random = ("--policy", "random_keep", "--expert-budget", "0.5", "--on-miss")
    layers = len(exchanged["layers"]) if (exchanged := _accounting(made, monkeypatch, *random, "skip")) else 0
    loaded = evaluate(made, monkeypatch, "loads", *random, ",".join(["load"] * layers))
    assert loaded["per_class"] == exact["per_class"]
    mixed = _accounting(made, monkeypatch, *random, ",".join(["load", *["skip"] * (layers - 1)]))
    assert mixed["on_miss"] == "load,skip"


def _accounting(made: Path, monkeypatch: pytest.MonkeyPatch, *options: str) -> dict[str, Any]:
    counts = evaluate(made, monkeypatch, "counts", *options)["accounting"]
    assert isinstance(counts, dict)
    return counts


def test_a_stream_reports_its_committee(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    lines, trace, totals = made / "found.jsonl", made / "trace.jsonl", made / "summary.json"
    command = ["pcmoe-stream", "--source", str(made / "clip.mp4"), "--model", str(made / "tiny.safetensors")]
    command += ["--jsonl", str(lines), "--overwrite", "--policy", "pcmoe", "--expert-budget", "50%"]
    monkeypatch.setattr(
        "sys.argv", [*command, "--trace", str(trace), "--summary", str(made / "summary.json")]
    )
    assert stream.entry() == 0
    records = [json.loads(line) for line in lines.read_text().splitlines()]
    summary = json.loads(totals.read_text())["accounting"]
    assert len(records) == 6
    for name in ("hit_tokens", "miss_tokens"):
        assert sum(record["accounting"][name] for record in records) == summary[name]
    assert "committee: pcmoe" in capsys.readouterr().out
    monkeypatch.setattr("sys.argv", ["pcmoe-analyze", "locality", str(trace), "--lags", "1"])
    assert analyze.entry() == 0
    assert trace.with_suffix(".png").is_file()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--expert-budget", "0.5"], "--expert-budget needs --policy"),
        (["--policy", "pcmoe", "--expert-budget", "2"], "must be above 0 and at most 1"),
        (["--policy", "pcmoe", "--expert-budget", "1B"], "smallest possible"),
        (["--policy", "on_demand", "--margin", "0.1"], "--margin is an option of --policy pcmoe"),
        (["--policy", "pcmoe", "--store-bandwidth", "fast"], "'fast' is not understood"),
    ],
)
def test_wrong_options_are_one_sentence(
    made: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    message: str,
) -> None:
    command = ["pcmoe-stream", "--source", str(made / "clip.mp4"), "--model", str(made / "tiny.safetensors")]
    monkeypatch.setattr("sys.argv", [*command, *options])
    assert stream.entry() == 2
    error = capsys.readouterr().err.strip()
    assert message in error
    assert len(error.splitlines()) == 1
