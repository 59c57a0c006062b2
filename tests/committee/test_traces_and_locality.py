"""Traces of what frames wanted, and what they say about locality."""

from __future__ import annotations

import contextlib
import errno
import itertools
import json
import logging
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pcmoe_det.cli.analyze import entry
from pcmoe_det.committee.locality import locality_statistics
from pcmoe_det.committee.trace import FrameTrace, TraceWriter, read_trace
from pcmoe_det.errors import DataError, OutputError
from tests.cli.commands import run_command
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


def fill_disk(monkeypatch: pytest.MonkeyPatch, *, after_bytes: int) -> None:
    """Every file is full from so many bytes on, as a disk would have it."""
    write = os.pwrite

    def full(descriptor: int, data: memoryview, offset: int) -> int:
        room = after_bytes - offset
        if room <= 0:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(descriptor, data[:room], offset)

    monkeypatch.setattr(os, "pwrite", full)


@pytest.mark.parametrize("fails", [False, True])
def test_a_trace_has_its_name_when_it_is_whole(tmp_path: Path, fails: bool) -> None:
    path, partial = tmp_path / "t.jsonl", tmp_path / "t.part.jsonl"
    path.write_text("older")
    with pytest.raises(KeyError) if fails else contextlib.nullcontext(), TraceWriter(path, []) as writer:
        writer.write(FrameTrace("a", 0))
        assert partial.read_text().endswith("}\n")  # nothing waits in a buffer to be lost
        assert path.read_text() == "older"
        if fails:
            raise KeyError
    assert partial.exists() == fails
    assert (path.read_text() == "older") == fails


def test_a_run_that_fails_before_its_first_frame_leaves_no_trace(tmp_path: Path) -> None:
    with pytest.raises(KeyError), TraceWriter(tmp_path / "t.jsonl", []):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_disk_stops_the_trace_but_not_the_frames(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    writer = TraceWriter(tmp_path / "t.jsonl", make_committee(SmallDetector()).committee.specs)
    fill_disk(monkeypatch, after_bytes=500)
    for frame in range(20):
        writer.write(FrameTrace("a", frame, [[1, 2]] * 3, [[0.5, 1.0]] * 3))
    with pytest.raises(OutputError, match=r"stops after \d frames: No space left") as caught:
        writer.close()
    assert [record.getMessage() for record in caplog.records] == [str(caught.value)]
    assert not (tmp_path / "t.jsonl").exists()
    whole = (tmp_path / "t.part.jsonl").read_bytes()
    assert whole.endswith(b"}\n")  # the line that did not fit was cut off
    assert len(whole.splitlines()) == 1 + writer.frames > 1


def test_a_full_disk_at_the_header_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fill_disk(monkeypatch, after_bytes=5)
    with pytest.raises(OutputError, match="cannot write the trace"):
        TraceWriter(tmp_path / "t.jsonl", [])
    with pytest.raises(OutputError, match="cannot write the trace"):
        TraceWriter(tmp_path / "nowhere" / "t.jsonl", [])


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


def row(**changes: object) -> str:
    """A frame's line for ``HEADER``."""
    whole = {"stream": "", "frame": 0, "tokens": [[4, 3, 2, 1]], "importance": [[0.5, 1.0, 0.0, 2.0]]}
    return json.dumps({**whole, **changes})


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


def test_streams_that_take_turns_are_followed_one_by_one() -> None:
    streams = {"a": made_up(40, slow=True), "b": made_up(60, slow=False), "c": made_up(1, slow=True)}
    alone = {
        name: locality_statistics(HEADER, lines, lags=[1, 5, 50], top=1)["layers"][0]
        for name, lines in streams.items()
        if name != "c"
    }
    for name, lines in streams.items():
        for line in lines:
            line.stream = name
    turns = [line for lines in itertools.zip_longest(*streams.values()) for line in lines if line is not None]
    statistics = locality_statistics(HEADER, turns, lags=[1, 5, 50], top=1)
    assert (statistics["frames"], statistics["streams"]) == (101, 3)
    layer = statistics["layers"][0]

    def expected(values: Sequence[float], lag: int) -> float:
        return float(np.average(values, weights=[40 - lag, 60 - lag]))

    for lag in (1, 5):
        overlaps = [alone[name]["overlap"][str(lag)] for name in "ab"]
        assert layer["overlap"][str(lag)] == pytest.approx(expected(overlaps, lag))
    assert layer["overlap"]["50"] == pytest.approx(alone["b"]["overlap"]["50"])
    before = [alone[name]["coverage"]["previous_frame"] for name in "ab"]
    assert layer["coverage"]["previous_frame"] == pytest.approx(expected(before, 1))


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
        (json.dumps({**HEADER, "trace_version": "1"}), "is no trace"),
        (json.dumps({"trace_version": 1}), "line 1: damaged"),
        (json.dumps({"trace_version": 1, "layers": []}), "line 1: damaged"),
        (json.dumps({"trace_version": 1, "layers": [{"name": "layer"}]}), "line 1: damaged"),
        (json.dumps({"trace_version": 1, "layers": {"name": 4}}), "line 1: damaged"),
        (json.dumps(HEADER) + '\n{"frame": 1', "line 2: damaged"),
        (json.dumps(HEADER) + "\n" + row() + '\n{"frame": 1\n', "line 3: damaged"),
        (json.dumps(HEADER) + '\n{"frame": 1\n' + row(), "line 2: damaged"),
        (json.dumps(HEADER) + "\n[1]\n", "line 2: damaged"),
        (json.dumps(HEADER) + "\n\n", "line 2: damaged"),
        (json.dumps(HEADER) + "\n" + row(more=1), "line 2: damaged"),
        (json.dumps(HEADER) + "\n" + row(stream=1), "line 2: damaged"),
        (json.dumps(HEADER) + "\n" + row(tokens=[]), "line 2: damaged .*tokens has no row"),
        (json.dumps(HEADER) + "\n" + row(tokens=[[1, 2, 3]]), "line 2: damaged .*those of 4 experts"),
        (json.dumps(HEADER) + "\n" + row(tokens=[[1, 2, 3, "4"]]), "line 2: damaged .*than numbers"),
        (json.dumps(HEADER) + "\n" + row(importance=[[1, 2, 3, np.nan]]), "line 2: damaged .*than numbers"),
        (json.dumps(HEADER) + "\n" + row(importance=[[10**400] * 4]), "line 2: damaged .*than numbers"),
        (json.dumps(HEADER), "0 frame"),
        ("[" * 100_000, "is no trace"),
        (json.dumps(HEADER) + "\n" + "[" * 100_000 + "\n", "line 2: damaged"),
    ],
)
def test_damaged_traces_are_refused(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "trace.jsonl"
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        header, frames = read_trace(path)
        locality_statistics(header, list(frames), lags=[1])


def test_a_trace_cut_in_its_last_line_is_read_up_to_there(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = tmp_path / "trace.jsonl"
    whole = json.dumps(HEADER) + "\n" + row(frame=0) + "\n" + row(frame=1) + "\n"
    for cut in ('{"stream": "', "{", "\0\0"):
        caplog.clear()
        path.write_text(whole + cut)
        assert [frame.frame for frame in read_trace(path)[1]] == [0, 1]
        (record,) = caplog.records
        assert record.levelno == logging.WARNING
        assert "cut short in line 4; the 2 frames before are read" in record.getMessage()
    with pytest.raises(DataError, match=r"there is an unfinished one, .*trace\.part\.jsonl"):
        path.rename(tmp_path / "trace.part.jsonl")
        read_trace(path)
    caplog.clear()
    for text in (whole, whole.rstrip("\n")):
        path.write_text(text)
        assert [frame.frame for frame in read_trace(path)[1]] == [0, 1]
    assert caplog.records == []


def test_analysing_never_replaces_the_trace(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "good.png"
    text = "\n".join([json.dumps(HEADER), row(frame=0), row(frame=1), ""])
    path.write_text(text)
    for options, reason in (
        ([], "is the input"),
        (["--output", str(path)], "is the input"),
        (["--output", str(tmp_path / "x.png"), "--json", str(path)], "is the input"),
        (["--output", str(tmp_path / "x.png"), "--json", str(tmp_path / "x.png")], "both write"),
    ):
        assert run_command("analyze", "locality", path, *options).error_line().count(reason) == 1
    assert path.read_text() == text
    outcome = run_command("analyze", "locality", path, "--output", tmp_path / "x.png")
    assert outcome.code == 0, outcome.err
    for top in ("0", "-1"):
        outcome = run_command("analyze", "locality", path, f"--top={top}")
        assert outcome.code == 2
        assert f"argument --top: '{top}' is not a whole number from 1" in outcome.err


def test_the_command_draws_several_streams(tmp_path: Path) -> None:
    path = tmp_path / "trace.jsonl"
    rows = [row(stream="ab"[frame % 2], frame=frame) for frame in range(8)]
    path.write_text("\n".join([json.dumps(HEADER), *rows]))
    outcome = run_command("analyze", "locality", path)
    assert "8 frames of 2 streams" in outcome.out
    assert (tmp_path / "trace.png").read_bytes().startswith(b"\x89PNG")


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
