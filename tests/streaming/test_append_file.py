"""Files that grow by whole records."""

from __future__ import annotations

import json
from io import FileIO
from pathlib import Path

import pytest

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming import OutputFile, append_file
from pcmoe_det.streaming.append_file import AppendFile


def _target(tmp_path: Path) -> OutputFile:
    return OutputFile(tmp_path / "out.json", overwrite=False)


def _array(tmp_path: Path) -> AppendFile:
    return AppendFile(_target(tmp_path), head=b"[", tail=b"]\n")


def test_the_file_is_whole_after_every_record(tmp_path: Path) -> None:
    file = _array(tmp_path)
    part = tmp_path / "out.part.json"
    assert not part.exists()  # an earlier run's would stay until there is something to write
    for count, text in enumerate((b"1", b",2", b",3"), start=1):
        file.append(text)
        assert json.loads(part.read_bytes()) == [1, 2, 3][:count]
    assert file.count == 3
    assert file.close("complete") == [tmp_path / "out.json"]
    assert (tmp_path / "out.json").read_bytes() == b"[1,2,3]\n"


@pytest.mark.parametrize("room", range(1, 16))
def test_where_the_disk_is_full_whole_records_stay(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    """The disk takes ``room`` bytes beyond the first record and its end, and part of what does not fit."""
    first = b'{"a": 1}'
    limit = len(b"[" + first + b"]\n") + room
    real = append_file.os.pwrite

    def pwrite(descriptor: int, data, offset: int) -> int:
        if offset >= limit:
            raise OSError(28, "No space left on device")
        return real(descriptor, data[: limit - offset], offset)

    file = _array(tmp_path)
    monkeypatch.setattr(append_file.os, "pwrite", pwrite)
    file.append(first)
    with pytest.raises(
        OutputError, match=r"out\.json cannot .*: No space left.*the 1 records .*out\.part\.json"
    ):
        file.append(b',{"b": 2, "c": [1, 2, 3]}')
    assert file.close("failed") == [tmp_path / "out.part.json"]
    assert json.loads((tmp_path / "out.part.json").read_bytes()) == [{"a": 1}]


def test_the_systems_own_full_device(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("this system has no /dev/full")
    target = _target(tmp_path)
    monkeypatch.setattr(target, "create", lambda: FileIO(full, "r+"))
    file = AppendFile(target)
    with pytest.raises(OutputError, match="No space left on device"):
        file.append(b"a record\n")
    assert file.count == 0


def test_a_head_that_does_not_fit_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def pwrite(descriptor: int, data, offset: int) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(append_file.os, "pwrite", pwrite)
    with pytest.raises(OutputError, match="No space left"):
        _array(tmp_path).append(b"1")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("outcome", ["interrupted", "failed"])
def test_an_earlier_runs_file_stays_while_there_is_nothing_to_replace_it(tmp_path: Path, outcome) -> None:
    part = tmp_path / "out.part.json"
    part.write_text("hours of work")
    file = AppendFile(OutputFile(tmp_path / "out.json", overwrite=True))
    assert file.close(outcome) == []
    assert part.read_text() == "hours of work"


@pytest.mark.parametrize(
    ("outcome", "used", "left"),
    [
        ("complete", False, ["out.json"]),
        ("interrupted", False, []),
        ("failed", False, []),
        ("interrupted", True, ["out.json"]),
        ("failed", True, ["out.part.json"]),
    ],
)
def test_what_is_left_without_records(tmp_path: Path, outcome, used: bool, left: list[str]) -> None:
    file = _array(tmp_path)
    if used:
        file.append(b"", count=0)  # a frame in which nothing was found
    assert file.close(outcome) == [tmp_path / name for name in left]
    assert [entry.name for entry in tmp_path.iterdir()] == left
