"""Output files: what is refused beforehand, and which name a file ends up with."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming import OutputFile


def test_a_good_target_leaves_no_trace(tmp_path: Path) -> None:
    target = OutputFile(tmp_path / "out.tar.mp4", overwrite=False)
    assert target.partial_path == tmp_path / "out.tar.part.mp4"
    assert list(tmp_path.iterdir()) == []


def test_an_existing_file_needs_overwrite(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_text("old")
    with pytest.raises(OutputError, match="already exists; use --overwrite"):
        OutputFile(path, overwrite=False)
    OutputFile(path, overwrite=True)
    assert path.read_text() == "old"


def test_a_leftover_of_an_earlier_run_needs_overwrite(tmp_path: Path) -> None:
    leftover = tmp_path / "out.part.mp4"
    leftover.write_text("hours of work")
    with pytest.raises(OutputError, match=r"out\.part\.mp4 is what an earlier run .* rename it to keep it"):
        OutputFile(tmp_path / "out.mp4", overwrite=False)
    target = OutputFile(tmp_path / "out.mp4", overwrite=True)
    assert leftover.read_text() == "hours of work"
    with target.create() as file:
        file.write(b"new")
    assert leftover.read_text() == "new"
    assert target.finish("complete") == tmp_path / "out.mp4"


def test_an_empty_leftover_is_replaced(tmp_path: Path) -> None:
    (tmp_path / "out.part.mp4").touch()
    with OutputFile(tmp_path / "out.mp4", overwrite=False).create() as file:
        file.write(b"new")
    assert (tmp_path / "out.part.mp4").read_text() == "new"


@pytest.mark.parametrize("outcome", ["complete", "interrupted", "failed"])
def test_a_leftover_is_never_a_result_of_this_run(tmp_path: Path, outcome) -> None:
    (tmp_path / "out.part.mp4").write_text("hours of work")
    target = OutputFile(tmp_path / "out.mp4", overwrite=True)
    assert target.finish(outcome) is None
    target.discard()
    assert (tmp_path / "out.part.mp4").read_text() == "hours of work"
    assert not (tmp_path / "out.mp4").exists()


def test_two_runs_do_not_share_a_file(tmp_path: Path) -> None:
    first, second = (OutputFile(tmp_path / "out.mp4", overwrite=False) for _ in range(2))
    with first.create(), pytest.raises(OutputError, match="another run writes the same output"):
        second.create()


def test_a_file_that_somebody_removed_is_told(tmp_path: Path) -> None:
    target = OutputFile(tmp_path / "out.txt", overwrite=False)
    target.create().close()
    target.partial_path.unlink()
    with pytest.raises(OutputError, match=r"out\.part\.txt was removed"):
        target.finish("complete")
    assert target.finish("failed") is None


def test_a_folder_that_vanished_is_told(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    target = OutputFile(folder / "out.txt", overwrite=False)
    folder.rmdir()
    with pytest.raises(OutputError, match=r"out\.part\.txt cannot be written: No such file"):
        target.create()


@pytest.mark.parametrize(
    ("path", "message"),
    [
        ("missing/out.mp4", "missing for out.mp4 does not exist"),
        ("file/out.mp4", "is not a folder"),
        ("folder", "is not a regular file"),
        ("pipe", "is not a regular file"),
        ("a\0b", "cannot be written"),
        ("n" * 300 + ".mp4", "cannot be written"),
    ],
)
def test_targets_that_cannot_be(tmp_path: Path, path: str, message: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(OutputError, match=message):
        OutputFile(tmp_path / path, overwrite=True)


def test_the_source_is_never_a_target(tmp_path: Path) -> None:
    source = tmp_path / "clip.mp4"
    source.write_text("film")
    link = tmp_path / "link.mp4"
    link.symlink_to(source)
    for target in (source, link):
        with pytest.raises(OutputError, match="is the source itself"):
            OutputFile(target, overwrite=True, source=source)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_folder_is_refused(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    try:
        with pytest.raises(OutputError, match="cannot be written to"):
            OutputFile(tmp_path / "out.mp4", overwrite=False)
    finally:
        tmp_path.chmod(0o700)


@pytest.mark.parametrize(
    ("outcome", "name"), [("complete", "out.txt"), ("interrupted", "out.txt"), ("failed", "out.part.txt")]
)
def test_the_outcome_decides_the_name(tmp_path: Path, outcome, name: str) -> None:
    target = OutputFile(tmp_path / "out.txt", overwrite=False)
    target.partial_path.write_text("result")
    assert target.finish(outcome) == tmp_path / name
    assert [entry.name for entry in tmp_path.iterdir()] == [name]


def test_a_file_that_appeared_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    target = OutputFile(tmp_path / "out.txt", overwrite=False)
    target.partial_path.write_text("ours")
    target.path.write_text("theirs")
    with pytest.raises(OutputError, match=r"is kept as .*out\.part\.txt"):
        target.finish("complete")
    assert target.path.read_text() == "theirs"
    assert target.partial_path.read_text() == "ours"


def test_nothing_written_is_nothing_finished(tmp_path: Path) -> None:
    target = OutputFile(tmp_path / "out.txt", overwrite=False)
    assert target.finish("complete") is None
    target.discard()
