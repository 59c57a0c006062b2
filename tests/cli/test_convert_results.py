"""``tools/convert_results.py``: the same files as the stream writes, from its JSON Lines."""

from __future__ import annotations

import contextlib
import io
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO

from pcmoe_det.streaming import JsonLinesSink, OutputFile
from pcmoe_det.streaming.coco_sink import CocoSink
from pcmoe_det.streaming.mot_sink import MotSink
from pcmoe_det.structures import Detections, FrameResult
from tests.cli.commands import PROJECT, run_command
from tests.streaming.stand_ins import CLASS_NAMES, frame


def _results(count: int = 30) -> list[FrameResult]:
    """Frames with 0 to 4 detections at odd places, some of them tracked."""
    random = np.random.default_rng(1)
    results = []
    for index in range(count):
        number = index % 5
        corners = random.uniform(0, 30, (number, 2))
        found = Detections(
            boxes_xyxy=np.hstack([corners, corners + random.uniform(0, 30, (number, 2))]).astype(np.float32),
            scores=np.sort(random.uniform(0, 1, number))[::-1].astype(np.float32),
            class_ids=random.integers(0, 6, number),
            track_ids=random.integers(-1, 9, number) if index % 2 else None,
        )
        results.append(FrameResult(frame=frame(3 * index), detections=found, latency_ms={"detect": 1.0}))
    return results


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    """``in.jsonl``, and beside it what the stream's own sinks write of the same results."""
    sinks = [
        JsonLinesSink(OutputFile(tmp_path / "in.jsonl", overwrite=False), class_names=CLASS_NAMES),
        CocoSink(OutputFile(tmp_path / "stream.json", overwrite=False), class_names=CLASS_NAMES),
        MotSink(OutputFile(tmp_path / "stream.txt", overwrite=False), class_names=CLASS_NAMES),
    ]
    for sink in sinks:
        for result in _results():
            sink.write(result, None)
        sink.close("complete")
    return tmp_path / "in.jsonl"


def _left(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if not entry.name.startswith(("in.", "stream.")))


def test_conversions_are_what_the_stream_writes(tmp_path: Path, lines: Path) -> None:
    coco, mot = tmp_path / "out.json", tmp_path / "out.txt"
    outcome = run_command("convert_results", lines, "--coco", coco, "--mot", mot)
    assert outcome.code == 0, outcome.err
    assert outcome.out == (
        f"60 detections in 30 frames\nwrote {coco}\nwrote {tmp_path / 'out.categories.json'}\nwrote {mot}\n"
    )
    for name in ("json", "txt", "categories.json"):
        assert (tmp_path / f"out.{name}").read_bytes() == (tmp_path / f"stream.{name}").read_bytes()
    assert len(mot.read_text().splitlines()) == 60
    assert _left(tmp_path) == ["out.categories.json", "out.json", "out.txt"]


def test_pycocotools_loads_it_and_finds_the_numbers(tmp_path: Path, lines: Path) -> None:
    coco = tmp_path / "out.json"
    assert run_command("convert_results", lines, "--coco", coco).code == 0
    truth = {
        "images": [{"id": 3 * index} for index in range(30)],
        "annotations": [],
        **json.loads((tmp_path / "out.categories.json").read_text()),
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        loaded = COCO(str(tmp_path / "truth.json")).loadRes(str(coco))
    for result in _results():
        rows = loaded.loadAnns(loaded.getAnnIds(imgIds=[result.frame.frame_index]))
        found = result.detections
        assert [row["category_id"] - 1 for row in rows] == found.class_ids.tolist()
        if len(found):
            boxes = np.array([row["bbox"] for row in rows])
            boxes[:, 2:] += boxes[:, :2]
            np.testing.assert_allclose(boxes, found.boxes_xyxy, atol=0.011)
            np.testing.assert_allclose([row["score"] for row in rows], found.scores, atol=5.1e-5)


def test_ids_of_a_ground_truth_are_taken(tmp_path: Path, lines: Path) -> None:
    truth = tmp_path / "in.truth.json"
    ids = {name: 10 * place + 7 for place, name in enumerate(CLASS_NAMES)}
    content = {"images": [], "categories": [{"id": id_, "name": name} for name, id_ in ids.items()]}
    truth.write_text(json.dumps(content))
    coco = tmp_path / "out.json"
    assert run_command("convert_results", lines, "--coco", coco, "--categories", truth).code == 0
    ours = [row["category_id"] for row in json.loads(coco.read_text())]
    plain = [row["category_id"] for row in json.loads((tmp_path / "stream.json").read_text())]
    assert ours == [10 * (id_ - 1) + 7 for id_ in plain]


def test_only_some_classes(tmp_path: Path, lines: Path) -> None:
    mot = tmp_path / "out.txt"
    outcome = run_command("convert_results", lines, "--mot", mot, "--category", "car", "--category", "bus")
    expected = sum(int(np.isin(result.detections.class_ids, (1, 3)).sum()) for result in _results())
    assert 0 < expected < 60
    assert len(mot.read_text().splitlines()) == expected
    assert outcome.out.startswith(f"{expected} detections in 30 frames\n")


def test_a_class_that_does_not_occur_is_told(tmp_path: Path, lines: Path) -> None:
    outcome = run_command("convert_results", lines, "--mot", tmp_path / "out.txt", "--category", "cars")
    assert outcome.code == 0
    assert "0 detections in 30 frames\nno detection is of the class 'cars'\n" in outcome.out


def test_the_part_of_a_killed_run_is_converted(tmp_path: Path, lines: Path) -> None:
    part = tmp_path / "in.part.jsonl"
    part.write_bytes(lines.read_bytes()[:-40])
    outcome = run_command("convert_results", part, "--mot", tmp_path / "out.txt")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("56 detections in 29 frames, 1 unfinished last line left out\n")


def test_damage_is_one_line_and_leaves_no_output(tmp_path: Path, lines: Path) -> None:
    content = lines.read_bytes().splitlines(keepends=True)
    content[6] = content[6][:50] + b"\n"
    lines.write_bytes(b"".join(content))
    outcome = run_command(
        "convert_results", lines, "--coco", tmp_path / "out.json", "--mot", tmp_path / "out.txt"
    )
    assert outcome.code == 1
    assert f"{lines}, line 7 is damaged" in outcome.error_line()
    assert _left(tmp_path) == []


def test_a_failed_conversion_keeps_the_older_result(tmp_path: Path, lines: Path) -> None:
    old = tmp_path / "out.json"
    old.write_text("[]")
    lines.write_bytes(lines.read_bytes() + b"{}\n")
    outcome = run_command("convert_results", lines, "--coco", old, "--overwrite")
    assert outcome.code == 1
    assert "line 31 is damaged: no schema_version" in outcome.error_line()
    assert old.read_text() == "[]"
    assert _left(tmp_path) == ["out.json"]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        ([], 2, "nothing to write: give --coco FILE, --mot FILE or both"),
        (["--coco", "x.out", "--mot", "x.out"], 2, "both write"),
        (["--coco", "missing/x.json"], 1, "does not exist; create it first"),
        (["--coco", "in.jsonl", "--overwrite"], 1, "is the source itself"),
        (["--coco", "stream.json"], 1, "already exists; use --overwrite"),
        (["--mot", "x.txt", "--categories", "missing.json"], 2, "No such file"),
        (["--mot", "x.txt", "--categories", "in.jsonl"], 2, "is no COCO file with categories"),
        (["--mot", "x.txt", "--categories", "stream.json"], 2, "has no list 'categories'"),
        (["--mot", "x.txt", "--source", "other"], 1, "no record of the source 'other'; it has: made"),
    ],
)
def test_wrong_arguments_give_one_line(
    tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch, arguments: list[str], code: int, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    outcome = run_command("convert_results", "in.jsonl", *arguments)
    assert outcome.code == code
    assert reason in outcome.error_line()
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.parametrize(
    ("output", "code", "reason"),
    [
        (["--mot", "found.jsonl"], 1, "the output found.part.jsonl is the input found.part.jsonl"),
        (["--coco", "found.jsonl"], 1, "the output found.part.jsonl is the input found.part.jsonl"),
        (["--coco", "new.json", "--mot", "new.part.json"], 2, "--coco and --mot both write new.part.json"),
        (["--coco", "new.json", "--mot", "new.categories.json"], 2, "both write new.categories.json"),
        (["--mot", "in.truth.json", "--categories", "in.truth.json"], 1, "is the input in.truth.json"),
    ],
)
def test_an_input_is_not_written_over_by_a_temporary_file(
    tmp_path: Path, lines: Path, monkeypatch: pytest.MonkeyPatch, output: list[str], code: int, reason: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in.truth.json").write_text('{"categories": [{"id": 1, "name": "car"}]}')
    lines.rename("found.part.jsonl")
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    outcome = run_command("convert_results", "found.part.jsonl", *output, "--overwrite")
    assert outcome.code == code
    assert reason in outcome.error_line()
    assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


def test_no_such_input(tmp_path: Path) -> None:
    outcome = run_command("convert_results", tmp_path / "no.jsonl", "--mot", tmp_path / "out.txt")
    assert outcome.code == 1
    assert "no.jsonl cannot be read: No such file" in outcome.error_line()
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_class_tells_what_to_do(tmp_path: Path, lines: Path) -> None:
    lines.write_text(lines.read_text().replace('"car"', '"tram"'))
    outcome = run_command("convert_results", lines, "--coco", tmp_path / "out.json")
    assert outcome.code == 1
    line = outcome.error_line()
    assert "the class 'tram' is none of pedestrian" in line
    assert "--categories" in line
    assert _left(tmp_path) == []


@pytest.mark.timeout(60)
def test_the_tool_itself_imports_no_torch(tmp_path: Path, lines: Path) -> None:
    tool = str(PROJECT / "tools" / "convert_results.py")
    script = (
        "import runpy, sys\n"
        "sys.argv = sys.argv[1:]\n"
        "try:\n"
        "    runpy.run_path(sys.argv[0], run_name='__main__')\n"
        "finally:\n"
        "    assert 'torch' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, tool, str(lines), "--mot", str(tmp_path / "out.txt")],
        capture_output=True,
        text=True,
        check=False,
        cwd=tmp_path,
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out.txt").read_bytes() == (tmp_path / "stream.txt").read_bytes()
