"""The same job on a Ray cluster."""

from __future__ import annotations

import importlib.util
import socket
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pcmoe_det import __version__
from pcmoe_det.errors import UsageError
from pcmoe_det.offline import ray_pool
from pcmoe_det.offline.job import JobOptions, find_sources
from pcmoe_det.offline.output_folder import OutputFolder
from pcmoe_det.offline.plan import plan_job
from pcmoe_det.offline.pool import WorkerFault, WorkerSetup
from pcmoe_det.offline.ray_pool import (
    ClusterShape,
    RayPool,
    RayWorker,
    check_ray,
    connect,
    disconnect,
    share_cluster,
)
from pcmoe_det.offline.report import JobReport
from pcmoe_det.offline.runner import JobRunner
from tests.offline.stand_ins import KILLER_FRAME, StandInOpener, is_running, make_videos, wait_until

needs_ray = pytest.mark.skipif(
    importlib.util.find_spec("ray") is None, reason="the package ray is not installed (pcmoe_det[ray])"
)


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    with pytest.raises(UsageError, match=r"--ray needs the package ray.*pip install 'pcmoe_det\[ray\]'"):
        check_ray()


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "shape"),
    [
        ([4, 4], None, None, ClusterShape(2, 4)),
        ([8, 2], None, None, ClusterShape(2, 2)),
        ([4, 4], 4, None, ClusterShape(4, 2)),
        ([4, 4], 3, None, ClusterShape(3, 2)),
        ([4, 4], 1, None, ClusterShape(1, 4)),
        ([4, 3], None, 2, ClusterShape(3, 2)),
        ([0, 2], None, None, ClusterShape(1, 2)),
        ([1, 1], 2, None, ClusterShape(2, 1)),
    ],
)
def test_how_a_job_spreads(
    cores: list[int], workers: int | None, threads: int | None, shape: ClusterShape
) -> None:
    assert share_cluster(cores, workers=workers, threads=threads) == shape


@pytest.mark.parametrize(
    ("cores", "workers", "threads", "words"),
    [
        ([2, 2], 5, None, "room for 4 workers of 1 threads"),
        ([2, 2], None, 3, "room for 0 workers of 3 threads"),
        ([2, 2], 3, 2, "room for 2 workers of 2 threads each .cores by machine: 2, 2."),
        ([0], None, None, "has no cores"),
    ],
)
def test_more_than_there_is_is_refused(
    cores: list[int], workers: int | None, threads: int | None, words: str
) -> None:
    with pytest.raises(UsageError, match=words):
        share_cluster(cores, workers=workers, threads=threads)


@pytest.fixture(scope="module")
def cluster() -> Iterator[str]:
    """The address of two nodes with one core each, on the loopback address of this machine."""
    settings = {
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # with 0 Ray uses the loopback address, on Linux too
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": str(Path(__file__).resolve().parents[2]),  # for the stand-in detector
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        from ray._private import ray_constants
        from ray.cluster_utils import Cluster

        patch.setattr(ray_constants, "ENABLE_RAY_CLUSTER", False)  # if it was imported before
        node = {"num_cpus": 1, "object_store_memory": 80_000_000, "include_dashboard": False}
        cluster = Cluster(initialize_head=True, head_node_args=node)
        try:
            cluster.add_node(**node)
            assert cluster.address.startswith("127.0.0.1:")
            yield cluster.address
        finally:
            cluster.shutdown()


def run_job(folder: Path, results: Path, opener: StandInOpener, address: str) -> JobReport:
    options = JobOptions(folder, results)
    cores = connect(address)
    try:
        shape = share_cluster(cores, workers=None, threads=None)
        assert shape == ClusterShape(2, 1)
        with OutputFolder(results) as output:
            plan = plan_job(find_sources(options), options, output)
            setup = WorkerSetup(opener, shape.threads, output.proof_path, output.run_id, folder)
            return JobRunner(options, plan, output, RayPool(setup, workers=shape.workers)).run()
    finally:
        disconnect()


@needs_ray
@pytest.mark.timeout(120)
def test_two_actors_share_the_files_and_survive_a_death(tmp_path: Path, cluster: str) -> None:
    folder = make_videos(tmp_path / "in", [f"{n}.mp4" for n in range(5)], frames=3)
    make_videos(folder, ["deadly.mp4"], frames=4, first=KILLER_FRAME - 1)
    (folder / "broken.mp4").write_bytes(b"no video" * 20)
    pids, deaths = tmp_path / "pids", tmp_path / "deaths"
    pids.mkdir()
    deaths.mkdir()
    opener = StandInOpener(frame_seconds=0.05, pids=pids, deaths=deaths)
    report = run_job(folder, tmp_path / "out", opener, cluster)
    assert (report.done, report.files) == (6, 7)
    assert [status.source for status in report.failed] == ["broken.mp4"]
    assert "the worker died" in (tmp_path / "out" / "status.jsonl").read_text()
    assert len(list((tmp_path / "out").glob("*.mp4.jsonl"))) == 6
    workers = [int(path.name) for path in pids.iterdir() if path.name.isdecimal()]
    assert 2 <= len(workers) <= 3  # one model each; one worker died
    assert {(pids / str(pid)).read_text() for pid in workers} == {"1 1"}
    assert wait_until(lambda: not any(is_running(pid) for pid in workers))


def test_an_actor_says_why_it_cannot_start(tmp_path: Path) -> None:
    proof = tmp_path / "lock"
    proof.write_text('{"run": "r1"}')

    def open_with(
        fault: str | None = None, *, run_id: str = "r1", version: str = __version__, folder: Path = tmp_path
    ) -> WorkerFault | None:
        opener = StandInOpener(fault=fault)
        return RayWorker().open(WorkerSetup(opener, 1, proof, run_id, folder), version)

    assert open_with() is None
    for fault, exit_code, words in (
        (open_with(run_id="r2"), 1, "does not see the output folder of this run"),
        (open_with(folder=tmp_path / "no"), 1, "does not see the folder"),
        (open_with(version="0.0.7"), 1, f"has pcmoe_det {__version__}, this job is of 0.0.7"),
        (open_with("weights"), 1, "no weights at nowhere.pth"),
        (open_with("usage"), 2, "--expert-budget 7"),
        (open_with("bug"), 1, "the model cannot be opened: RuntimeError"),
    ):
        assert fault is not None
        assert fault.exit_code == exit_code
        assert words in fault.message


@needs_ray
@pytest.mark.timeout(60)
def test_no_cluster_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    def init(**_: object) -> None:
        raise ConnectionError(
            "Could not find any running Ray instance.\nPlease specify the one to connect to"
        )

    import ray

    monkeypatch.setattr(ray, "init", init)
    with pytest.raises(
        UsageError, match=r"no Ray cluster at --ray auto \(Could not find any running Ray inst"
    ):
        connect("auto")


@needs_ray
@pytest.mark.timeout(60)
def test_an_address_where_nothing_listens() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with pytest.raises(UsageError, match=rf"no Ray cluster at --ray 127.0.0.1:{port} .*refused"):
        connect(f"127.0.0.1:{port}")


def test_ray_is_imported_only_where_it_is_used() -> None:
    assert ray_pool.__name__ in sys.modules
    code = "import sys, pcmoe_det.offline.ray_pool; raise SystemExit('ray' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False, timeout=30).returncode == 0
