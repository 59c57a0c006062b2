"""Runs a command in this process, which saves the seconds that a new one takes to import torch."""

from __future__ import annotations

import contextlib
import importlib
import io
import logging
import os
import socket
import subprocess
import sys
import warnings
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

PROJECT = Path(__file__).resolve().parents[2]


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    out: str
    err: str

    def error_line(self) -> str:
        """The one line of the error; fails the test where there is more or no error."""
        lines = self.err.strip().splitlines()
        assert self.code != 0, self.out
        assert len(lines) == 1, self.err
        assert "error: " in lines[0]
        assert "Traceback" not in self.out
        return lines[0]


def run_command(module: str, *arguments: object) -> Outcome:
    """Call ``pcmoe_det.cli.<module>.entry`` as the console script would."""
    entry = importlib.import_module(f"pcmoe_det.cli.{module}").entry
    out, err = io.StringIO(), io.StringIO()
    with (
        mock.patch.object(sys, "argv", [module, *map(str, arguments)]),
        mock.patch.dict(os.environ),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
        warnings.catch_warnings(),
    ):
        try:
            code = entry()
        except SystemExit as stop:
            code = stop.code if isinstance(stop.code, int) else 1
        finally:
            forget_runners()
    return Outcome(code, out.getvalue(), err.getvalue())


def forget_runners() -> None:
    """mmengine keeps loggers, message hubs and visualizers of every runner; a new process has none."""
    from mmengine.logging import MessageHub, MMLogger
    from mmengine.visualization import Visualizer

    for logger in MMLogger._instance_dict.values():
        for handler in logger.handlers:
            if isinstance(handler, logging.FileHandler):
                handler.close()
    for kind in (MMLogger, MessageHub, Visualizer):
        kind._instance_dict.clear()


def run_in_two_processes(tool: str, *arguments: object) -> Outcome:
    """Run ``tools/<tool>.py`` under torch's launcher with two processes on this machine."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    launcher = ["-m", "torch.distributed.run", "--nproc_per_node", "2", "--master_port", str(port)]
    script = str(PROJECT / "tools" / f"{tool}.py")
    done = subprocess.run(
        [sys.executable, *launcher, script, *map(str, arguments), "--launcher", "pytorch"],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
    )
    return Outcome(done.returncode, done.stdout, done.stderr)
