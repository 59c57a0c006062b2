"""Which files a folder gives, and what they are to become."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from pcmoe_det.errors import PcmoeError, SourceError, UsageError
from pcmoe_det.offline.job import JobOptions, find_sources, fingerprint_of, output_name, printable


def fill(folder: Path, *names: str) -> Path:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(b"x")
    return folder


def names_in(folder: Path, output: Path | None = None, *globs: str, video: bool = False) -> list[str]:
    options = JobOptions(folder, output or folder.parent / "out", globs=globs, video=video)
    return [file.name for file in find_sources(options).files]


def test_videos_of_all_subfolders_in_order(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "in", "b.MP4", "a.avi", "sub/deep/c d.mkv", "sub/\nü.webm", "notes.txt", ".hidden.mp4",
        ".cache/x.mp4", "out/results/a.mp4",
    )  # fmt: skip
    assert names_in(folder, folder / "out" / "results") == [
        "a.avi",
        "b.MP4",
        "sub/\nü.webm",
        "sub/deep/c d.mkv",
    ]
    file = find_sources(JobOptions(folder, tmp_path / "out")).files[0]
    assert file.path == folder / "a.avi"
    assert file.fingerprint is not None
    assert file.fingerprint.size_bytes == 1
    assert file.fingerprint.mtime_ns == (folder / "a.avi").stat().st_mtime_ns


def test_patterns(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "a.mp4", "b.raw", "left/c.raw", "left/more/d.raw", "right/e.raw")
    assert names_in(folder, None, "*.raw") == ["b.raw", "left/c.raw", "left/more/d.raw", "right/e.raw"]
    assert names_in(folder, None, "left/*.raw", "a.*") == ["a.mp4", "left/c.raw", "left/more/d.raw"]


def test_folders_of_pictures(tmp_path: Path) -> None:
    folder = fill(
        tmp_path / "in",
        "a.mp4",
        "clip.1/10.png",
        "clip.1/2.JPG",
        "clip.1/more/x.png",
        "clip.2/.x.png",
        "0.png",
    )
    (folder / "clip.3" / "y.png").mkdir(parents=True)
    assert names_in(folder) == ["a.mp4"]
    found = find_sources(JobOptions(folder, tmp_path / "out", pictures=True)).files
    assert [file.name for file in found] == ["a.mp4", "clip.1", "clip.1/more", "in"]
    assert [file.path for file in found] == [
        folder / "a.mp4", folder / "clip.1", folder / "clip.1" / "more", folder,
    ]  # fmt: skip
    before = found[1].fingerprint
    assert before is not None
    assert before.size_bytes == 2
    (folder / "clip.1" / "3.png").write_bytes(b"xyz")
    assert fingerprint_of(folder / "clip.1") != before
    with pytest.raises(SourceError, match=r"holds no video files .* and no pictures"):
        find_sources(JobOptions(fill(tmp_path / "text", "a.txt"), tmp_path / "out", pictures=True))


def test_links(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "a.mp4", "sub/b.mp4")
    (folder / "sub" / "up").symlink_to(folder)
    (folder / "round.mp4").symlink_to(folder / "round.mp4")
    (folder / "nowhere.mp4").symlink_to(tmp_path / "no")
    (folder / "other.mp4").symlink_to(folder / "a.mp4")
    found = find_sources(JobOptions(folder, tmp_path / "out"))
    assert [file.name for file in found.files] == [
        "a.mp4", "nowhere.mp4", "other.mp4", "round.mp4", "sub/b.mp4",
    ]  # fmt: skip
    assert found.links_skipped == 1
    assert [file.name for file in found.files if file.fingerprint is None] == ["nowhere.mp4", "round.mp4"]


def test_a_folder_that_cannot_be_searched_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = fill(tmp_path / "in", "a.mp4", "locked/b.mp4")
    real = os.scandir

    def scandir(path: Path):
        if Path(path).name == "locked":  # the tests may run as root, whom no permission stops
            raise PermissionError(13, "Permission denied")
        return real(path)

    monkeypatch.setattr(os, "scandir", scandir)
    found = find_sources(JobOptions(folder, tmp_path / "out"))
    assert [file.name for file in found.files] == ["a.mp4"]
    assert len(found.problems) == 1
    assert "locked cannot be searched (Permission denied)" in found.problems[0]


def test_folders_that_cannot_be_used(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "a.mp4")
    cases: list[tuple[Path, Path, type[PcmoeError], str]] = [
        (tmp_path / "no", tmp_path / "out", SourceError, "does not exist"),
        (folder / "a.mp4", tmp_path / "out", SourceError, "is not a folder"),
        (folder, folder, UsageError, "is or holds"),
        (folder, tmp_path, UsageError, "is or holds"),
        (fill(tmp_path / "text", "a.txt"), tmp_path / "out", SourceError, "holds no video files"),
    ]
    for source, output, kind, words in cases:
        with pytest.raises(kind, match=words):
            names_in(source, output)


def test_outputs_that_would_meet_are_refused(tmp_path: Path) -> None:
    folder = fill(tmp_path / "in", "a.mp4", "a.mp4.part")
    with pytest.raises(UsageError, match=r"a\.mp4 and a\.mp4\.part would both write"):
        names_in(folder, None, "*")
    assert names_in(fill(tmp_path / "both", "a.mp4", "a.avi"), video=True) == ["a.avi", "a.mp4"]


def test_what_a_file_becomes() -> None:
    assert output_name("sub/a b.mp4", ".jsonl") == "sub/a b.mp4.jsonl"
    assert output_name("a.avi", ".mp4") == "a.avi.mp4"
    long_names = ["d/" + "ü" * 125 + ending for ending in (".mp4", ".avi")] + ["d/" + "ü" * 120 + "x.mp4"]
    made = [output_name(name, ".part.jsonl") for name in long_names]
    assert len(set(made)) == 3
    for name in made:
        assert name.startswith("d/üüü")
        assert name.endswith(".part.jsonl")
        assert len(os.fsencode(name.partition("/")[2])) <= 255


def test_fingerprint_and_printable(tmp_path: Path) -> None:
    path = tmp_path / "a"
    path.write_bytes(b"abc")
    before = fingerprint_of(path)
    os.utime(path, ns=(1, 1))
    assert before != fingerprint_of(path)
    assert fingerprint_of(tmp_path / "none") is None
    assert printable("ü\n\x1b[2J\udcff") == "ü\\n\\x1b[2J\\udcff"
