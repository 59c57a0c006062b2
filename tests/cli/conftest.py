"""A tiny trained detector that the tests of several commands share."""

from __future__ import annotations

import gc
from collections.abc import Iterator
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


@pytest.fixture
def quick_to_end_workers(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Collect a data loader that an error left behind now; it waits 0.2 instead of 5 s for its workers."""
    import torch.utils.data._utils as loading

    monkeypatch.setattr(loading, "MP_STATUS_CHECK_INTERVAL", 0.2)
    yield
    gc.collect()


@pytest.fixture
def hasty(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave out what takes three quarters of a tiny run: formatting the config's text, and the curves."""
    import mmengine.config.config

    from pcmoe_det.cli import training_curves

    monkeypatch.setattr(mmengine.config.config, "FormatCode", lambda text, **_: (text, False))
    monkeypatch.setattr(training_curves, "draw_curves", lambda _: None)
