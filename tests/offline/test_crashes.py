"""A job that is killed again and again, at any moment, loses nothing and does nothing twice."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.offline.stand_ins import make_videos

ROOT = Path(__file__).resolve().parents[2]
FRAMES = 5
FILES = 18
KILLS = 5

# The command with a stand-in detector in its workers; argv is what follows its name.
COMMAND = """
import sys
from pcmoe_det.cli import process
from tests.offline.stand_ins import StandInOpener
process.ModelOpener = lambda arguments: StandInOpener(frame_seconds=0.01)
raise SystemExit(process.entry())
"""


def results_in(folder: Path) -> dict[str, tuple[int, int]]:
    """What tells each result from one that was made again: its number in the file system, and its time."""
    found = {}
    for path in folder.rglob("*.mp4.*"):
        if ".pcmoe-process" not in path.parts:
            status = path.stat()
            found[str(path.relative_to(folder))] = (status.st_ino, status.st_mtime_ns)
    return found


@pytest.mark.timeout(120)
def test_kills_at_random_moments(tmp_path: Path) -> None:
    names = [f"{n % 3}/{n:02}.mp4" for n in range(FILES)]
    folder = make_videos(tmp_path / "in", names, frames=FRAMES)
    results = tmp_path / "out"
    options = [str(folder), "--output", str(results), "--workers", "2", "--video"]
    command = [sys.executable, "-c", COMMAND, *options]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    moments = random.Random(5)
    seen: dict[str, tuple[int, int]] = {}
    kills = 0
    for number in range(KILLS):
        job = subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.DEVNULL)
        began = len(results_in(results)) if results.exists() else 0
        while job.poll() is None and results.exists() is False:
            time.sleep(0.01)
        # The first two kills come while results appear, so that work is left to lose; of the others half do,
        # and half come at any time, also while it starts, recovers or has nothing left to do.
        if number < 2 or moments.random() < 0.5:
            while job.poll() is None and len(results_in(results)) < began + 3:
                time.sleep(0.005)
            time.sleep(moments.uniform(0.0, 0.05))
        else:
            time.sleep(moments.uniform(0.0, 1.5))
        kills += job.poll() is None
        job.kill()
        job.wait(10)
        now = results_in(results)
        assert now.items() >= seen.items()  # nothing was lost or made again
        seen = now
    assert kills >= 2
    last = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert last.returncode == 0, last.stderr
    assert results_in(results).items() >= seen.items()
    for name in names:
        lines = (results / f"{name}.jsonl").read_text().splitlines()
        assert [json.loads(line)["frame_index"] for line in lines] == list(range(FRAMES))
        assert (results / f"{name}.mp4").stat().st_size > 0
    assert len(results_in(results)) == 2 * FILES
    states: dict[str, list[str]] = {}
    for line in (results / "status.jsonl").read_text().splitlines():
        record = json.loads(line)
        if "source" in record:
            states.setdefault(record["source"], []).append(record["state"])
    assert sorted(states) == sorted(names)
    for history in states.values():
        assert history.count("done") == 1
        assert history[-1] == "done"
        assert set(history) <= {"started", "interrupted", "done"}
    assert list((results / ".pcmoe-process" / "attempts").iterdir()) == []
