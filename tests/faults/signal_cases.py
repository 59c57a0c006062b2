"""Signals at every moment, and standard input that ends in every way."""

# ruff: noqa: E501 - a table reads best with a line for a case.

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

from tests.faults.bench import Bench, Case, Expected, at_least, done, refused
from tests.faults.clips import CLIP_FRAMES, make
from tests.faults.stage_cases import SINKS, use_sources
from tests.streaming.servers import jpeg
from tests.streaming.stand_ins import StandInSource

__all__ = ["signal_cases"]


def signal_cases() -> list[Case]:
    return [*_signals(), *_standard_input()]


def _signals() -> list[Case]:
    """The signal itself is a call here; real ones are among the cases that are processes."""

    def at_random(number: int) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            bench.detector.seconds = 0.005
            delay = bench.chance.uniform(0.0, 0.5)

            def start() -> None:
                def press() -> None:
                    while not bench.signals.graceful:
                        time.sleep(0.001)
                    bench.signals.press()

                timer = threading.Timer(delay, press)
                timer.daemon = True
                timer.start()

            bench.in_load = start
            return ["--source", make(bench.folder, frames=200)]

        return arrange

    def loading(bench: Bench) -> list[object]:
        bench.in_load = bench.signals.press
        return ["--source", make(bench.folder)]

    def opening(bench: Bench) -> list[object]:
        import pcmoe_det.streaming

        bench.patch.setattr(pcmoe_det.streaming, "open_source", lambda *_, **__: bench.signals.press())
        return ["--source", "a.mp4"]

    def closing(kind: str) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            original = SINKS[kind].close

            def close(self: Any, outcome: Any) -> Any:
                bench.signals.press()
                time.sleep(0.3)
                return original(self, outcome)

            bench.patch.setattr(SINKS[kind], "close", close)
            return ["--source", make(bench.folder)]

        return arrange

    def waiting(**settings: Any) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            source = StandInSource(CLIP_FRAMES, wait_at=6, clock=time.monotonic, **settings)
            bench.stack.callback(source.released.set)

            def press() -> None:
                source.waiting.wait(10)
                time.sleep(0.2)
                bench.signals.press()
                if settings:
                    time.sleep(2.6)  # whoever does not heed it is left behind by then
                    source.released.set()

            threading.Thread(target=press, daemon=True).start()
            return use_sources(bench, source)

        return arrange

    def hanging_detector(bench: Bench) -> list[object]:
        released = threading.Event()
        bench.stack.callback(released.set)
        bench.detector.at[4] = lambda: (bench.signals.press(), threading.Timer(2.6, released.set).start(),
                                        released.wait(30), None)[-1]  # fmt: skip
        return ["--source", make(bench.folder)]

    def with_error(bench: Bench) -> list[object]:
        def act() -> None:
            bench.signals.press()
            time.sleep(0.15)
            raise RuntimeError("no kernel")

        bench.detector.at[5] = act
        return ["--source", make(bench.folder)]

    stopped = dict(
        code=130, files="final", outcomes=["interrupted"], drops={"stopped": at_least(0)}, faults={}
    )
    cases = [
        Case("signal", "file", f"at a random time, {number}",
             Expected(**{**stopped, "outcomes": None}), at_random(number))
        for number in range(8)
    ]  # fmt: skip
    quiet = Expected(code=130, says="interrupted", files="none")
    return [
        *cases,
        Case("signal", "file", "while the model is loaded", quiet, loading),
        Case("signal", "file", "while the source is opened",
             Expected(code=130, says="interrupted", files="none", loads=False), opening),
        Case("signal", "file", "while the video is closed",
             Expected(code=130, reads=CLIP_FRAMES, writes=CLIP_FRAMES), closing("mp4")),
        Case("signal", "file", "while the records are closed",
             Expected(code=130, reads=CLIP_FRAMES, writes=CLIP_FRAMES), closing("jsonl")),
        Case("signal", "file", "while the source hangs", Expected(**{**stopped, "reads": 6, "writes": 6}), waiting()),
        Case("signal", "file", "while a source hangs that cannot be woken",
             Expected(**{**stopped, "reads": 6, "writes": 6}), waiting(heeds_interrupt=False)),
        Case("signal", "live", "while the source hangs",
             Expected(**{**stopped, "drops": None}), waiting(is_live=True)),
        Case("signal", "file", "while the detector hangs", Expected(**{**stopped, "writes": 4}), hanging_detector),
        Case("signal", "file", "and then the detector raises",
             Expected(code=1, says="no kernel", files="part", writes=5, outcomes=["failed"]), with_error),
    ]  # fmt: skip


def _piped(
    data: Callable[[], bytes], *, stays_open: bool = False, pause: float = 0.0
) -> Callable[[Bench], list[object]]:
    def arrange(bench: Bench) -> list[object]:
        reader, writer = os.pipe()
        bench.stack.callback(os.close, reader)
        bench.patch.setattr(sys, "stdin", SimpleNamespace(fileno=lambda: reader))
        content = data()

        def write() -> None:
            try:
                for first in range(0, len(content), 1000):
                    os.write(writer, content[first : first + 1000])
                    time.sleep(pause)
                if stays_open:
                    time.sleep(0.3)
                    bench.signals.press()
                    time.sleep(1.0)
            finally:
                os.close(writer)

        thread = threading.Thread(target=write, daemon=True)
        thread.start()
        return ["--source", "-"]

    return arrange


def _standard_input() -> list[Case]:
    def pictures(count: int = 10) -> bytes:
        return b"".join(jpeg(index) for index in range(count))

    def closed(bench: Bench) -> list[object]:
        bench.patch.setattr(sys, "stdin", None)
        return ["--source", "-"]

    rows = [
        ("whole", done(10), _piped(pictures)),
        ("a slow writer", done(10), _piped(pictures, pause=0.01)),
        ("closed in mid-picture", done(9, faults={"truncated": 1}), _piped(lambda: pictures()[:-200])),
        ("closed in the first picture", Expected(code=1, says="ended without a JPEG", writes=0, files="none",
         faults={"truncated": 1}, loads=True), _piped(lambda: jpeg(1)[:200])),
        ("empty", Expected(code=1, says="ended without a JPEG", reads=0, files="none"), _piped(bytes)),
        ("garbage only", Expected(code=1, says="ended without a JPEG", reads=0, files="none",
         faults={"garbage": 1}), _piped(lambda: b"hello " * 999)),
        ("garbage between pictures", done(10, faults={"garbage": 1}),
         _piped(lambda: pictures(5) + b"garbage" * 50 + b"".join(jpeg(index) for index in range(5, 10)))),
        ("a picture that cannot be decoded", done(9, faults={"undecodable": 1}),
         _piped(lambda: pictures(5) + b"\xff\xd8\xff\xd9" + pictures(4))),
        ("closed from the start", refused("no standard input"), closed),
        ("never ends, then a signal", Expected(code=130, reads=10, writes=10, outcomes=["interrupted"], drops={}),
         _piped(pictures, stays_open=True)),
    ]  # fmt: skip
    return [Case("standard input", "MJPEG", fault, expected, arrange) for fault, expected, arrange in rows]
