"""``tools/stream.py`` with several sources, and with outputs of every kind."""

from __future__ import annotations

import json
import signal
import socket
import urllib.request
from pathlib import Path

import pytest

from pcmoe_det.errors import OutputError, PcmoeError
from tests.cli.test_stream import _process, _refused, _run
from tests.streaming.stand_ins import StandInDetector, make_clip, read_clip

pytestmark = pytest.mark.timeout(60)


@pytest.fixture
def clips(tmp_path: Path) -> list[Path]:
    folder = tmp_path / "in"
    folder.mkdir()
    return [make_clip(folder / f"{name}.mp4", ticks=range(count)) for name, count in (("a", 9), ("b", 14))]


def _sources(clips: list[Path]) -> list[object]:
    return [word for clip in clips for word in ("--source", clip)]


def _lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_source_has_its_own_outputs_and_summary(
    clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = tmp_path / "s.json"
    options = ["--output", tmp_path, "--jsonl", tmp_path / "{n}-{source}.jsonl", "--summary", summary]
    assert _run(*_sources(clips), *options) == 0
    for name, clip, count in (("1-a", clips[0], 9), ("2-b", clips[1], 14)):
        lines = _lines(tmp_path / f"{name}.jsonl")
        assert [line["frame_index"] for line in lines] == list(range(count))
        assert {line["source"] for line in lines} == {str(clip)}
        assert len(read_clip(tmp_path / clip.name)[0]) == count
    record = json.loads(summary.read_text())
    assert [(one["source"], one["frames_written"]) for one in record["sources"]] == [
        (str(clips[0]), 9),
        (str(clips[1]), 14),
    ]
    printed = capsys.readouterr().out
    assert f"{clips[0]}: complete\nframes: 9 read" in printed
    assert f"{clips[1]}: complete\nframes: 14 read" in printed


def test_what_the_detector_counted_is_told_once(
    clips: list[Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Counting(StandInDetector):
        def accounting(self):
            return {"frames": len(self.seen), "summary": f"counted {len(self.seen)} frames"}

    path = tmp_path / "s.json"
    assert _run(*_sources(clips), "--summary", path, detector=Counting()) == 0
    assert capsys.readouterr().out.count("counted 23 frames") == 1
    record = json.loads(path.read_text())
    assert record["accounting"]["frames"] == 23
    assert [one["accounting"] for one in record["sources"]] == [{}, {}]


def test_one_broken_output_fails_the_command_and_leaves_the_other_source_whole(
    clips: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from pcmoe_det.streaming.jsonl_sink import JsonLinesSink

    write = JsonLinesSink.write

    def write_until_full(self, result, picture) -> None:
        if result.frame.source_id == str(clips[1]) and result.frame.frame_index == 5:
            raise OutputError("the disk of b is full")
        write(self, result, picture)

    monkeypatch.setattr(JsonLinesSink, "write", write_until_full)
    with pytest.raises(OutputError, match="disk of b is full") as caught:
        _run(*_sources(clips), "--jsonl", tmp_path / "{source}.jsonl", "--summary", tmp_path / "s.json")
    assert caught.value.exit_code == 1
    assert len(_lines(tmp_path / "a.jsonl")) == 9
    assert len(_lines(tmp_path / "b.part.jsonl")) == 5
    assert not (tmp_path / "b.jsonl").exists()
    record = json.loads((tmp_path / "s.json").read_text())
    assert [one["outcome"] for one in record["sources"]] == ["complete", "failed"]
    assert record["sources"][1]["error"] == "the disk of b is full"
    assert "error: the disk of b is full" in capsys.readouterr().out


def test_every_kind_of_output_at_once(clips: list[Path], tmp_path: Path) -> None:
    options = [
        "--coco",
        tmp_path,
        "--mot",
        tmp_path,
        "--crops",
        tmp_path / "crops",
        "--frames",
        tmp_path / "f",
    ]
    assert _run(*_sources(clips), *options) == 0
    for clip, count in zip(clips, (9, 14), strict=True):
        assert len(json.loads((tmp_path / f"{clip.stem}.json").read_text())) == count
        assert len((tmp_path / f"{clip.stem}.txt").read_text().splitlines()) == count
        assert len(list((tmp_path / "crops" / clip.stem).glob("*.jpg"))) == count
        assert len(list((tmp_path / "f" / clip.stem).glob("*.jpg"))) == count
    assert not list(tmp_path.rglob("*.part*"))


def test_outputs_of_several_sources_are_refused_before_the_model_loads(
    clips: list[Path], tmp_path: Path
) -> None:
    assert "2: --jsonl" in _refused(*_sources(clips), "--jsonl", tmp_path / "o.jsonl")
    (tmp_path / "b.jsonl").write_text("old")
    assert "b.jsonl already exists" in _refused(*_sources(clips), "--jsonl", tmp_path)
    missing = tmp_path / "in" / "c.mp4"
    assert "1: " in _refused(*_sources([*clips, missing]), "--jsonl", tmp_path / "{n}.jsonl")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["b.jsonl", "in"]


def test_freshest_drops_and_says_so(clips: list[Path], tmp_path: Path) -> None:
    class Slow(StandInDetector):
        def detect(self, images):
            reader_has_ended.wait(20)
            return super().detect(images)

    import threading

    reader_has_ended = threading.Event()
    from pcmoe_det.streaming.file_source import FileSource

    close = FileSource.close

    def note_close(self) -> None:
        close(self)
        reader_has_ended.set()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(FileSource, "close", note_close)
        path = tmp_path / "s.json"
        assert _run("--source", clips[0], "--mode", "freshest", "--summary", path, "--max-latency", "1min",
                    detector=Slow()) == 0  # fmt: skip
    record = json.loads(path.read_text())
    assert record["frames_detected"] + record["frames_dropped"]["replaced_by_newer"] == 9
    assert record["frames_detected"] <= 2


def test_a_tracker_gives_numbers(clips: list[Path], tmp_path: Path) -> None:
    pytest.importorskip("trackers")
    assert _run("--source", clips[0], "--jsonl", tmp_path / "o.jsonl", "--track") == 0
    lines = _lines(tmp_path / "o.jsonl")
    assert {detection.get("track_id") for detection in lines[-1]["detections"]} == {1}
    assert "track" in lines[0]["latency_ms"]


def test_the_preview_answers_while_the_stream_runs_and_not_after(clips: list[Path], tmp_path: Path) -> None:
    answers = []

    class Asking(StandInDetector):
        def detect(self, images):
            if len(self.seen) == 3:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20) as answer:
                    answers.append(answer.read().decode())
            return super().detect(images)

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
        assert "1: " in _refused("--source", clips[0], "--preview", port)  # in use
    assert _run("--source", clips[0], "--preview", port, detector=Asking()) == 0
    assert len(answers) == 1
    assert str(clips[0]) in answers[0]
    with pytest.raises(OSError, match="refused"):
        urllib.request.urlopen(f"http://127.0.0.1:{port}/metrics", timeout=20)


def test_one_signal_ends_all_streams_with_playable_files(tmp_path: Path) -> None:
    clips = [make_clip(tmp_path / f"{name}.mp4", ticks=range(1000)) for name in ("x", "y")]
    out = tmp_path / "out"
    out.mkdir()
    process = _process(*_sources(clips), "--output", out, "--jsonl", out, seconds=0.02)
    assert process.stderr is not None
    while "detected 10" not in process.stderr.readline():
        assert process.poll() is None
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=50)
    assert process.returncode == 130
    assert printed.count(": interrupted\n") == 2
    counts = [len(_lines(out / f"{name}.jsonl")) for name in ("x", "y")]
    assert [len(read_clip(out / f"{name}.mp4")[0]) for name in ("x", "y")] == counts
    assert abs(counts[0] - counts[1]) <= 1  # they took turns
    assert sorted(path.name for path in out.iterdir()) == ["x.jsonl", "x.mp4", "y.jsonl", "y.mp4"]


def test_a_detector_error_of_one_source_names_it(clips: list[Path], tmp_path: Path) -> None:
    class Failing(StandInDetector):
        def detect(self, images):
            if len(self.seen) == 20:  # the shorter clip has ended by then
                raise RuntimeError("no memory")
            return super().detect(images)

    with pytest.raises(PcmoeError, match=r"failed on frame 11 of .*b\.mp4: RuntimeError: no memory"):
        _run(*_sources(clips), "--jsonl", tmp_path / "{source}.jsonl", detector=Failing())
    assert len(_lines(tmp_path / "a.jsonl")) == 9
