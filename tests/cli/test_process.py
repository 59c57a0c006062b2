"""``tools/process.py``: what it refuses, how it ends, and a real model in its workers."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from pcmoe_det.cli import process as command
from pcmoe_det.errors import DataError, PcmoeError
from pcmoe_det.offline.worker import FileOutcome, FileTask, process_file
from pcmoe_det.structures import Detections
from tests.offline.stand_ins import StandInOpener, is_running, make_videos, wait_until
from tests.streaming.stand_ins import StandInDetector

pytestmark = pytest.mark.timeout(60)

ROOT = Path(__file__).resolve().parents[2]
NO_WORKER = StandInOpener(fault="bug")  # would end the job

# The command with a slow stand-in; argv is a folder for the workers' pids, and the command's own.
SLOW = """
import sys
from pathlib import Path
from pcmoe_det.cli import process
from tests.offline.stand_ins import StandInOpener
opener = StandInOpener(frame_seconds=0.2, pids=Path(sys.argv.pop(1)))
process.ModelOpener = lambda arguments: opener
raise SystemExit(process.entry())
"""


def run(*options: object, opener: StandInOpener | None = None) -> int:
    arguments = command._parser().parse_args([str(option) for option in options])
    return command.process(arguments, opener=opener or StandInOpener())


def refused(*options: object, opener: StandInOpener = NO_WORKER) -> str:
    """``exit code: message`` of a job that cannot be run, or in which files failed."""
    with pytest.raises(PcmoeError) as caught:
        run(*options, opener=opener)
    assert "\n" not in str(caught.value)
    return f"{caught.value.exit_code}: {caught.value}"


def states(results: Path) -> dict[str, str]:
    lines = [json.loads(line) for line in (results / "status.jsonl").read_text().splitlines()]
    return {line["source"]: line["state"] for line in lines if "source" in line}


def test_a_job_from_beginning_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = make_videos(tmp_path / "in", ["a.mp4", "sub/a b.mp4"])
    make_videos(folder, ["a.avi"])
    (folder / "broken.mp4").write_bytes(b"no video" * 20)
    results = tmp_path / "out"
    options = (folder, "--output", results, "--video")
    message = refused(*options, "--workers", 2, opener=StandInOpener())
    assert message == f"1: 1 of 4 files failed; {results / 'status.jsonl'} says why"
    printed = capsys.readouterr()
    assert "done                 3          18" in printed.out
    assert "broken.mp4: " in printed.out
    assert printed.err == ""  # no bar where there is no terminal
    assert {str(path.relative_to(results)) for path in results.rglob("*.*") if path.is_file()} == {
        "status.jsonl", "a.avi.jsonl", "a.avi.mp4", "a.mp4.jsonl", "a.mp4.mp4", "sub/a b.mp4.jsonl",
        "sub/a b.mp4.mp4",
    }  # fmt: skip
    # Nothing is left to do: no worker starts.
    assert "1 in earlier runs; --retry-failed tries them again" in refused(*options)
    assert "done before          3          18" in capsys.readouterr().out
    (folder / "broken.mp4").unlink()
    make_videos(folder, ["broken.mp4"])
    assert run(*options, "--retry-failed") == 0
    assert set(states(results).values()) == {"done"}
    assert run(*options, opener=NO_WORKER) == 0


def test_what_cannot_work_is_refused_before_a_worker_starts(tmp_path: Path) -> None:
    folder = make_videos(tmp_path / "in", ["a.mp4"])
    results = tmp_path / "out"
    assert refused(tmp_path / "no", "--output", results).startswith("1: ")
    assert "2: --output" in refused(folder, "--output", folder)
    assert "holds no *.mkv" in refused(folder, "--output", results, "--glob", "*.mkv")
    assert "2: --trace records one stream" in refused(folder, "--output", results, "--trace", "t")
    assert "2: --update-period needs --policy" in refused(folder, "--output", results, "--update-period", 2)
    assert not results.exists()
    results.mkdir()
    (results / "a.mp4.jsonl").write_text("somebody's own")
    assert "use --overwrite to replace" in refused(folder, "--output", results)
    assert run(folder, "--output", results, "--overwrite") == 0
    assert (results / "a.mp4.jsonl").read_text().startswith("{")
    message = refused(folder, "--output", results, "--score-threshold", 0.7)
    assert message.startswith("2: ")
    assert "(score_threshold was 0.3 and is 0.7)" in message
    message = refused(folder, "--output", results, "--model", tmp_path / "weights.pth")
    assert f"model was shipped with 0.1.0 and is {tmp_path / 'weights.pth'}" in message


def test_without_ray_it_says_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda _: None)
    message = refused(make_videos(tmp_path / "in", ["a.mp4"]), "--output", tmp_path / "out", "--ray", "auto")
    assert message.startswith("2: --ray needs the package ray")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_stop_ends_soon_and_the_next_run_goes_on(tmp_path: Path, number: signal.Signals) -> None:
    folder = make_videos(tmp_path / "in", ["a.mp4"], frames=1)
    make_videos(folder, ["b.mp4", "c.mp4", "d.mp4"], frames=24)
    pids, results = tmp_path / "pids", tmp_path / "out"
    pids.mkdir()
    options = [str(folder), "--output", str(results), "--workers", "2"]
    job = subprocess.Popen(
        [sys.executable, "-c", SLOW, str(pids), *options],
        cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True,
        env={**os.environ, "TMPDIR": str(tmp_path)},
    )  # fmt: skip
    try:
        assert wait_until((results / "a.mp4.jsonl").exists, seconds=30)
        assert "is being written by another process" in refused(*options)
        os.killpg(job.pid, number)  # as a terminal and a service manager do
        out, err = job.communicate(timeout=10)  # the files would take another 7 s and more
    finally:
        job.kill()
    assert job.returncode == 130
    assert err == "interrupted with 1 of 4 files done; the same command goes on\n"
    assert "not started" in out
    workers = [int(path.name) for path in pids.iterdir()]
    assert len(workers) == 2
    assert not any(is_running(pid) for pid in workers)
    assert [path.name for path in results.iterdir() if path.name.endswith("mp4.jsonl")] == ["a.mp4.jsonl"]
    after = states(results)
    assert (after["a.mp4"], after["b.mp4"], "d.mp4" in after) == ("done", "interrupted", False)
    assert run(*options, opener=StandInOpener()) == 0
    assert set(states(results).values()) == {"done"}


def test_help_needs_no_library(tmp_path: Path) -> None:
    code = (
        "import sys; from pcmoe_det.cli import process; process._parser().format_help(); "
        "raise SystemExit(any(name in sys.modules for name in ('torch', 'av', 'cv2', 'numpy', 'ray')))"
    )
    assert subprocess.run([sys.executable, "-c", code], check=False, cwd=ROOT, timeout=30).returncode == 0


def save_tiny(path: Path) -> Path:
    """Weights of a small detector with experts."""
    from pcmoe_det.models.weights_file import WeightsInfo, save_weights
    from tests.committee.packed_samples import CLASSES, random_detector, tiny_config

    info = WeightsInfo(model=tiny_config(num_experts=4), class_names=CLASSES, long_side=96)
    save_weights(path, random_detector(info).state_dict(), info)
    return path


def test_a_packed_model_under_a_budget(tmp_path: Path) -> None:
    import torch

    from pcmoe_det.committee.packing import pack

    pack(None, save_tiny(tmp_path / "tiny.safetensors"), tmp_path / "packed", dtype=torch.float32)
    folder = make_videos(tmp_path / "in", ["a.mp4", "b.mp4"], frames=3)
    options = [
        folder, "--output", tmp_path / "out", "--model", tmp_path / "packed", "--policy", "pcmoe",
        "--expert-budget", "0.5", "--score-threshold", "0",
    ]  # fmt: skip
    arguments = command._parser().parse_args([str(option) for option in options])
    pickle.dumps(command.ModelOpener(arguments))
    assert command.process(arguments) == 0
    for name in ("a.mp4", "b.mp4"):
        records = [json.loads(line) for line in (tmp_path / "out" / f"{name}.jsonl").read_text().splitlines()]
        assert [record["frame_index"] for record in records] == [0, 1, 2]
        assert all(record["accounting"]["resident_expert_bytes"] > 0 for record in records)


@pytest.mark.timeout(240)
def test_results_do_not_depend_on_the_files_before(tmp_path: Path) -> None:
    weights = save_tiny(tmp_path / "tiny.safetensors")
    folder = make_videos(tmp_path / "in", ["a.mp4"], frames=8)
    make_videos(folder, ["b.mp4"], frames=8, first=8)
    (tmp_path / "alone").mkdir()
    (folder / "b.mp4").rename(tmp_path / "alone" / "b.mp4")
    options = (
        "--model", weights, "--policy", "pcmoe", "--expert-budget", "0.5", "--importance", "random",
        "--margin", "0", "--update-period", "3", "--score-threshold", "0", "--threads", "1",
    )  # fmt: skip
    found = []
    for videos in (tmp_path / "alone", folder):
        if videos == folder:
            (folder / "b.mp4").write_bytes((tmp_path / "alone" / "b.mp4").read_bytes())
        output = tmp_path / f"out {videos.name}"
        arguments = [str(option) for option in (videos, "--output", output, *options)]
        assert command.process(command._parser().parse_args(arguments)) == 0
        lines = [json.loads(line) for line in (output / "b.mp4.jsonl").read_text().splitlines()]
        found.append([(line["detections"], line["accounting"]["swaps"]) for line in lines])
    assert found[0] == found[1]
    assert sum(swaps for _, swaps in found[0]) > 0


def test_loads_that_fail_are_in_the_status(tmp_path: Path) -> None:
    class Failing(StandInDetector):
        def start_anew(self) -> None:
            self.failed = 3

        def failed_loads(self) -> int:
            return self.failed

        def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
            self.failed += 1
            return super().detect(images)

    folder = make_videos(tmp_path / "in", ["a.mp4"])
    task = FileTask("a1", folder / "a.mp4", tmp_path, video=False, score_threshold=0, max_frames=None)
    outcome = list(process_file(task, Failing()))[-1]
    assert isinstance(outcome, FileOutcome)
    assert (outcome.error, outcome.faults) == (None, {"failed_load": 6})


def test_a_detector_that_cannot_start_anew_fails_the_file_and_is_not_used_again(tmp_path: Path) -> None:
    class Stuck(StandInDetector):
        def start_anew(self) -> None:
            raise DataError("a read has not ended")

        def failed_loads(self) -> int:
            return 0

    folder = make_videos(tmp_path / "in", ["a.mp4"])
    task = FileTask("a1", folder / "a.mp4", tmp_path, video=False, score_threshold=0, max_frames=None)
    (outcome,) = process_file(task, Stuck())
    assert isinstance(outcome, FileOutcome)
    assert (outcome.error, outcome.worn, outcome.frames) == ("a read has not ended", True, 0)
