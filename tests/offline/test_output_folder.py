"""The output folder: one process at a time, moves that survive a crash."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from pcmoe_det.errors import OutputError
from pcmoe_det.offline.output_folder import OutputFolder
from pcmoe_det.offline.plan import recover
from pcmoe_det.offline.status import FileStatus


def test_only_one_at_a_time(tmp_path: Path) -> None:
    with OutputFolder(tmp_path / "new" / "out") as first:
        assert (first.path / "status.jsonl").is_file()
        with pytest.raises(OutputError, match=r"being written by another process \(\d+ on "):
            OutputFolder(first.path)
    OutputFolder(first.path).close()


@pytest.mark.timeout(30)
def test_the_lock_of_a_killed_process_means_nothing(tmp_path: Path) -> None:
    code = (
        "import os, pathlib, signal, sys; from pcmoe_det.offline.output_folder import OutputFolder; "
        "OutputFolder(pathlib.Path(sys.argv[1])); os.kill(os.getpid(), signal.SIGKILL)"
    )
    killed = subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False, timeout=20)
    assert killed.returncode == -9
    assert (tmp_path / ".pcmoe-process" / "lock").read_text()
    OutputFolder(tmp_path).close()


def test_a_folder_that_cannot_be_made(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match="cannot be written to"):
        OutputFolder(tmp_path / "file" / "out")


def staged(output: OutputFolder, attempt: str, content: str) -> Path:
    folder = output.start_attempt(attempt)
    (folder / "result.jsonl").write_text(content)
    return folder


def note_done(output: OutputFolder, attempt: str, source: str = "s/a.mp4") -> None:
    outputs = output.staged(attempt, [source + ".jsonl"])
    output.journal.append(FileStatus(source, "done", attempt, "s1", frames=1, outputs=outputs))


def test_a_move_that_was_noted_is_finished_by_the_next_run(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as output:
        staged(output, "a1", "whole")
        note_done(output, "a1")
        staged(output, "a2", "half")
        output.journal.append(FileStatus("b.mp4", "started", "a2", "s1"))
    with OutputFolder(tmp_path) as output:
        assert recover(output) == 1
        assert (tmp_path / "s" / "a.mp4.jsonl").read_text() == "whole"
        assert {name: status.state for name, status in output.journal.latest.items()} == {
            "s/a.mp4": "done",
            "b.mp4": "interrupted",
        }
        assert output.unended_attempts() == frozenset()
        assert output.obstacle("s/a.mp4.jsonl", overwrite=False) is None
        assert recover(output) == 0


def test_a_move_over_the_jobs_own_older_result_is_finished(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as output:
        for attempt, content in (("a1", "old"), ("a2", "newer")):
            staged(output, attempt, content)
            note_done(output, attempt)
            if attempt == "a1":
                output.make_parents(["s/a.mp4.jsonl"])
                output.move_into_place(attempt, output.journal.latest["s/a.mp4"].outputs)
                output.end_attempt(attempt)
    with OutputFolder(tmp_path) as output:
        assert recover(output) == 0
    assert (tmp_path / "s" / "a.mp4.jsonl").read_text() == "newer"


def test_what_somebody_put_there_meanwhile_stays(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as output:
        staged(output, "a1", "whole")
        note_done(output, "a1")
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "a.mp4.jsonl").write_text("somebody's own")
    with OutputFolder(tmp_path) as output:
        assert recover(output) == 1
        assert output.journal.latest["s/a.mp4"].state == "interrupted"
        assert output.journal.partial_of("s/a.mp4") == ("s/a.mp4.part.jsonl",)
        assert (tmp_path / "s" / "a.mp4.part.jsonl").read_text() == "whole"
        assert "not made by this job" in str(output.obstacle("s/a.mp4.jsonl", overwrite=False))
        assert output.obstacle("s/a.mp4.jsonl", overwrite=True) is None
    assert (tmp_path / "s" / "a.mp4.jsonl").read_text() == "somebody's own"


def test_obstacles(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as output:
        (tmp_path / "folder.jsonl").mkdir()
        (tmp_path / "link.jsonl").symlink_to(tmp_path / "status.jsonl")
        (tmp_path / "file").touch()
        assert output.obstacle("new.jsonl", overwrite=False) is None
        for overwrite in (False, True):
            assert "no regular file" in str(output.obstacle("folder.jsonl", overwrite=overwrite))
            assert "no regular file" in str(output.obstacle("link.jsonl", overwrite=overwrite))
            assert "Not a directory" in str(output.obstacle("file/x.jsonl", overwrite=overwrite))


def test_unfinished_results_are_kept_beside(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as output:
        folder = output.start_attempt("a1")
        (folder / "result.part.jsonl").write_text("first lines")
        names = ["s/a.mp4.jsonl", "s/a.mp4.mp4"]
        assert output.keep_partial("a1", names) == ("s/a.mp4.part.jsonl",)
        assert (tmp_path / "s" / "a.mp4.part.jsonl").read_text() == "first lines"
        (output.start_attempt("a2") / "result.part.jsonl").write_text("others")
        assert output.keep_partial("a2", names) == (".pcmoe-process/kept/a2.jsonl",)
        assert (tmp_path / "s" / "a.mp4.part.jsonl").read_text() == "first lines"
        assert (tmp_path / ".pcmoe-process" / "kept" / "a2.jsonl").read_text() == "others"
        output.drop_partial(["s/a.mp4.part.jsonl", "s/gone"])
        assert list((tmp_path / "s").iterdir()) == []


def test_what_was_kept_stays_until_an_attempt_leaves_something(tmp_path: Path) -> None:
    names = ["a.mp4.jsonl", "a.mp4.mp4"]
    with OutputFolder(tmp_path) as output:
        folder = output.start_attempt("a1")
        (folder / "result.part.jsonl").write_text("first lines")
        (folder / "result.part.mp4").write_text("first pictures")
        before = output.keep_partial("a1", names)
        assert before == ("a.mp4.part.jsonl", "a.mp4.part.mp4")
        (output.start_attempt("a2") / "result.part.jsonl").touch()
        assert output.keep_partial("a2", names, before) == before
        assert (tmp_path / "a.mp4.part.jsonl").read_text() == "first lines"
        staged(output, "a3", "all lines")
        assert output.keep_partial("a3", names, before) == ("a.mp4.part.jsonl",)
        assert (tmp_path / "a.mp4.part.jsonl").read_text() == "all lines"
        assert not (tmp_path / "a.mp4.part.mp4").exists()  # of another attempt than the lines


def test_a_result_whose_folder_has_gone_is_kept_elsewhere(tmp_path: Path) -> None:
    with OutputFolder(tmp_path) as output:
        (tmp_path / "s").touch()
        staged(output, "a1", "whole")
        kept = output.keep_partial("a1", ["s/a.mp4.jsonl"])
        assert [(tmp_path / name).read_text() for name in kept] == ["whole"]
        output.end_attempt("a1")
        assert [(tmp_path / name).read_text() for name in kept] == ["whole"]
