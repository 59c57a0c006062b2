"""Runs the stream command in a thread of this process, so that a hang costs its own case only."""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Sequence
from unittest import mock

from pcmoe_det.cli import stream as command
from pcmoe_det.cli.entry import run
from tests.faults.bench import Bench, Ran

__all__ = ["our_threads", "run_in_process"]

_THREADS_END_SECONDS = 4.0  # a connection that is left behind ends with its own time-outs


def run_in_process(bench: Bench, options: Sequence[object], *, limit_seconds: float) -> Ran:
    """What ``pcmoe-stream`` does with these options, with the bench's detector and signals."""
    before = set(threading.enumerate())
    out, err = io.StringIO(), io.StringIO()
    codes: list[int | None] = []
    loaded = threading.Event()

    def load(_: object) -> object:
        loaded.set()
        bench.in_load()
        return bench.detector

    def work() -> None:
        try:
            codes.append(run(command._parser(), lambda arguments: command.stream(arguments, load=load)))
        except SystemExit as stop:
            codes.append(stop.code if isinstance(stop.code, int) else 1)
        except BaseException:
            traceback.print_exc(file=err)
            codes.append(None)

    handler = logging.StreamHandler(err)
    started_seconds = time.monotonic()
    with (
        mock.patch.object(sys, "argv", ["pcmoe-stream", *map(str, options)]),
        mock.patch.object(command, "StopSignals", return_value=bench.signals),
        mock.patch.dict(os.environ),
        warnings.catch_warnings(),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        logging.getLogger().addHandler(handler)
        worker = threading.Thread(target=work, name="case", daemon=True)
        try:
            worker.start()
            worker.join(limit_seconds)
            ended_seconds = time.monotonic()
            stacks = _stacks(before) if worker.is_alive() else ""
        finally:
            logging.getLogger().removeHandler(handler)
    left = our_threads(before)
    while left and not stacks and time.monotonic() < ended_seconds + _THREADS_END_SECONDS:
        time.sleep(0.02)
        left = our_threads(before)
    pressed = bench.signals.pressed_at_seconds
    return Ran(
        code=codes[0] if codes else None,
        out=out.getvalue(),
        err=err.getvalue(),
        loaded=loaded.is_set(),
        threads_left=left,
        seconds=ended_seconds - started_seconds,
        seconds_after_signal=None if pressed is None else ended_seconds - pressed,
        stacks=stacks,
    )


def our_threads(before: set[threading.Thread]) -> list[str]:
    """Names of the package's threads that were not there before."""
    return [t.name for t in threading.enumerate() if t not in before and t.name.startswith("pcmoe-")]


def _stacks(before: set[threading.Thread]) -> str:
    frames = sys._current_frames()
    parts = []
    for thread in threading.enumerate():
        if thread not in before and thread.ident in frames:
            parts.append(f"--- {thread.name}\n" + "".join(traceback.format_stack(frames[thread.ident])[-6:]))
    return "\n".join(parts)
