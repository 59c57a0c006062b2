"""``pcmoe-bench``: arguments that cannot be."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from pcmoe_det.cli.bench_runs import check_soak
from pcmoe_det.committee.packing import pack_random
from pcmoe_det.errors import DataError
from pcmoe_det.models.weights_file import WeightsInfo
from tests.cli.commands import run_command
from tests.committee.packed_samples import CLASSES, tiny_config


@pytest.mark.parametrize(
    "options",
    [
        ["soak", "packed", "--frames", "0"],
        ["committee", "packed", "--frames", "-1"],
        ["backbone", "--rounds", "0"],
        ["backbone", "--embed-dims", "0"],
    ],
)
def test_counts_are_whole_numbers_from_1(options: list[str]) -> None:
    outcome = run_command("bench", *options)
    assert outcome.code == 2
    assert f"argument {options[-2]}: '{options[-1]}' is not a whole number from 1" in outcome.err


def test_a_bandwidth_without_a_unit_is_refused(tmp_path: Path) -> None:
    outcome = run_command("bench", "committee", tmp_path, "--store-bandwidth", "0.5")
    assert outcome.code == 2
    assert "--store-bandwidth '0.5' is not understood" in outcome.error_line()


def test_a_soak_is_held_against_what_the_store_counted(tmp_path: Path) -> None:
    info = WeightsInfo(model=tiny_config(num_experts=4), class_names=CLASSES, long_side=96)
    pack_random(info, tmp_path / "packed", dtype=torch.float32)
    path = tmp_path / "soak.json"
    options = ("soak", tmp_path / "packed", "--frames", 12, "--expert-budget", "0.8")
    assert run_command("bench", "--json", path, *options).code == 0
    result = json.loads(path.read_text())
    assert result["store"]["reads"] == result["accounting"]["fills"] + result["accounting"]["swaps"] > 0
    for part, name, reason in (
        ("store", "reads", "reads, the committee"),
        ("accounting", "bytes_read", "bytes, the committee"),
        ("accounting", "failed_loads", "failures, the committee"),
    ):
        wrong = {**result, part: {**result[part], name: result[part][name] + 1}}
        with pytest.raises(DataError, match=reason):
            check_soak(wrong)
    with pytest.raises(DataError, match="threads were left: expert-loader"):
        check_soak({**result, "threads_left": ["expert-loader"]})


def test_the_result_replaces_no_part_of_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_text("{}")
    outcome = run_command("bench", "--json", model, "soak", tmp_path)
    assert outcome.code == 1
    assert "lies in the input" in outcome.error_line()
    assert model.read_text() == "{}"
