"""Whole processes: killed while packing, and measured while opening."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from pcmoe_det.committee.packing import pack
from tests.committee.packed_samples import save_tiny

pytestmark = [
    pytest.mark.timeout(120),
    pytest.mark.skipif(not Path("/proc/self/status").is_file(), reason="reads /proc"),
]


@pytest.fixture(scope="module")
def child(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What one process reports about both: importing takes most of its time."""
    folder = tmp_path_factory.mktemp("child")
    small, large = folder / "small.safetensors", folder / "large.safetensors"
    save_tiny(small)
    save_tiny(large, embed_dims=48, num_experts=20, fc_channels=2048)
    warm_up = pack(None, small, folder / "warm-up", dtype=torch.float32).path
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
    # Without it glibc keeps freed blocks of up to 32 MiB, and what is measured depends on their order.
    environment["MALLOC_MMAP_THRESHOLD_"] = "131072"
    done = subprocess.run(
        [sys.executable, "-m", "tests.committee.packed_child", *map(str, (warm_up, small, large, folder))],
        cwd=Path(__file__).resolve().parents[2],
        env=environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


def test_killed_at_any_moment_nothing_is_half_a_pack(child: Any) -> None:
    results = child["kills"]
    ends = [result for result in results if "moments" in result]
    assert [end["exit"] for end in ends] == [0, 0]
    assert all(end["moments"] >= 15 for end in ends)  # header, 6 records, 3 files, folders
    kills = [result for result in results if "moment" in result]
    for result in kills:
        assert result["after_next"] == "torch.bfloat16", result
        assert result["only_the_pack_is_left"], result
    for overwrite, before in ((False, "refused"), (True, "torch.float32")):
        # Before the new pack has its name there is none, or the old one; from then on the new one.
        states = [result["after_kill"] for result in kills if result["overwrite"] is overwrite]
        assert {before, "torch.bfloat16"} == set(states)
        assert states == sorted(states, key=lambda state: state != before)


def test_memory_of_packing_and_opening_is_not_that_of_the_experts(child: Any) -> None:
    used = child["memory"]
    mebibyte = 1 << 20
    assert used["experts"] > 110 * mebibyte
    assert used["dense"] > 20 * mebibyte
    # The control: what is measured does see the experts where they are held.
    assert used["loading"] > 0.95 * used["experts"]
    assert used["opening"] < used["dense"] + 8 * mebibyte, used
    assert used["packing"] < used["dense"] + 24 * mebibyte, used
    assert used["reading"] < used["buffers"] + 4 * mebibyte, used
