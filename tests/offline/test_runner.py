"""A run of a job, with workers that live in this process."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcmoe_det.errors import OutputError
from pcmoe_det.offline.job import JobOptions, find_sources
from pcmoe_det.offline.output_folder import OutputFolder
from pcmoe_det.offline.plan import plan_job, recover
from pcmoe_det.offline.pool import PoolEvent
from pcmoe_det.offline.report import JobReport
from pcmoe_det.offline.runner import JobProgress, JobRunner
from pcmoe_det.offline.status import FileStatus
from pcmoe_det.offline.worker import FileOutcome, FileTask, process_file
from tests.offline.stand_ins import StandInOpener, make_videos
from tests.streaming.stand_ins import read_clip

pytestmark = pytest.mark.timeout(30)


class InlinePool:
    """One worker that processes its file when it is asked for news.

    ``on_task`` is called with each file's name before it is processed; it may return why the worker dies.
    """

    def __init__(
        self, on_task: Callable[[str], str | None] = lambda _: None, opener: StandInOpener | None = None
    ) -> None:
        self.task: FileTask | None = None
        self.asked: list[str] = []
        self.ended: list[str] = []
        self._on_task, self._opener = on_task, opener or StandInOpener()

    @property
    def idle(self) -> int:
        return int(self.task is None)

    def ensure(self, files_left: int) -> None:
        assert files_left > 0

    def submit(self, task: FileTask) -> None:
        self.task = task
        self.asked.append(task.source.name)

    def poll(self, timeout_seconds: float) -> list[PoolEvent]:
        task, self.task = self.task, None
        if task is None:
            return []
        death = self._on_task(task.source.name)
        if death is not None:
            return [PoolEvent(task.attempt, frames=2), PoolEvent(task.attempt, death=death)]
        with self._opener(1) as detector:
            messages = list(process_file(task, detector))
        return [
            PoolEvent(task.attempt, outcome=message)
            if isinstance(message, FileOutcome)
            else PoolEvent(task.attempt, frames=message)
            for message in messages
        ]

    def kill(self) -> None:
        self.ended.append("killed")

    def close(self) -> None:
        self.ended.append("closed")


class Job:
    """A folder of clips and its output folder."""

    def __init__(self, tmp_path: Path, *names: str, **options) -> None:
        self.folder = make_videos(tmp_path / "in", names or ("a.mp4", "sub/b.mp4"))
        self.results = tmp_path / "out"
        self.options = JobOptions(self.folder, self.results, **options)

    def run(self, pool: InlinePool, **settings) -> JobReport:
        with OutputFolder(self.results) as output:
            recover(output)
            plan = plan_job(find_sources(self.options), self.options, output)
            report = JobRunner(self.options, plan, output, pool, **settings).run()
            assert output.unended_attempts() == frozenset()
        return report

    def status(self) -> dict[str, dict[str, object]]:
        """Each file's last line, read without our own reader."""
        lines = [json.loads(line) for line in (self.results / "status.jsonl").read_text().splitlines()]
        return {line["source"]: line for line in lines if "source" in line}

    def written(self) -> list[str]:
        """Names under the output folder, without the job's own."""
        return sorted(
            str(path.relative_to(self.results))
            for path in self.results.rglob("*")
            if path.is_file() and ".pcmoe-process" not in path.parts and path.name != "status.jsonl"
        )


def lines_of(path: Path) -> list[int]:
    return [json.loads(line)["frame_index"] for line in path.read_text(encoding="utf-8").splitlines()]


def test_every_file_becomes_records_and_a_video(tmp_path: Path) -> None:
    job = Job(tmp_path, video=True, score_threshold=0.5, max_frames=4)
    pool, seen = InlinePool(), list[JobProgress]()
    report = job.run(pool, on_progress=seen.append)
    assert job.written() == ["a.mp4.jsonl", "a.mp4.mp4", "sub/b.mp4.jsonl", "sub/b.mp4.mp4"]
    assert lines_of(job.results / "sub" / "b.mp4.jsonl") == [0, 1, 2, 3]
    record = json.loads((job.results / "a.mp4.jsonl").read_text().splitlines()[0])
    assert record["source"] == str(job.folder / "a.mp4")
    assert [found["category"] for found in record["detections"]] == ["car"]  # the other scores 0.1
    assert len(read_clip(job.results / "a.mp4.mp4")[0]) == 4
    status = job.status()["sub/b.mp4"]
    assert (status["state"], status["frames"]) == ("done", 4)
    size = (job.results / "sub" / "b.mp4.jsonl").stat().st_size
    first = status["outputs"][0]
    assert (first["name"], first["bytes"]) == ("sub/b.mp4.jsonl", size)
    assert (report.done, report.files, report.failed, report.stopped) == (2, 2, (), False)
    assert (seen[-1].files_ended, seen[-1].frames) == (2, 8)
    assert pool.ended == ["closed"]
    text = report.as_text()
    assert "done                 2           8" in text
    again = InlinePool()
    assert job.run(again).done == 2
    assert again.asked == []


def test_a_folder_of_pictures_is_one_source(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4", pictures=True)
    for n in (1, 2, 10):
        (job.folder / "street").mkdir(exist_ok=True)
        cv2.imwrite(str(job.folder / "street" / f"{n}.png"), np.full((32, 32, 3), n, np.uint8))
    assert job.run(InlinePool()).done == 2
    assert job.written() == ["a.mp4.jsonl", "street.jsonl"]
    assert lines_of(job.results / "street.jsonl") == [0, 1, 2]
    cv2.imwrite(str(job.folder / "street" / "11.png"), np.zeros((32, 32, 3), np.uint8))
    pool = InlinePool()
    job.run(pool)
    assert pool.asked == ["street"]
    assert lines_of(job.results / "street.jsonl") == [0, 1, 2, 3]


def test_a_broken_file_does_not_stop_the_rest(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4", "c.mp4")
    (job.folder / "b.mp4").write_bytes(b"this is no video" * 50)
    (job.folder / "d.mp4").symlink_to("d.mp4")
    report = job.run(InlinePool())
    assert job.written() == ["a.mp4.jsonl", "c.mp4.jsonl"]
    assert {name: line["state"] for name, line in job.status().items()} == {
        "a.mp4": "done", "b.mp4": "failed", "c.mp4": "done", "d.mp4": "failed",
    }  # fmt: skip
    assert "is not a video" in str(job.status()["b.mp4"]["error"])
    assert [status.source for status in report.failed] == ["b.mp4", "d.mp4"]
    assert "b.mp4: " in report.as_text()


def test_what_a_failing_detector_leaves_is_kept_until_there_is_better(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4")
    report = job.run(InlinePool(opener=StandInOpener(raises_at=3)))
    assert "the stand-in has had enough" in str(report.failed[0].error)
    assert job.written() == ["a.mp4.part.jsonl"]
    assert lines_of(job.results / "a.mp4.part.jsonl") == [0, 1, 2]
    assert job.status()["a.mp4"]["partial"] == ["a.mp4.part.jsonl"]
    assert job.run(InlinePool()).failed[0].source == "a.mp4"  # not tried again unasked
    job.options = JobOptions(job.folder, job.results, retry_failed=True)
    assert job.run(InlinePool()).done == 1
    assert job.written() == ["a.mp4.jsonl"]


def test_a_second_failure_that_leaves_nothing_keeps_what_the_first_one_left(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4")
    job.run(InlinePool(opener=StandInOpener(raises_at=3)))
    whole = (job.folder / "a.mp4").read_bytes()
    job.options = JobOptions(job.folder, job.results, retry_failed=True)
    for content in (b"this is no video" * 50, b"nor is this" * 50):
        (job.folder / "a.mp4").write_bytes(content)
        assert "is not a video" in str(job.run(InlinePool()).failed[0].error)
        assert lines_of(job.results / "a.mp4.part.jsonl") == [0, 1, 2]
        assert job.status()["a.mp4"]["partial"] == ["a.mp4.part.jsonl"]
    (job.folder / "a.mp4").write_bytes(whole)
    job.run(InlinePool(opener=StandInOpener(raises_at=1)))
    assert lines_of(job.results / "a.mp4.part.jsonl") == [0]
    assert job.run(InlinePool()).done == 1
    assert job.written() == ["a.mp4.jsonl"]


def test_a_worn_worker_says_so(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4")
    task = FileTask("a1", job.folder / "a.mp4", tmp_path, video=False, score_threshold=0, max_frames=None)
    with StandInOpener(raises_at=3)(1) as detector:
        failed = list(process_file(task, detector))[-1]
    with StandInOpener()(1) as detector:
        done = list(process_file(task, detector))[-1]
    assert isinstance(failed, FileOutcome)
    assert isinstance(done, FileOutcome)
    assert (failed.worn, done.worn) == (True, False)


@pytest.mark.parametrize("deaths", [1, 2])
def test_a_file_whose_worker_dies_is_tried_once_more_at_the_end(tmp_path: Path, deaths: int) -> None:
    job = Job(tmp_path, "a.mp4", "b.mp4", "c.mp4")
    left = [deaths]

    def die(name: str) -> str | None:
        if name != "a.mp4" or not left[0]:
            return None
        left[0] -= 1
        return "the worker died (SIGKILL)"

    pool = InlinePool(die)
    report = job.run(pool)
    assert pool.asked == ["a.mp4", "b.mp4", "c.mp4", "a.mp4"]
    states = [
        (line["state"], line.get("retry", False))
        for line in map(json.loads, (job.results / "status.jsonl").read_text().splitlines())
        if line.get("source") == "a.mp4"
    ]
    last = ("done", False) if deaths == 1 else ("failed", False)
    assert states == [("started", False), ("failed", True), ("started", False), last]
    assert len(report.failed) == deaths - 1
    assert report.done == 4 - deaths
    if deaths == 2:
        assert job.status()["a.mp4"]["error"] == "the worker died (SIGKILL)"
        assert job.status()["a.mp4"]["frames"] == 2


def test_a_second_try_that_was_not_reached_is_made_by_the_next_run(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4", "b.mp4")
    deaths: list[str] = []

    def die(name: str) -> str | None:
        deaths.append(name)
        return "the worker died" if name == "a.mp4" else None

    report = job.run(InlinePool(die), should_stop=lambda: "b.mp4" in deaths)
    assert (report.stopped, report.done, len(report.failed), report.not_started) == (True, 1, 1, 0)
    pool = InlinePool()
    assert job.run(pool).done == 2
    assert pool.asked == ["a.mp4"]


def test_a_stop_keeps_what_is_whole_and_notes_the_rest(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4", "b.mp4", "c.mp4")

    class Slow(InlinePool):
        def poll(self, timeout_seconds: float) -> list[PoolEvent]:
            if self.task is not None and self.task.source.name == "b.mp4":
                (self.task.staging / "result.part.jsonl").write_text("half")
                return [PoolEvent(self.task.attempt, frames=3)]
            return super().poll(timeout_seconds)

    pool = Slow()
    seen: list[JobProgress] = []
    report = job.run(pool, should_stop=lambda: bool(seen) and seen[-1].frames == 9, on_progress=seen.append)
    assert pool.ended == ["killed"]
    assert job.written() == ["a.mp4.jsonl"]
    assert (report.stopped, report.done, report.not_started) == (True, 1, 1)
    assert [(status.source, status.frames) for status in report.interrupted] == [("b.mp4", 3)]
    assert {name: line["state"] for name, line in job.status().items()} == {
        "a.mp4": "done", "b.mp4": "interrupted",
    }  # fmt: skip
    assert "interrupted" in report.as_text()
    assert "not started          1" in report.as_text()
    again = InlinePool()
    assert job.run(again).done == 3
    assert again.asked == ["b.mp4", "c.mp4"]


def test_a_file_that_somebody_puts_in_the_way_is_not_replaced(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4")

    def put(name: str) -> None:
        (job.results / "a.mp4.jsonl").write_text("somebody's own")

    report = job.run(InlinePool(put))
    assert "was not made by this job" in str(report.failed[0].error)
    assert str(report.failed[0].error).endswith("; what was made is kept as a.mp4.part.jsonl")
    assert (job.results / "a.mp4.jsonl").read_text() == "somebody's own"
    assert lines_of(job.results / "a.mp4.part.jsonl") == [0, 1, 2, 3, 4, 5]
    assert job.status()["a.mp4"]["partial"] == ["a.mp4.part.jsonl"]
    (job.results / "a.mp4.jsonl").unlink()
    job.options = JobOptions(job.folder, job.results, retry_failed=True)
    assert job.run(InlinePool()).done == 1
    assert job.written() == ["a.mp4.jsonl"]


def test_a_whole_result_that_cannot_be_renamed_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, "a.mp4", video=True)
    replace = Path.replace

    def refuse(path: Path, target: Path) -> Path:
        if target == job.results / "a.mp4.mp4":
            raise OSError(5, "Input/output error")
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", refuse)
    report = job.run(InlinePool())
    assert "cannot be moved to" in str(report.failed[0].error)
    assert job.written() == ["a.mp4.jsonl", "a.mp4.part.mp4"]
    assert len(read_clip(job.results / "a.mp4.part.mp4")[0]) == 6
    monkeypatch.undo()
    job.options = JobOptions(job.folder, job.results, video=True, retry_failed=True)
    assert job.run(InlinePool()).done == 1
    assert job.written() == ["a.mp4.jsonl", "a.mp4.mp4"]


def test_a_file_whose_place_is_taken_is_not_begun(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4", "b.mp4", "sub/c.mp4")

    def put(name: str) -> None:
        (job.results / "b.mp4.jsonl").write_text("somebody's own")

    pool = InlinePool(put)
    report = job.run(pool)
    assert pool.asked == ["a.mp4", "c.mp4"]
    assert [(status.source, status.frames) for status in report.failed] == [("b.mp4", 0)]
    assert "was not made by this job; move it away" in str(report.failed[0].error)
    assert job.status()["b.mp4"]["state"] == "failed"
    assert job.written() == ["a.mp4.jsonl", "b.mp4.jsonl", "sub/c.mp4.jsonl"]


def test_a_source_that_changes_while_it_is_read_fails_and_is_done_again(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4")
    video = job.folder / "a.mp4"
    task = FileTask("a1", video, tmp_path, video=False, score_threshold=0, max_frames=None)
    with StandInOpener()(1) as detector:
        real = detector.detect

        def detect(images):
            os.utime(video, ns=(7, 7))
            return real(images)

        detector.detect = detect
        outcome = list(process_file(task, detector))[-1]
    assert isinstance(outcome, FileOutcome)
    assert "changed while it was read" in str(outcome.error)
    with OutputFolder(job.results) as output:
        output.journal.append(
            FileStatus("a.mp4", "failed", "a1", "s1", outcome.fingerprint, error=outcome.error)
        )
    assert job.run(InlinePool()).done == 1


def test_a_folder_that_cannot_be_made_fails_its_files_only(tmp_path: Path) -> None:
    job = Job(tmp_path, "a.mp4", "sub/b.mp4")
    pool = InlinePool(lambda name: (job.results / "sub").touch() if name == "a.mp4" else None)
    report = job.run(pool)
    assert report.done == 1
    assert "cannot be" in str(report.failed[0].error)
    assert pool.asked == ["a.mp4"]


def test_a_status_that_cannot_be_written_ends_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = Job(tmp_path, "a.mp4", "b.mp4")
    pool = InlinePool()

    def fill_the_disk(name: str) -> None:
        def write(fd: int, data: object) -> int:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "write", write)

    pool._on_task = fill_the_disk
    with pytest.raises(OutputError, match=r"status\.jsonl cannot be written: No space left"):
        job.run(pool)
    monkeypatch.undo()
    assert pool.ended == ["killed"]
    assert job.written() == []
    assert job.run(InlinePool()).done == 2
