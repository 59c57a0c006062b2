"""What is still to do, given what earlier runs noted."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pcmoe_det.errors import OutputError, UsageError
from pcmoe_det.offline.job import JobOptions, find_sources
from pcmoe_det.offline.output_folder import OutputFolder
from pcmoe_det.offline.plan import JobPlan, plan_job
from pcmoe_det.offline.status import FileState, FileStatus


class Made:
    """A folder with two files, and a journal that tests write by hand."""

    def __init__(self, tmp_path: Path) -> None:
        self.folder, self.results = tmp_path / "in", tmp_path / "out"
        self.folder.mkdir()
        for name in ("a.mp4", "b.mp4"):
            (self.folder / name).write_text(name)
        self.options = JobOptions(self.folder, self.results, settings={"model": "m1"})
        self.output = OutputFolder(self.results)
        self.settings = self.output.journal.append_run(self.options.settings)

    def note(self, name: str, state: FileState, *, retry: bool = False) -> None:
        """One line; a done file's result is made, too."""
        file = next(file for file in find_sources(self.options).files if file.name == name)
        status = FileStatus(name, state, "a1", self.settings, file.fingerprint, retry=retry)
        if state == "done":
            (self.output.start_attempt("a1") / "result.jsonl").write_text("result of " + name)
            status = replace(status, outputs=self.output.staged("a1", [name + ".jsonl"]))
            self.output.move_into_place("a1", status.outputs)
            self.output.end_attempt("a1")
        self.output.journal.append(status)

    def plan(self, **changes: object) -> JobPlan:
        options = replace(self.options, **changes)  # type: ignore[arg-type]
        return plan_job(find_sources(options), options, self.output)

    def to_do(self, **changes: object) -> list[str]:
        return [file.name for file in self.plan(**changes).to_do]


@pytest.fixture
def made(tmp_path: Path) -> Iterator[Made]:
    made = Made(tmp_path)
    yield made
    made.output.close()


def test_done_files_stay(made: Made) -> None:
    assert made.to_do() == ["a.mp4", "b.mp4"]
    made.note("a.mp4", "done")
    plan = made.plan()
    assert [file.name for file in plan.to_do] == ["b.mp4"]
    assert [status.source for status in plan.done] == ["a.mp4"]
    assert made.to_do(overwrite=True, retry_failed=True) == ["b.mp4"]


def test_a_changed_source_is_done_again(made: Made) -> None:
    made.note("a.mp4", "done")
    made.note("b.mp4", "failed")
    (made.folder / "a.mp4").write_text("longer than before")
    (made.folder / "b.mp4").write_text("mended")
    plan = made.plan()
    assert [file.name for file in plan.to_do] == ["a.mp4", "b.mp4"]
    assert plan.changed == 1


def test_a_result_that_was_removed_is_made_again(made: Made) -> None:
    made.note("a.mp4", "done")
    (made.results / "a.mp4.jsonl").unlink()
    assert made.to_do() == ["a.mp4", "b.mp4"]


def test_a_video_that_is_wanted_now_is_made(made: Made) -> None:
    made.note("a.mp4", "done")
    assert made.to_do(video=True) == ["a.mp4", "b.mp4"]


def test_failed_files_wait_to_be_asked_for(made: Made) -> None:
    made.note("a.mp4", "failed")
    made.note("b.mp4", "interrupted")
    plan = made.plan()
    assert [status.source for status in plan.failed_before] == ["a.mp4"]
    assert [file.name for file in plan.to_do] == ["b.mp4"]
    assert made.to_do(retry_failed=True) == ["a.mp4", "b.mp4"]
    made.note("a.mp4", "failed", retry=True)  # its worker died, and the run ended before the second try
    assert made.to_do() == ["a.mp4", "b.mp4"]


def test_other_settings_are_refused(made: Made) -> None:
    made.note("a.mp4", "done")
    made.note("b.mp4", "failed")
    other = {"settings": {"model": "m2"}}
    with pytest.raises(UsageError, match=r"other settings \(model was m1 and is m2\)"):
        made.plan(**other)
    assert made.to_do(**other, overwrite=True) == ["a.mp4", "b.mp4"]


def test_files_of_others_are_refused_before_anything_starts(made: Made) -> None:
    (made.results / "b.mp4.jsonl").write_text("somebody's own")
    with pytest.raises(
        OutputError, match=r"b\.mp4\.jsonl exists and was not made by this job: use --overwrite"
    ):
        made.plan()
    assert made.to_do(overwrite=True) == ["a.mp4", "b.mp4"]


def test_a_result_that_somebody_edited_is_not_replaced(made: Made) -> None:
    made.note("a.mp4", "done")
    (made.results / "a.mp4.jsonl").write_text("with a remark of mine")
    assert made.to_do() == ["b.mp4"]
    (made.folder / "a.mp4").write_text("changed, too")
    with pytest.raises(OutputError, match=r"a\.mp4\.jsonl exists and was not made by this job"):
        made.plan()


def test_an_own_older_result_may_be_replaced_after_an_interruption(made: Made) -> None:
    made.note("a.mp4", "done")
    (made.folder / "a.mp4").write_text("changed")
    made.note("a.mp4", "interrupted")
    assert made.to_do() == ["a.mp4", "b.mp4"]
