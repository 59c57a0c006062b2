"""A tiny trained detector that the tests of several commands share."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.cli.commands import Outcome, run_command
from tests.cli.tiny import write_config, write_street


@dataclass(frozen=True)
class TinyRun:
    """Four iterations of training, saved after the second and the fourth."""

    config: Path
    data_root: Path
    work_dir: Path
    outcome: Outcome

    @property
    def checkpoint(self) -> Path:
        return self.work_dir / "iter_4.pth"


@pytest.fixture(scope="session")
def tiny_run(tmp_path_factory: pytest.TempPathFactory) -> TinyRun:
    """A tiny MoE detector, trained by the command."""
    folder = tmp_path_factory.mktemp("tiny")
    data_root = write_street(folder / "street")
    config = write_config(folder, data_root)
    outcome = run_command("train", config, "--work-dir", folder / "run")
    assert outcome.code == 0, outcome.err
    return TinyRun(config, data_root, folder / "run", outcome)
