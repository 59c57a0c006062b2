"""A stream under a committee that is killed: the packed model is what it was, and the next start works."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from pcmoe_det.committee.packing import pack_random
from pcmoe_det.datasets.street_video import StreetVideo
from pcmoe_det.datasets.street_writer import write_clip
from pcmoe_det.models.weights_file import WeightsInfo
from tests.committee.packed_samples import CLASSES, tiny_config

PROJECT = Path(__file__).resolve().parents[2]


def _digests(folder: Path) -> dict[str, str]:
    return {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted(folder.iterdir())}


@pytest.mark.timeout(180)
def test_kill_9_in_mid_stream(tmp_path: Path) -> None:
    info = WeightsInfo(model=tiny_config(num_experts=4), class_names=CLASSES, long_side=96)
    packed = pack_random(info, tmp_path / "packed", dtype=torch.float32).path
    clip = write_clip(tmp_path / "clip.mp4", StreetVideo(3, width=96, height=64, num_frames=300))
    before = _digests(packed)
    lines = tmp_path / "found.jsonl"
    command = [
        *(sys.executable, PROJECT / "tools" / "stream.py", "--source", clip, "--model", packed),
        *("--policy", "pcmoe", "--expert-budget", "0.5", "--jsonl", lines, "--score-threshold", "0"),
    ]
    partial = tmp_path / "found.part.jsonl"
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 120
        while not (partial.exists() and partial.read_bytes().count(b"\n") >= 3):
            assert process.poll() is None, "the stream ended before it could be killed"
            assert time.monotonic() < deadline
            time.sleep(0.02)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert _digests(packed) == before
    kept = partial.read_bytes().splitlines(keepends=True)
    assert all(json.loads(line) for line in kept if line.endswith(b"\n"))
    assert not lines.exists()

    again = subprocess.run(
        [*command, "--overwrite", "--max-frames", "5"], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stderr
    assert [json.loads(line)["frame_index"] for line in lines.read_text().splitlines()] == list(range(5))
    assert not partial.exists()
