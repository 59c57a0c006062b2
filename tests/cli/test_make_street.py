"""The command ``make_street`` as its users start it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from pcmoe_det.cli import make_street

TOOL = Path(__file__).resolve().parents[2] / "tools" / "make_street.py"


def run(monkeypatch: pytest.MonkeyPatch, *arguments: str | Path) -> int:
    monkeypatch.setattr(sys, "argv", ["make_street", *map(str, arguments)])
    return make_street.entry()


def test_writes_a_data_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    small = ["--size", "128x80", "--frames", "2", "--videos", "2", "--shift", "night"]
    assert run(monkeypatch, "--output", tmp_path, "--seed", "4", "--split", "train", *small) == 0
    folder = tmp_path / "discrete" / "videos" / "train" / "front"
    frames = json.loads((folder / "det_2d.json").read_text())["frames"]
    assert len(frames) == 4
    assert {frame["attributes"]["timeofday_coarse"] for frame in frames} == {"night"}
    assert (folder / "img_decompressed.zip").is_file()


def test_writes_a_clip_and_keeps_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "clip.mp4"
    arguments = ["--output", path, "--size", "128x80", "--frames", "2"]
    assert run(monkeypatch, *arguments) == 0
    before = path.read_bytes()
    assert run(monkeypatch, *arguments) == 1
    assert "already exists" in capsys.readouterr().err
    assert path.read_bytes() == before
    assert run(monkeypatch, *arguments, "--overwrite") == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--shift", "snowy"], "snowy"),
        (["--frames", "0"], "num_frames 0"),
        (["--videos", "0"], "--videos 0"),
        (["--size", "9x9"], "9x9"),
    ],
    ids=lambda value: "-".join(value) if isinstance(value, list) else "",
)
def test_bad_values_end_with_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    arguments: list[str],
    message: str,
) -> None:
    assert run(monkeypatch, "--output", tmp_path / "x", *arguments) == 2
    error = capsys.readouterr().err.strip().splitlines()
    assert message in error[-1]
    assert not (tmp_path / "x").exists()


@pytest.mark.parametrize("name", ["x.m4v", "x.avi", "x.WEBM"])
def test_clips_of_other_kinds_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], name: str
) -> None:
    assert run(monkeypatch, "--output", tmp_path / name, "--size", "128x80", "--frames", "1") == 2
    error = capsys.readouterr().err
    assert f"clips are not written as {Path(name).suffix.lower()}; use .mp4, .mov, .mkv" in error
    assert list(tmp_path.iterdir()) == []


def test_a_clip_holds_one_video(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(monkeypatch, "--output", tmp_path / "x.mp4", "--videos", "2") == 2
    assert "one video" in capsys.readouterr().err


def test_size_must_be_a_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(SystemExit) as stop:
        run(monkeypatch, "--output", tmp_path, "--size", "wide")
    assert stop.value.code == 2


def test_the_tool_starts_as_a_script_and_imports_nothing_heavy_for_help() -> None:
    command = [sys.executable, "-X", "importtime", str(TOOL), "--help"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0
    assert "--shift" in done.stdout
    imported = {line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines()}
    assert imported.isdisjoint({"numpy", "cv2", "torch", "av", "mmengine"})
