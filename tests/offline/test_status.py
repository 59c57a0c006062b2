"""The journal: what it keeps over a crash at any byte."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import pytest

from pcmoe_det.errors import OutputError
from pcmoe_det.offline.status import FileStatus, Fingerprint, StatusJournal, WrittenFile

ODD_NAME = "sub/a\nb \udcff ü.mp4"  # a line break, and a byte that is no UTF-8


def done(source: str, attempt: str = "a1") -> FileStatus:
    return FileStatus(
        source, "done", attempt, "s1", Fingerprint(10, 20), frames=3, seconds=1.5,
        faults={"corrupt": 2}, outputs=(WrittenFile(source + ".jsonl", 5, 6),),
    )  # fmt: skip


def failed(source: str) -> FileStatus:
    return FileStatus(
        source, "failed", "a2", "s1", None, error="it broke", partial=(source + ".part.jsonl",), retry=True
    )


def test_every_field_survives(tmp_path: Path) -> None:
    path = tmp_path / "status.jsonl"
    journal = StatusJournal(path)
    identifier = journal.append_run({"model": "m", "score_threshold": 0.3})
    journal.append(done(ODD_NAME), failed("b.mp4"))
    journal.close()
    again = StatusJournal(path)
    assert dict(again.latest) == {ODD_NAME: done(ODD_NAME), "b.mp4": failed("b.mp4")}
    assert again.settings_of(identifier) == {"model": "m", "score_threshold": 0.3}
    assert again.settings_of("other") is None
    assert again.has_written(WrittenFile(ODD_NAME + ".jsonl", 5, 6))
    assert not again.has_written(WrittenFile(ODD_NAME + ".jsonl", 5, 7))
    assert again.partial_of("b.mp4") == ("b.mp4.part.jsonl",)
    again.append(done("b.mp4"))
    assert again.partial_of("b.mp4") == ()
    again.close()
    lines = [json.loads(line) for line in path.read_text(encoding="ascii").splitlines()]
    assert [line.get("state", "run") for line in lines] == ["run", "done", "failed", "done"]
    assert {line["schema_version"] for line in lines} == {1}


def test_a_line_cut_off_anywhere_never_counted(tmp_path: Path) -> None:
    path = tmp_path / "status.jsonl"
    journal = StatusJournal(path)
    journal.append(done("a.mp4"))
    whole = path.read_bytes()
    journal.append(failed("b.mp4"))
    journal.close()
    everything = path.read_bytes()
    for cut in range(len(whole), len(everything)):
        path.write_bytes(everything[:cut])
        journal = StatusJournal(path)
        assert list(journal.latest) == ["a.mp4"]
        assert path.read_bytes() == whole
        journal.append(done("c.mp4"))
        journal.close()
        journal = StatusJournal(path)
        assert list(journal.latest) == ["a.mp4", "c.mp4"]
        journal.close()


def test_zeros_of_a_power_failure_at_the_end_are_dropped(tmp_path: Path) -> None:
    path = tmp_path / "status.jsonl"
    journal = StatusJournal(path)
    journal.append(done("a.mp4"))
    journal.close()
    whole = path.read_bytes()
    path.write_bytes(whole + bytes(100) + b"\n")
    journal = StatusJournal(path)
    journal.close()
    assert path.read_bytes() == whole


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"not json", "line 2 of"),
        (b'{"schema_version": 1, "source": "a"}', "line 2 of"),
        (b'{"schema_version": 9}', "schema version 9"),
        (b"[]", "line 2 of"),
    ],
)
def test_damage_before_the_end_is_refused(tmp_path: Path, line: bytes, reason: str) -> None:
    path = tmp_path / "status.jsonl"
    journal = StatusJournal(path)
    journal.append(done("a.mp4"))
    journal.close()
    damaged = path.read_bytes() + line + b"\n" + path.read_bytes()
    path.write_bytes(damaged)
    with pytest.raises(OutputError, match=reason):
        StatusJournal(path)
    assert path.read_bytes() == damaged


@pytest.mark.parametrize("name", ["../a", "/etc/passwd", "a/../../b", 3])
def test_names_that_leave_the_folder_are_refused(name: object) -> None:
    record = done("a.mp4").as_record()
    with pytest.raises(ValueError, match="no name inside"):
        FileStatus.from_record({**record, "source": name})
    with pytest.raises(ValueError, match="no name inside"):
        FileStatus.from_record({**record, "outputs": [{"name": name, "bytes": 1, "mtime_ns": 1}]})
    with pytest.raises(ValueError, match="no name of an attempt"):
        FileStatus.from_record({**record, "attempt": "../x"})


def test_a_full_disk_leaves_the_journal_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.jsonl"
    journal = StatusJournal(path)
    journal.append(done("a.mp4"))
    whole = path.read_bytes()
    real_write, calls = os.write, []

    def write(fd: int, data: memoryview) -> int:
        calls.append(len(data))
        if len(calls) == 2:
            raise OSError(errno.ENOSPC, "No space left on device")
        return real_write(fd, data[:10])

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(OutputError, match="No space left"):
        journal.append(failed("b.mp4"))
    monkeypatch.undo()
    assert path.read_bytes() == whole
    assert list(journal.latest) == ["a.mp4"]
    journal.append(failed("b.mp4"))
    journal.close()
    journal = StatusJournal(path)
    assert list(journal.latest) == ["a.mp4", "b.mp4"]
    journal.close()
