"""Expert budgets on the command line: evaluation, streams, analysis of their traces."""

from __future__ import annotations

import errno
import itertools
import json
import os
from pathlib import Path
from typing import Any, get_args

import pytest
import torch

from pcmoe_det.cli import analyze, stream
from pcmoe_det.cli import test as test_command
from pcmoe_det.cli.committee_choice import (
    DEFAULT_STAND_IN_WEIGHT,
    LARGEST_SEED,
    MISS_HANDLINGS,
    POLICY_NAMES,
    STAND_IN_WEIGHTS,
    parse_bandwidth,
)
from pcmoe_det.committee.layers import ExpertKey
from pcmoe_det.committee.miss_handling import MissHandling
from pcmoe_det.committee.packing import pack, pack_random
from pcmoe_det.committee.policies import POLICIES
from pcmoe_det.committee.policies import base as policy_base
from pcmoe_det.committee.policies.base import heaviest
from pcmoe_det.committee.trace import TraceWriter, read_trace
from pcmoe_det.datasets.street_video import StreetVideo
from pcmoe_det.datasets.street_writer import write_clip, write_shift_split
from pcmoe_det.models import stand_ins
from pcmoe_det.models.stand_ins import StandInWeight
from pcmoe_det.models.weights_file import WeightsInfo, save_weights
from tests.cli.commands import run_command
from tests.committee.packed_samples import CLASSES, flip_bit, random_detector, tiny_config

CONFIG = """
_base_ = [{base!r}]
custom_imports = dict(imports=["pcmoe_det.models.registry"], allow_failed_imports=False)
model = {model!r}
class_names = {classes!r}
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiny described weights, their config, two short videos with labels, and a clip."""
    folder = tmp_path_factory.mktemp("committee")
    config = tiny_config(num_experts=4)
    info = WeightsInfo(model=config, class_names=CLASSES, long_side=96)
    save_weights(folder / "tiny.safetensors", random_detector(info).state_dict(), info)
    base = str(Path(__file__).resolve().parents[2] / "configs" / "_base_" / "street_data.py")
    (folder / "config.py").write_text(CONFIG.format(base=base, model=config, classes=CLASSES))
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
    assert LARGEST_SEED == policy_base.LARGEST_SEED
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


def test_an_evaluation_whose_policy_did_not_get_its_experts_is_no_success(
    made: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    packed = pack(None, made / "tiny.safetensors", made / "damaged", dtype=torch.float32)
    for spec in packed.layers:
        for expert in set(range(spec.num_experts)) - set(heaviest(spec, 2)):  # those are read at the start
            position = packed.record_offset_bytes(ExpertKey(spec.index, expert))
            flip_bit(packed.experts_path, position)
    command = ["pcmoe-test", str(made / "config.py"), str(packed.path), "--workers", "0"]
    command += ["--data-root", str(made / "data"), "--subset", "discrete/videos", "--policy", "pcmoe"]
    monkeypatch.setattr("sys.argv", [*command, "--importance", "random", "--margin", "0"])
    assert test_command.entry() == 1
    printed = capsys.readouterr()
    assert "mAP" in printed.out
    assert "could not be read, so this is not its result" in printed.err


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
        (["--update-period", "1"], "--update-period needs --policy"),
        (["--max-swaps-per-frame", "2"], "--max-swaps-per-frame needs --policy"),
        (["--cold-reads"], "--cold-reads needs --policy"),
        (["--stand-in-weight", "own"], "--stand-in-weight needs --policy"),
        (["--loading", "background"], "--loading needs --policy"),
        (["--policy-seed", "0"], "--policy-seed needs --policy"),
        (["--margin", "0"], "--margin needs --policy"),
        (["--trace", "t.jsonl"], "--trace needs --policy"),
        (["--policy", "pcmoe", "--expert-budget", ""], "expert budget '' is not understood"),
        (["--policy", "on_demand", "--on-miss", "skip"], "--on-miss has no effect with --policy on_demand"),
        (["--policy", "on_demand", "--on-miss", "load,skip"], "--on-miss has no effect"),
        (["--policy", "on_demand", "--stand-in-weight", "own"], "--stand-in-weight has no effect"),
        (["--policy", "pcmoe", "--store-bandwidth", "0.5"], "--store-bandwidth '0.5' is not understood"),
        (["--policy", "pcmoe", "--store-bandwidth", "0MiB"], "--store-bandwidth '0MiB' is not understood"),
        (["--policy", "pcmoe", "--store-bandwidth", f"{'9' * 400}MiB"], "is not understood"),
        (["--policy", "pcmoe", "--expert-budget", "2"], "must be above 0 and at most 1"),
        (["--policy", "pcmoe", "--expert-budget", "1B"], "smallest possible"),
        (["--policy", "on_demand", "--margin", "0.1"], "--margin is an option of --policy pcmoe"),
        (["--policy", "pcmoe", "--store-bandwidth", "fast"], "--store-bandwidth 'fast' is not understood"),
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
    assert ("expert budget" in error) <= ("--expert-budget" in options)
    assert len(error.splitlines()) == 1


@pytest.mark.parametrize(
    "options",
    [
        ["--margin", "nan"],
        ["--margin", "-0.1"],
        ["--margin", "inf"],
        ["--margin", "much"],
        ["--update-period", "0"],
        ["--max-swaps-per-frame", "0"],
        ["--policy-seed", "-1"],
        ["--policy-seed", "99999999999999999999999"],
    ],
)
def test_values_out_of_range_name_their_option(options: list[str]) -> None:
    outcome = run_command("stream", "--source", "x", "--policy", "pcmoe", *options)
    assert outcome.code == 2
    assert f"argument {options[0]}: '{options[1]}' is not a" in outcome.err


def test_a_bandwidth_is_a_size_a_second() -> None:
    assert parse_bandwidth("300MiB") == parse_bandwidth(" 300 MiB/s") == 300 * 2**20


def test_a_packed_model_has_its_own_dtype_and_configuration(made: Path) -> None:
    packed = made / "packed"
    pack(None, made / "tiny.safetensors", packed, dtype=torch.float32)
    stream_it = ("stream", "--source", made / "clip.mp4", "--model", packed)
    outcome = run_command(*stream_it, "--dtype", "bfloat16")
    assert outcome.code == 2
    assert f"--dtype bfloat16: {packed} was packed in float32" in outcome.error_line()
    outcome = run_command(*stream_it, "--config", made / "config.py")
    assert outcome.code == 2
    assert f"--config: the packed model {packed} has its own" in outcome.error_line()
    test_it = ("test", made / "config.py", packed, "--data-root", made / "data", "--workers", 0)
    outcome = run_command(*test_it, "--subset", "discrete/videos", "--max-frames", 1, "--dtype", "float32")
    assert outcome.code == 0, outcome.err


def test_the_settings_of_a_hook_are_not_changed_one_by_one(made: Path) -> None:
    for hooks, options, reason in (
        ("[dict(type='CommitteeHook')]", ["--expert-budget", "0.5"], "--expert-budget has no effect beside"),
        ("[dict(type='CommitteeHook')]", ["--on-miss", "skip"], "--on-miss has no effect beside"),
        ("[dict(type='CommitteeHook')]", ["--update-period", "1"], "--update-period has no effect beside"),
        ("['CommitteeHook']", [], "custom_hooks holds 'CommitteeHook'; write it as dict(type=...)"),
        ("'CommitteeHook'", [], "custom_hooks is 'CommitteeHook'; it must be a list"),
        ("[dict(type='CommitteeHook', policy_options=dict(seed='x'))]", [], "seed is 'x'"),
        ("[dict(type='CommitteeHook', plicy='all')]", [], "the config's CommitteeHook does not build"),
    ):
        config = made / "wrong_hook.py"
        config.write_text((made / "config.py").read_text() + f"custom_hooks = {hooks}\n")
        outcome = run_command("test", config, made / "tiny.safetensors", *options)
        assert outcome.code == 2
        assert reason in outcome.error_line()


def test_a_model_of_other_classes_is_not_scored(made: Path) -> None:
    info = WeightsInfo(model=tiny_config(num_experts=4), class_names=("car", "pedestrian"), long_side=96)
    pack_random(info, made / "other", dtype=torch.float32)
    outcome = run_command(
        *("test", made / "config.py", made / "other", "--data-root", made / "data"),
        *("--subset", "discrete/videos", "--workers", 0, "--policy", "pcmoe", "--json", made / "no.json"),
    )
    assert outcome.code == 2
    assert "the model finds car, pedestrian and the data set labels pedestrian, car" in outcome.error_line()
    assert not (made / "no.json").exists()


def test_the_trace_of_an_evaluation_names_its_videos(made: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    options = ("--policy", "pcmoe", "--expert-budget", "0.5", "--trace", str(made / "videos.jsonl"))
    accounting: list[object] = []
    for more in ((), ("--keep-committee",)):
        accounting.append(evaluate(made, monkeypatch, "traced", *options, *more)["accounting"])
        _, frames = read_trace(made / "videos.jsonl")
        names = [frame.stream for frame in frames]
        assert [len(list(group)) for _, group in itertools.groupby(names)] == [5, 5]
        assert "" not in names
    anew, kept = accounting
    assert isinstance(anew, dict)
    assert isinstance(kept, dict)
    assert anew["fills"] > kept["fills"] > 0  # the start of the second video filled the memory again


def test_a_trace_that_stops_costs_the_exit_code_but_not_the_result(
    made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    append = TraceWriter._append

    def full(writer: TraceWriter, content: Any) -> None:
        if "stream" in content:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        append(writer, content)

    monkeypatch.setattr(TraceWriter, "_append", full)
    result, lines = made / "stopped.json", made / "stopped.jsonl"
    options = ("--policy", "pcmoe", "--trace", made / "stopped_trace.jsonl")
    data = ("--data-root", made / "data", "--subset", "discrete/videos", "--workers", 0)
    weights = made / "tiny.safetensors"
    for command in (
        ("test", made / "config.py", weights, *data, "--max-frames", 2, "--json", result),
        ("stream", "--source", made / "clip.mp4", "--model", weights, "--jsonl", lines),
    ):
        outcome = run_command(*command, *options, "--expert-budget", "0.5")  # type: ignore[arg-type]
        assert outcome.code == 1
        assert "stops after 0 frames: No space left on device" in outcome.error_line()
        assert not (made / "stopped_trace.jsonl").exists()
        (made / "stopped_trace.part.jsonl").unlink()
    assert json.loads(result.read_text())["frames"] == 2
    assert len(lines.read_text().splitlines()) == 6


def test_outputs_of_an_evaluation_replace_nothing(made: Path, tmp_path: Path) -> None:
    config, weights = made / "config.py", made / "tiny.safetensors"
    labels = made / "data" / "discrete" / "videos" / "val" / "front" / "det_2d.json"
    before = [path.read_bytes() for path in (config, weights, labels)]
    same = tmp_path / "same.npz"
    data = ("--data-root", made / "data", "--subset", "discrete/videos", "--workers", 0)
    for options, reason in (
        (["--trace", config], "is the input"),
        (["--trace", weights], "is the input"),
        (["--json", weights], "is the input"),
        (["--json", labels], "lies in the input"),
        (["--trace", labels], "lies in the input"),
        (["--trace", same, "--json", same], "--json and --trace both write"),
        (["--detections", same, "--json", same], "--json and --detections both write"),
        (["--trace", "/dev/full"], "it is no regular file"),
        (["--trace", same, "--launcher", "pytorch"], "--trace records one process"),
    ):
        outcome = run_command("test", config, weights, *data, "--policy", "pcmoe", *options)
        assert reason in outcome.error_line()
    assert [path.read_bytes() for path in (config, weights, labels)] == before
    assert list(tmp_path.iterdir()) == []
