"""Worker processes: what they are given, how they end, what becomes of a dead one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pcmoe_det.errors import PcmoeError, UsageError
from pcmoe_det.offline.job import JobOptions, find_sources
from pcmoe_det.offline.local_pool import LocalPool
from pcmoe_det.offline.output_folder import OutputFolder
from pcmoe_det.offline.plan import plan_job
from pcmoe_det.offline.pool import WorkerError, WorkerSetup
from pcmoe_det.offline.report import JobReport
from pcmoe_det.offline.runner import JobRunner
from tests.offline.stand_ins import KILLER_FRAME, StandInOpener, is_running, make_videos, wait_until

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parents[2]

# A job in a process of its own, to be killed: argv is the folder, the output and a folder for pids.
JOB = """
import sys
from pathlib import Path
from tests.offline.stand_ins import StandInOpener
from tests.offline.test_local_pool import run_job
opener = StandInOpener(frame_seconds=0.1, pids=Path(sys.argv[3]))
run_job(Path(sys.argv[1]), Path(sys.argv[2]), opener, workers=2)
"""


@pytest.fixture(autouse=True)
def _nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No process and no temporary folder stays."""
    temporary = tmp_path / "temporary"
    temporary.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    yield
    assert not list(temporary.iterdir())


@pytest.fixture
def pids(tmp_path: Path) -> Path:
    folder = tmp_path / "pids"
    folder.mkdir()
    return folder


def run_job(folder: Path, results: Path, opener: StandInOpener, *, workers: int) -> JobReport:
    options = JobOptions(folder, results)
    with OutputFolder(results) as output:
        plan = plan_job(find_sources(options), options, output)
        setup = WorkerSetup(opener, 3, output.proof_path, output.run_id, folder)
        return JobRunner(options, plan, output, LocalPool(setup, workers=workers)).run()


def started(pids: Path) -> list[int]:
    return [int(path.name) for path in pids.iterdir() if path.name.isdecimal()]


def test_two_workers_share_the_files_and_survive_a_death(tmp_path: Path, pids: Path) -> None:
    folder = make_videos(tmp_path / "in", [f"{n}.mp4" for n in range(6)], frames=3)
    make_videos(folder, ["deadly.mp4"], frames=4, first=KILLER_FRAME - 1)
    deaths = tmp_path / "deaths"
    deaths.mkdir()
    opener = StandInOpener(frame_seconds=0.02, pids=pids, deaths=deaths)
    report = run_job(folder, tmp_path / "out", opener, workers=2)
    assert report.done == 7
    assert len(list((tmp_path / "out").glob("*.jsonl"))) == 7 + 1  # and the status
    assert (
        "the worker died (SIGKILL; was there enough memory?)"
        in (tmp_path / "out" / "status.jsonl").read_text()
    )
    workers = started(pids)
    assert 2 <= len(workers) <= 3  # one died; whether its place was needed again depends on the order
    assert not any(is_running(pid) for pid in workers)
    assert {(pids / str(pid)).read_text() for pid in workers} == {"3 3"}
    # Those that lived closed their model.
    assert len(list(pids.glob("*-closed"))) == len(workers) - 1


@pytest.mark.parametrize(
    ("fault", "kind", "words"),
    [
        ("weights", WorkerError, "^no weights at nowhere.pth; check the path$"),
        ("usage", UsageError, "^--expert-budget 7"),
        ("bug", WorkerError, "cannot be opened: RuntimeError: mat1 and mat2"),
        ("death", WorkerError, r"died \(exit code 3\) while it opened the model, several times"),
    ],
)
def test_a_model_that_cannot_be_opened_ends_the_job(
    tmp_path: Path, pids: Path, fault: str, kind: type[PcmoeError], words: str
) -> None:
    folder = make_videos(tmp_path / "in", ["a.mp4"])
    with pytest.raises(kind, match=words):
        run_job(folder, tmp_path / "out", StandInOpener(pids=pids, fault=fault), workers=1)
    assert not any(is_running(pid) for pid in started(pids))
    assert (tmp_path / "out" / "status.jsonl").read_text() == ""  # no file is to blame


def test_a_worker_that_does_not_see_the_output_folder_refuses(tmp_path: Path, pids: Path) -> None:
    folder = make_videos(tmp_path / "in", ["a.mp4"])
    for proof, run_id, videos, words in (
        (tmp_path / "elsewhere" / "x" / "lock", "r1", folder, "does not see the output folder"),
        (tmp_path / "lock", "r2", folder, "does not see the output folder"),
        (tmp_path / "lock", "r1", tmp_path / "no", "does not see the folder"),
    ):
        (tmp_path / "lock").write_text('{"run": "r1"}')
        pool = LocalPool(WorkerSetup(StandInOpener(pids=pids), 1, proof, run_id, videos), workers=1)
        pool.ensure(1)
        with pytest.raises(WorkerError, match=words):
            for _ in range(100):
                pool.poll(0.2)
        pool.kill()
    assert started(pids) == []


def test_workers_die_with_a_job_that_is_killed(tmp_path: Path, pids: Path) -> None:
    folder = make_videos(tmp_path / "in", ["a.mp4", "b.mp4"], frames=24)
    command = [sys.executable, "-c", JOB, str(folder), str(tmp_path / "out"), str(pids)]
    job = subprocess.Popen(command, cwd=ROOT, env={**os.environ, "TMPDIR": str(tmp_path)})
    try:
        assert wait_until(lambda: len(started(pids)) == 2, seconds=20)
        workers = started(pids)
        # What a terminal and a service manager send to everybody is not for workers.
        for pid in workers:
            blocked = next(
                line for line in Path(f"/proc/{pid}/status").read_text().splitlines() if "SigBlk" in line
            )
            for number in (signal.SIGINT, signal.SIGTERM):
                assert int(blocked.split()[1], 16) >> (number - 1) & 1
    finally:
        job.kill()
        job.wait(10)
    assert wait_until(lambda: not any(is_running(pid) for pid in workers))
