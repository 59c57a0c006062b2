"""Temporary packed models: gone as soon as they can be, and after a run that was killed."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

from pcmoe_det.cli.committee_options import open_detector
from pcmoe_det.cli.stream_options import make_stream_parser
from pcmoe_det.cli.temporary_pack import TemporaryPack
from tests.committee.packed_samples import pictures, save_tiny


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder for temporary files."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def _killed_run(temporary: Path, name: str = ".pcmoe_det-temporary-pack-killed") -> Path:
    folder = temporary / name
    (folder / "packed.part").mkdir(parents=True)
    (folder / "packed.part" / "experts.safetensors").write_bytes(b"experts")
    return folder


def test_a_pack_is_removed_once_and_at_the_latest_at_the_end(temporary: Path) -> None:
    with TemporaryPack() as pack:
        (pack.path / "packed").mkdir()
        pack.remove()
        assert list(temporary.iterdir()) == []
    with TemporaryPack() as pack:
        (pack.path / "packed").mkdir()
    assert list(temporary.iterdir()) == []


def test_what_a_killed_run_left_is_removed_and_what_is_in_use_stays(temporary: Path) -> None:
    abandoned = _killed_run(temporary)
    foreign = temporary / ".pcmoe_det-temporary-pack-file"
    foreign.write_text("no folder")
    link = temporary / ".pcmoe_det-temporary-pack-link"
    link.symlink_to(_killed_run(temporary, "elsewhere"))
    with TemporaryPack() as first, TemporaryPack() as second:
        assert not abandoned.exists()
        assert first.path.is_dir()
        assert second.path.is_dir()
    assert {path.name for path in temporary.iterdir()} == {"elsewhere", foreign.name, link.name}
    assert (link / "packed.part" / "experts.safetensors").exists()


def test_without_locks_nothing_is_removed_and_packing_works(
    temporary: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError("no locks here")

    monkeypatch.setattr("fcntl.flock", fail)
    abandoned = _killed_run(temporary)
    with TemporaryPack() as pack:
        assert pack.path.is_dir()
    assert list(temporary.iterdir()) == [abandoned]


@pytest.mark.timeout(60)
def test_an_open_detector_needs_nothing_on_disk(temporary: Path) -> None:
    weights = temporary.parent / "tiny.safetensors"
    save_tiny(weights, num_experts=4)
    options = ["--source", "x", "--policy", "pcmoe", "--expert-budget", "0.8"]
    for more in (["--cold-reads"], ["--on-miss", "load"]):
        arguments = make_stream_parser().parse_args([*options, *more])
        with open_detector(str(weights), arguments, score_threshold=0.0) as opened:
            assert os.listdir(temporary) == []  # noqa: PTH208
            for picture in pictures(3):
                opened.detector.detect([picture])
            assert opened.committee is not None
            assert opened.committee.report()["fills"] > 0
            assert opened.committee.report()["failed_loads"] == 0
