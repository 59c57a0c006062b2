"""``pcmoe-bench``: arguments that cannot be."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.cli.commands import run_command


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


def test_the_result_replaces_no_part_of_the_model(tmp_path: Path) -> None:
    model = tmp_path / "model.json"
    model.write_text("{}")
    outcome = run_command("bench", "--json", model, "soak", tmp_path)
    assert outcome.code == 1
    assert "lies in the input" in outcome.error_line()
    assert model.read_text() == "{}"
