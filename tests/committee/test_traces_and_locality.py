"""Traces of what frames wanted, and what they say about locality."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcmoe_det.cli.analyze import entry
from pcmoe_det.committee.locality import locality_statistics
from pcmoe_det.committee.trace import FrameTrace, TraceWriter, read_trace
from pcmoe_det.errors import DataError
from tests.committee.small_model import SmallDetector, make_committee, run, video


def test_a_trace_holds_what_the_gates_chose(tmp_path: Path) -> None:
    model, frames = SmallDetector(), video(5)
    chosen: list[list[int]] = []
    gate = next(iter(model.backbone.moe_layers()))[1].gate
    gate.register_forward_hook(
        lambda module, inputs, routing: chosen.append(
            np.bincount(routing.experts.flatten(), minlength=6).tolist()
        )
    )
    path = tmp_path / "trace.jsonl"
    made = make_committee(model)
    with TraceWriter(path, made.committee.specs) as writer:
        traced = make_committee(model, trace=writer)
        with traced.committee.patched(model):
            traced.committee.select_stream("left")
            run(model, frames)
    header, recorded = read_trace(path)
    lines = list(recorded)
    assert [layer["num_experts"] for layer in header["layers"]] == [6, 6, 6]
    assert [line.frame for line in lines] == [0, 1, 2, 3, 4]
    assert {line.stream for line in lines} == {"left"}
    assert [line.tokens[0] for line in lines] == chosen
    assert all(sum(layer) > 0 for line in lines for layer in line.importance)


def made_up(frames: int, *, slow: bool) -> list[FrameTrace]:
    generator = np.random.default_rng(0)
    lines = []
    for frame in range(frames):
        hot = (frame // 20) % 4 if slow else int(generator.integers(4))
        lines.append(
            FrameTrace(
                "", frame, tokens=[[100 if expert == hot else 1 for expert in range(4)]], importance=[]
            )
        )
    return lines


HEADER = {"trace_version": 1, "layers": [{"name": "layer", "num_experts": 4}]}


def test_locality_is_found_where_it_is_and_only_there() -> None:
    slow = locality_statistics(HEADER, made_up(400, slow=True), lags=[1, 20], top=1)["layers"][0]
    fast = locality_statistics(HEADER, made_up(400, slow=False), lags=[1, 20], top=1)["layers"][0]
    assert slow["overlap"]["1"] == pytest.approx(1 - 19 / 399)
    assert slow["overlap"]["20"] == 0.0
    assert slow["shuffled_overlap"] == pytest.approx(0.25, abs=0.08)
    assert fast["overlap"]["1"] == pytest.approx(0.25, abs=0.08)
    assert slow["chance_overlap"] == 0.25


def test_frames_of_two_streams_are_not_compared() -> None:
    lines = made_up(40, slow=True)
    for line in lines[20:]:
        line.stream = "other"
    layer = locality_statistics(HEADER, lines, lags=[20], top=1)["layers"][0]
    assert layer["overlap"]["20"] is None
    # Only the change of the hot expert falls between two streams, so the frame before is as good.
    assert layer["coverage"]["previous_frame"] == pytest.approx(100 / 103)


def test_coverage_by_how_the_experts_are_chosen() -> None:
    # The hot expert changes every 20 frames; each is hot in a quarter of the 400.
    coverage = locality_statistics(HEADER, made_up(400, slow=True), lags=[1], top=1)["layers"][0]["coverage"]
    hot, cold = 100 / 103, 1 / 103
    assert coverage["same_frame"] == pytest.approx(hot)
    assert coverage["previous_frame"] == pytest.approx((380 * hot + 19 * cold) / 399)
    assert coverage["best_fixed"] == pytest.approx(0.25)
    assert coverage["any"] == 0.25


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no trace"),
        ("hello", "is no trace"),
        (json.dumps({**HEADER, "trace_version": 9}), "version 9"),
        (json.dumps(HEADER) + '\n{"frame": 1', "line 2: damaged"),
        (json.dumps(HEADER), "0 frame"),
    ],
)
def test_damaged_traces_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        header, frames = read_trace(path)
        locality_statistics(header, list(frames), lags=[1])


def test_the_command_draws_and_prints(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "trace.jsonl"
    lines = [json.dumps(HEADER)]
    for line in made_up(60, slow=True):
        lines.append(json.dumps({**vars(line), "importance": [[1.0] * 4]}))
    path.write_text("\n".join(lines))
    monkeypatch.setattr(
        "sys.argv", ["pcmoe-analyze", "locality", str(path), "--json", str(tmp_path / "s.json")]
    )
    assert entry() == 0
    printed = capsys.readouterr().out
    assert "60 frames" in printed
    assert "frame before" in printed
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")
    assert json.loads((tmp_path / "s.json").read_text())["frames"] == 60
    monkeypatch.setattr("sys.argv", ["pcmoe-analyze", "locality", str(path), "--lags", "a"])
    assert entry() == 2
    assert "--lags 'a'" in capsys.readouterr().err
