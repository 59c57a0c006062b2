"""What a fault case is made of, and what it finds when it has run."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.streaming.stand_ins import CLASS_NAMES, detections

__all__ = ["Bench", "Case", "Counted", "Expected", "Ran", "ScriptedDetector", "StandInSignals", "at_least"]

FILE_NAMES = {"mp4": "o.mp4", "jsonl": "o.jsonl", "coco": "o.json", "mot": "o.txt", "summary": "s.json"}
OPTIONS = {
    "mp4": "--output", "jsonl": "--jsonl", "coco": "--coco", "mot": "--mot", "crops": "--crops",
    "frames": "--frames", "summary": "--summary",
}  # fmt: skip
ALL_KINDS = ("mp4", "jsonl", "coco", "mot", "crops", "frames", "summary")

Counted = int | range
"""A number, or a range that it must lie in."""


def at_least(least: int, most: int = 1_000_000) -> range:
    return range(least, most + 1)


@dataclass(frozen=True, kw_only=True)
class Expected:
    """What the contract says of a case.

    Attributes:
        code: Exit codes that are right.
        says: Regular expression that the error line, or on success what was printed or logged, holds.
        reads: Frames read, of all sources together; None leaves it open.
        writes: Frames that every output took.
        drops: Frames lost by cause; causes that are not named must not occur. None leaves it open.
        faults: Faults of the sources by cause; causes that are not named must not occur. None leaves it open.
        files: ``final`` (all outputs under their names), ``part`` (what was written is kept under temporary
            names), ``none`` (the command left nothing behind), ``mixed`` (the case looks itself).
        loads: Whether the model is loaded; None where it depends on the moment.
        outcomes: Of the streams, in order; None leaves it open.
        seconds: The time limit of the whole case; a case that takes longer has failed and is left behind.
    """

    code: int | tuple[int, ...] = 0
    says: str = ""
    reads: Counted | None = None
    writes: Counted | None = None
    drops: Mapping[str, Counted] | None = None
    faults: Mapping[str, Counted] | None = None
    files: str = "final"
    loads: bool | None = True
    outcomes: Sequence[str] | None = None
    seconds: float = 20.0

    @property
    def codes(self) -> tuple[int, ...]:
        return self.code if isinstance(self.code, tuple) else (self.code,)


def refused(says: str, *, code: int = 1, seconds: float = 20.0) -> Expected:
    """Found before the model is loaded: one sentence, nothing is left behind."""
    return Expected(code=code, says=says, files="none", loads=False, seconds=seconds)


def done(count: int, *, says: str = "", **settings: Any) -> Expected:
    """All ``count`` frames are read and written, nothing else happens."""
    return Expected(says=says, reads=count, writes=count, **{"drops": {}, "faults": {}, **settings})


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        group: What kind of fault it is.
        source: What is read.
        fault: What goes wrong.
        expected: What the contract says of it.
        arrange: Makes it so on the bench, and gives the options of the command but for the outputs.
        look: Anything else to see to afterwards.
    """

    group: str
    source: str
    fault: str
    expected: Expected
    arrange: Callable[[Bench], Sequence[object]]
    look: Callable[[Bench, Ran], None] | None = None

    @property
    def id(self) -> str:
        return f"{self.group}: {self.source}: {self.fault}".replace("/", "-")


class StandInSignals:
    """``StopSignals`` without handlers; ``press`` is what a signal does."""

    def __init__(self) -> None:
        self.graceful = False
        self.count = 0
        self.pressed_at_seconds: float | None = None

    def __enter__(self) -> StandInSignals:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def press(self) -> None:
        self.count += 1
        self.pressed_at_seconds = self.pressed_at_seconds or time.monotonic()
        if not self.graceful:
            raise KeyboardInterrupt


class ScriptedDetector:
    """Finds one box a frame (and one below the usual threshold), and does what it is told at some calls.

    Attributes:
        seconds: What a frame takes.
        at: What to do before the call of that number; it may raise.
        seen: Mean grey value and shape of each picture.
    """

    class_names = CLASS_NAMES

    def __init__(self) -> None:
        self.seconds = 0.0
        self.at: dict[int, Callable[[], object]] = {}
        self.always: Callable[[Any], object] | None = None
        self.seen: list[tuple[float, tuple[int, ...]]] = []
        self.left = threading.Event()

    def detect(self, images: Sequence[Any]) -> list[Any]:
        if self.seconds:
            time.sleep(self.seconds)
        call = len(self.seen)
        self.seen += [(float(image[::4, ::4].mean()), image.shape) for image in images]
        for act in (self.at.get(call), self.always and (lambda: self.always(images[0]))):
            answer = act() if act else None
            if isinstance(answer, list):
                return answer
        return [self._found(image.shape) for image in images]

    def _found(self, shape: tuple[int, ...]) -> Any:
        height, width = shape[:2]
        return detections((0, 0, width * 0.9, height * 0.9, 0.9, 1), (0, 0, width, height, 0.1, 2))


@dataclass
class Bench:
    """Where a case is set up.

    Attributes:
        folder: For sources and whatever else the case needs.
        out: For the outputs.
        patch: Undone after the case, as is ``stack``.
        chance: The same for every run of the case.
        outputs: Kinds of outputs that the command is to write.
        out_of: Kinds of outputs that go elsewhere than ``out``.
        several: Whether the outputs of several sources are named by their numbers.
        reached: Set when the command has come to where the case wants it.
        while_running: Undone as soon as the command has ended, before anything is checked.
        not_ours: Outputs that somebody else has written.
        secrets: What must not be shown anywhere.
    """

    folder: Path
    out: Path
    patch: pytest.MonkeyPatch
    stack: ExitStack
    chance: random.Random
    detector: ScriptedDetector = field(default_factory=ScriptedDetector)
    signals: StandInSignals = field(default_factory=StandInSignals)
    outputs: tuple[str, ...] = ("mp4", "jsonl", "summary")
    out_of: dict[str, Path] = field(default_factory=dict)
    several: bool = False
    reached: threading.Event = field(default_factory=threading.Event)
    while_running: ExitStack = field(default_factory=ExitStack)
    not_ours: set[Path] = field(default_factory=set)
    secrets: tuple[str, ...] = ()
    in_load: Callable[[], object] = lambda: None

    def path_of(self, kind: str) -> Path:
        """Where an output goes; with several sources it holds ``{n}``."""
        name = FILE_NAMES.get(kind, kind)
        if self.several and kind != "summary":
            name = "{n}-" + name
        return self.out_of.get(kind, self.out) / name

    def paths_of(self, kind: str) -> list[Path]:
        """The outputs of all sources, of those that could have any."""
        path = str(self.path_of(kind))
        return [Path(path.replace("{n}", n)) for n in ("1", "2", "3")] if "{n}" in path else [Path(path)]

    def output_options(self) -> list[object]:
        return [word for kind in self.outputs for word in (OPTIONS[kind], self.path_of(kind))]


@dataclass
class Ran:
    """How a command ended.

    Attributes:
        code: Exit code; None if it did not end within its time.
        out: Standard output.
        err: Standard error and the log.
        loaded: Whether the model was loaded; None where nobody could see that.
        threads_left: Names of our threads that were still there.
        seconds_after_signal: From the signal to the end, if there was one.
        stacks: Where the threads were when the time was over.
    """

    code: int | None
    out: str
    err: str
    loaded: bool | None
    threads_left: list[str]
    seconds: float
    seconds_after_signal: float | None = None
    stacks: str = ""
    summaries: list[dict[str, Any]] = field(default_factory=list)

    def total(self, name: str) -> int:
        return sum(int(summary[name]) for summary in self.summaries)

    def counts(self, name: str) -> dict[str, int]:
        counts: dict[str, int] = {}
        for summary in self.summaries:
            for cause, count in summary[name].items():
                counts[cause] = counts.get(cause, 0) + count
        return counts
