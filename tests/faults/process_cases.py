"""The cases that are real processes: signals, pipes, users, the real model."""

# ruff: noqa: E501 - a table reads best with a line for a case.

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tests.faults.bench import Bench, Case, Expected, Ran, at_least, done, refused
from tests.faults.checks import count_of, part_of
from tests.faults.clips import CLIP_FRAMES, clip_bytes, make
from tests.faults.network_cases import tcp_server
from tests.faults.small_disk import can_mount, small_disk
from tests.streaming.servers import jpeg

__all__ = ["PROCESS_CASES", "ProcessCase"]

CONNECTED = -1.0
"""Stands for the moment when the bench's server was asked."""
ROOT = Path(__file__).resolve().parents[2]
_REAL = [sys.executable, "tools/stream.py"]
_QUIET = re.compile(r"^(detected \d+|loading|writing|closing)$", re.MULTILINE)


@dataclass(frozen=True)
class ProcessCase(Case):
    """A case that is a process.

    Attributes:
        moments: What the driver's stages take; None runs the command itself, with the shipped model.
        signals: What to wait for on standard error (a number is seconds), and the signal to send then.
        stdout: What standard output is: ``pipe``, ``closed`` from the start, or ``left`` (nobody reads it).
        stdin: Bytes to write to standard input, which is closed then; None has none.
    """

    moments: dict[str, float] | None = field(default_factory=dict)
    signals: Sequence[tuple[str | float, signal.Signals]] = ()
    stdout: str = "pipe"
    stdin: Callable[[], bytes] | None = None

    def run(self, bench: Bench) -> Ran:
        options = [str(word) for word in (*self.arrange(bench), *bench.output_options())]
        command = _REAL
        if self.moments is not None:
            command = [sys.executable, "-m", "tests.faults.driver", json.dumps(self.moments)]
        if self.stdout == "closed":
            command = ["sh", "-c", 'exec "$@" >&-', "sh", *command]
        if self.stdin is None and "-" in options:
            command = ["sh", "-c", 'exec "$@" <&-', "sh", *command]
        reader, writer = os.pipe()
        if self.stdout == "left":
            os.close(reader)
        started_seconds = time.monotonic()
        process = subprocess.Popen(
            [*command, *options], cwd=ROOT, stderr=subprocess.PIPE,
            stdout=writer if self.stdout == "left" else subprocess.PIPE,
            stdin=subprocess.DEVNULL if self.stdin is None else subprocess.PIPE,
            env={**os.environ, "OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"},
        )  # fmt: skip
        os.close(writer)
        if self.stdout != "left":
            os.close(reader)
        watchdog = threading.Timer(self.expected.seconds, process.kill)
        watchdog.start()
        try:
            return self._follow(process, started_seconds, bench.reached)
        finally:
            watchdog.cancel()
            process.kill()
            process.wait()

    def _follow(
        self, process: subprocess.Popen[bytes], started_seconds: float, reached: threading.Event
    ) -> Ran:
        err = bytearray()
        arrived = threading.Condition()

        def collect() -> None:
            assert process.stderr is not None
            while data := process.stderr.read1(4096):  # type: ignore[attr-defined]
                with arrived:
                    err.extend(data)
                    arrived.notify_all()

        out: list[bytes] = []

        def collect_out() -> None:
            out.append(process.stdout.read() if process.stdout is not None else b"")

        collectors = [threading.Thread(target=target, daemon=True) for target in (collect, collect_out)]
        for collector in collectors:
            collector.start()
        if self.stdin is not None and process.stdin is not None:
            process.stdin.write(self.stdin())
            process.stdin.close()
        sent_seconds = None
        for what, number in self.signals:
            if isinstance(what, str):
                pattern = re.compile(what.encode())
                with arrived:
                    assert arrived.wait_for(lambda p=pattern: p.search(err), self.expected.seconds), err
            elif what == CONNECTED:
                assert reached.wait(self.expected.seconds)
            else:
                time.sleep(what)
            process.send_signal(number)
            sent_seconds = sent_seconds or time.monotonic()
        code: int | None = process.wait()
        ended_seconds = time.monotonic()
        for collector in collectors:
            collector.join(5)
        if code == -signal.SIGKILL and ended_seconds - started_seconds > self.expected.seconds - 0.5:
            code = None
        text = err.decode()
        loaded = "loading" in text if self.moments is not None else None
        return Ran(
            code=code,
            out=b"".join(out).decode(),
            err=_QUIET.sub("", text),
            loaded=loaded,
            threads_left=[],
            seconds=ended_seconds - started_seconds,
            seconds_after_signal=None if sent_seconds is None else ended_seconds - sent_seconds,
        )


def _clip(frames: int = CLIP_FRAMES) -> Callable[[Bench], list[object]]:
    return lambda bench: ["--source", make(bench.folder, frames=frames)]


def _stops() -> list[ProcessCase]:
    cases = []
    stopped: dict[str, Any] = dict(
        code=130, outcomes=["interrupted"], faults={}, drops={"stopped": at_least(0)}, seconds=40
    )
    early = Expected(code=130, says="interrupted", files="none", seconds=40)
    for number in (signal.SIGINT, signal.SIGTERM):
        cases += [
            ProcessCase("signal", "process", f"{number.name} while the model is loaded", early, _clip(),
                        moments={"load": 20}, signals=[("loading\n", number)]),
            ProcessCase("signal", "process", f"{number.name} while records are closed",
                        Expected(code=130, reads=CLIP_FRAMES, writes=CLIP_FRAMES, seconds=40), _clip(),
                        moments={"close": 0.7}, signals=[("closing\n", number)]),
            ProcessCase("signal", "process", f"{number.name} twice while an output hangs",
                        Expected(code=130, says="left at once", files="mixed", seconds=40), _records_only,
                        moments={"write": 30}, signals=[("writing\n", number), ("once more.*\n", number)]),
            ProcessCase("signal", "process", f"{number.name} while the source is opened",
                        Expected(code=130, says="interrupted", files="none", loads=False, seconds=40), _silent_server,
                        signals=[(CONNECTED, number)]),
        ]  # fmt: skip
        for frame in (1, 17, 60):
            cases.append(
                ProcessCase("signal", "process", f"{number.name} after frame {frame}", Expected(**stopped), _clip(400),
                            moments={"detect": 0.02}, signals=[(f"detected {frame}\n", number)])
            )  # fmt: skip
    return cases


def _records_only(bench: Bench) -> list[object]:
    bench.outputs = ("jsonl",)  # of the video not even the first second is there
    return _clip()(bench)


def _silent_server(bench: Bench) -> list[object]:
    """A server that takes the connection and says nothing."""

    def answer(connection: socket.socket) -> None:
        connection.recv(10)
        bench.reached.set()
        time.sleep(20)

    port = tcp_server(bench, answer)
    return ["--source", f"http://127.0.0.1:{port}/a", "--open-timeout", "30s"]


def _pipes() -> list[ProcessCase]:
    def pictures() -> bytes:
        return b"".join(jpeg(index) for index in range(10))

    def standard_input(bench: Bench) -> list[object]:
        return ["--source", "-"]

    left = Expected(code=1, reads=CLIP_FRAMES, writes=CLIP_FRAMES, drops={}, files="final", seconds=40)

    return [
        _LeftCase("pipe", "process", "nobody reads standard output", left, _clip(), stdout="left"),
        ProcessCase("pipe", "process", "standard output is closed", done(CLIP_FRAMES, seconds=40), _clip(),
                    stdout="closed"),
        ProcessCase("pipe", "process", "standard input ends in mid-picture",
                    done(9, faults={"truncated": 1}, seconds=40), standard_input, stdin=lambda: pictures()[:-100]),
        ProcessCase("pipe", "process", "standard input is closed", refused("no standard input|terminal", seconds=40),
                    standard_input),
    ]  # fmt: skip


@dataclass(frozen=True)
class _LeftCase(ProcessCase):
    """Nobody can be told anything: the exit code and the files are what is left."""

    def run(self, bench: Bench) -> Ran:
        ran = super().run(bench)
        assert ran.err.strip() == ""
        # The table wants a sentence for exit code 1; here nobody would have read the summary, and nothing failed.
        ran.err = "pcmoe-stream: error: standard output was closed"
        return ran


def _killed() -> list[ProcessCase]:
    def look(bench: Bench, ran: Ran) -> None:
        assert not bench.path_of("mp4").exists()
        assert count_of("jsonl", part_of(bench.path_of("jsonl"))) >= 55  # a few wait between the stages
        assert count_of("mp4", part_of(bench.path_of("mp4"))) >= 25

    no_room = Expected(code=1, says="No space left", files="part", writes=range(1, 400), seconds=40)

    def long_clip(bench: Bench) -> list[object]:
        bench.out_of = {"jsonl": small_disk(bench, kib=120)}
        return ["--source", make(bench.folder, frames=400)]

    cases = [
        ProcessCase("signal", "process", "SIGKILL after frame 60",
                    Expected(code=-9, files="mixed", seconds=40), _clip(400), look, moments={"detect": 0.005},
                    signals=[("detected 64\n", signal.SIGKILL)]),
    ]  # fmt: skip
    if can_mount():
        cases.append(ProcessCase("disk full", "process", "the records' disk fills up", no_room, long_clip))
    return cases


def _real_model() -> list[ProcessCase]:
    def cut(bench: Bench) -> list[object]:
        path = bench.folder / "cut.mkv"
        data = clip_bytes("mkv", frames=8)
        path.write_bytes(data[: len(data) // 2])
        bench.outputs = ("jsonl", "summary", "mp4")
        return ["--source", path, "--score-threshold", "0.9"]

    def broken(bench: Bench) -> list[object]:
        (bench.folder / "a.mp4").write_bytes(clip_bytes("mp4")[:5000])
        return ["--source", bench.folder / "a.mp4"]

    cut_off = Expected(
        reads=range(2, 8), drops={}, faults={"missing": at_least(2), "corrupt": range(2),
        "undecodable": range(2), "unreadable": range(2)}, says="is damaged", seconds=240,
    )  # fmt: skip
    return [
        ProcessCase("real model", "process", "a file that is cut off", cut_off, cut, moments=None),
        ProcessCase("real model", "process", "a file that cannot be read", refused("is not a video", seconds=60),
                    broken, moments=None),
        ProcessCase("real model", "process", "a signal while it is loaded",
                    Expected(code=130, files="none", seconds=240), _clip(), moments=None,
                    signals=[(3.0, signal.SIGINT)]),
    ]  # fmt: skip


PROCESS_CASES: list[ProcessCase] = [*_stops(), *_pipes(), *_killed(), *_real_model()]
