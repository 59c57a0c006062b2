"""``tools/pack.py``: what it accepts, writes and refuses."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pcmoe_det.cli import pack as command
from pcmoe_det.cli.entry import EXIT_FAILED, EXIT_OK, EXIT_USAGE
from pcmoe_det.committee.packed_model import PackedModel
from tests.committee.packed_samples import CLASSES, save_tiny, tiny_config

ROOT = Path(__file__).resolve().parents[2]


def run(monkeypatch: pytest.MonkeyPatch, *arguments: object) -> int:
    monkeypatch.setattr(sys, "argv", ["pcmoe-pack", *map(str, arguments)])
    return command.entry()


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    save_tiny(tmp_path / "w.safetensors")
    return tmp_path / "w.safetensors"


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "config.py"
    path.write_text(f"model = {tiny_config()!r}\nclass_names = {CLASSES!r}\nlong_side = 64\n")
    return path


def test_help_is_quick_and_loads_no_torch() -> None:
    code = (
        "import sys, pcmoe_det.cli.pack as command; sys.argv = ['pcmoe-pack', '--help']\n"
        "try: command.entry()\n"
        "except SystemExit: pass\n"
        "sys.exit('torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--random-weights" in done.stdout


def test_weights_alone_and_what_is_said(
    tmp_path: Path, weights: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "packed"
    assert run(monkeypatch, weights, "--output", output, "--dtype", "bfloat16") == EXIT_OK
    packed = PackedModel.open(output)
    megabytes = packed.experts_path.stat().st_size / 1e6
    said = capsys.readouterr().out
    assert "2 MoE layers with 6 experts in bfloat16" in said
    assert f"{megabytes:.1f} MB" in said
    assert packed.info.long_side == 96


def test_config_and_weights_then_overwrite(
    tmp_path: Path,
    weights: Path,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "packed"
    arguments = (config, weights, "--output", output, "--dtype", "float32")
    assert run(monkeypatch, *arguments) == EXIT_OK
    assert PackedModel.open(output).info.long_side == 64
    assert run(monkeypatch, *arguments) == EXIT_FAILED
    assert "already exists; use --overwrite" in capsys.readouterr().err
    assert run(monkeypatch, *arguments, "--overwrite") == EXIT_OK


def test_random_weights_need_a_config_only(
    tmp_path: Path,
    weights: Path,
    config: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    output = tmp_path / "packed"
    assert run(monkeypatch, config, "--random-weights", 3, "--output", output) == EXIT_OK
    assert sum(spec.num_experts for spec in PackedModel.open(output).layers) == 6
    for inputs in ((weights,), (config, weights), ()):
        status = run(monkeypatch, *inputs, "--random-weights", 3, "--output", tmp_path / "no")
        assert status == EXIT_USAGE
        assert "name a config and no weights" in capsys.readouterr().err
    assert run(monkeypatch, config, "--random-weights", -1, "--output", tmp_path / "no") == EXIT_USAGE
    assert not (tmp_path / "no").exists()


@pytest.mark.parametrize(
    ("inputs", "message", "status"),
    [
        (["missing.safetensors"], "no weights at missing.safetensors", EXIT_FAILED),
        (["missing.py", "missing.safetensors"], "no ", EXIT_FAILED),
        ([], "", EXIT_FAILED),
    ],
    ids=["weights", "config", "shipped"],
)
def test_inputs_that_are_missing_are_one_line(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    inputs: list[str],
    message: str,
    status: int,
) -> None:
    if not inputs:
        from pcmoe_det.models import inference

        monkeypatch.setattr(inference, "shipped_weights", lambda: tmp_path / "shipped.safetensors")
        message = "shipped.safetensors"
    assert run(monkeypatch, *inputs, "--output", tmp_path / "packed") == status
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1
    assert not list(tmp_path.glob("packed*"))


@pytest.mark.parametrize(
    ("inputs", "output", "message"),
    [
        (["street.png"], "packed", "street.png is no weights file; name a .safetensors file"),
        (["w.safetensors"], "x" * 300, "File name too long; name another folder"),
        (["x" * 300], "packed", "no weights at xxx"),
    ],
    ids=["picture", "output", "weights"],
)
def test_what_cannot_be_read_or_written_is_one_line(
    tmp_path: Path,
    weights: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    inputs: list[str],
    output: str,
    message: str,
) -> None:
    monkeypatch.chdir(weights.parent)
    (tmp_path / "street.png").write_bytes(b"\x89PNG\r\n\x1a\n")
    assert run(monkeypatch, *inputs, "--output", output) == EXIT_FAILED
    said = capsys.readouterr().err
    assert message in said
    assert len(said.splitlines()) == 1


def test_the_wrapper_runs_from_anywhere(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(ROOT / "tools" / "pack.py"), "--version"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("pcmoe-pack ")
