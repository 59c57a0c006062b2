"""Something raises, in each stage, on the first, a middle and the last frame, of a file and of a live source."""

# ruff: noqa: E501 - a table reads best with a line for a case.

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np

import pcmoe_det.streaming
from pcmoe_det.errors import OutputError, SourceError
from pcmoe_det.streaming.coco_sink import CocoSink
from pcmoe_det.streaming.image_sinks import CropSink, FrameImageSink
from pcmoe_det.streaming.jsonl_sink import JsonLinesSink
from pcmoe_det.streaming.mot_sink import MotSink
from pcmoe_det.streaming.video_sink import VideoSink
from tests.faults.bench import ALL_KINDS, Bench, Case, Expected, Ran, done
from tests.faults.checks import count_of, part_of
from tests.faults.clips import CLIP_FRAMES, make
from tests.streaming.stand_ins import StandInSource, detections

__all__ = ["SINKS", "fail_in_write", "stage_cases", "use_sources"]

SINKS: dict[str, type] = {
    "mp4": VideoSink, "frames": FrameImageSink, "crops": CropSink, "coco": CocoSink, "mot": MotSink,
    "jsonl": JsonLinesSink,
}  # fmt: skip
_PLACES = {"first": 0, "middle": CLIP_FRAMES // 2, "last": CLIP_FRAMES - 1}
_NO_LATER_FRAME = {"failed": range(0, CLIP_FRAMES + 1)}


def stage_cases() -> list[Case]:
    return [*_sources(), *_detectors(), *_answers(), *_trackers(), *_writes(), *_closes(), *_live()]


def use_sources(bench: Bench, *sources: Any) -> list[object]:
    """Have the command open these."""
    waiting = list(sources)
    bench.patch.setattr(pcmoe_det.streaming, "open_source", lambda _, options: waiting.pop(0))
    return [word for source in sources for word in ("--source", source.source_id)]


def _live_source(**settings: Any) -> StandInSource:
    return StandInSource(CLIP_FRAMES, is_live=True, clock=time.monotonic, **settings)


def _raises(error: BaseException) -> Callable[[], object]:
    def act() -> object:
        raise error

    return act


def _failed_after(count: int, says: str, **settings: Any) -> Expected:
    """A file job ends with the error; the frames before it are kept under temporary names."""
    values: dict[str, Any] = dict(
        code=1, says=says, writes=count, drops=_NO_LATER_FRAME, faults={}, files="part", outcomes=["failed"]
    )
    return Expected(**{**values, **settings})


def _sources() -> list[Case]:
    cases = []
    errors = {
        "an OSError": OSError("the disk went away"),
        "a SourceError": SourceError("it cannot be read on"),
    }
    for place, index in _PLACES.items():
        for name, error in errors.items():
            for live in (False, True):

                def arrange(bench: Bench, index: int = index, error: Exception = error, live: bool = live):
                    source = StandInSource(
                        CLIP_FRAMES, fail_at=index, error=error, is_live=live, clock=time.monotonic
                    )
                    return [*use_sources(bench, source), "--mode", "every-frame"]

                # What the source itself gives up is the end of a live stream, too.
                expected = _failed_after(index, str(error), reads=index, drops={})
                kind = "live source" if live else "file"
                cases.append(Case("source raises", kind, f"{name} on the {place} frame", expected, arrange))
    return cases


def _file_with(bench: Bench, act: Callable[[], object], *, at: int) -> list[object]:
    bench.detector.at[at] = act
    return ["--source", make(bench.folder)]


def _detectors() -> list[Case]:
    cases = []
    errors = {
        "an error": RuntimeError("no kernel"),
        "no memory": MemoryError(),
        "an interrupt": KeyboardInterrupt(),
    }
    for place, index in _PLACES.items():
        for name, error in errors.items():
            says = f"detector.*(frame {index} )?.*(no kernel|MemoryError|KeyboardInterrupt)"
            arrange = partial(_file_with, act=_raises(error), at=index)
            cases.append(
                Case(
                    "detector raises",
                    "file",
                    f"{name} on the {place} frame",
                    _failed_after(index, says),
                    arrange,
                )
            )
    return cases


def _answers() -> list[Case]:
    wrong: dict[str, Callable[[], object]] = {
        "two answers for one picture": lambda: [detections(), detections()],
        "no answer": lambda: [],
        "a box that is no number": lambda: [detections((float("nan"), 0, 1, 1, 0.9, 1))],
        "an infinite score": lambda: [detections((0, 0, 1, 1, float("inf"), 1))],
        "a class that does not exist": lambda: [detections((0, 0, 1, 1, 0.9, 77))],
    }
    return [
        Case("detector is wrong", "file", name, _failed_after(5, "the detector failed on frame 5"),
             partial(_file_with, act=act, at=5))
        for name, act in wrong.items()
    ]  # fmt: skip


class _FailingTracker:
    def __init__(self, at: int) -> None:
        self._at, self._count = at, 0

    def update(self, frame: Any, found: Any) -> Any:
        self._count += 1
        if self._count == self._at + 1:
            raise np.linalg.LinAlgError("singular matrix")
        return found

    def reset(self) -> None:
        pass


def _trackers() -> list[Case]:
    cases = []
    for place, index in _PLACES.items():

        def arrange(bench: Bench, index: int = index) -> list[object]:
            from pcmoe_det.streaming import tracking

            bench.patch.setattr(tracking, "make_tracker", lambda name, frame_rate: _FailingTracker(index))
            return ["--source", make(bench.folder), "--track"]

        expected = _failed_after(index, f"frame {index} .*singular matrix")
        cases.append(Case("tracker raises", "file", f"on the {place} frame", expected, arrange))
    return cases


def fail_in_write(bench: Bench, kind: str, at: Sequence[int], error: Exception, *, source: str = "") -> None:
    """Have an output raise at these frames, of all sources or of one."""
    original = SINKS[kind].write

    def write(self: Any, result: Any, picture: Any) -> None:
        if result.frame.frame_index in at and source in result.frame.source_id:
            raise error
        original(self, result, picture)

    bench.patch.setattr(SINKS[kind], "write", write)


def _writes() -> list[Case]:
    cases = []
    for kind in SINKS:
        for place, index in _PLACES.items():

            def arrange(bench: Bench, kind: str = kind, index: int = index) -> list[object]:
                bench.outputs = ALL_KINDS
                fail_in_write(bench, kind, [index], ValueError("it does not fit"))
                return ["--source", make(bench.folder)]

            expected = _failed_after(index, f"output failed on frame {index} .*it does not fit")
            cases.append(Case("output raises", kind, f"in writing the {place} frame", expected, arrange))

    def drawing(bench: Bench) -> list[object]:
        from pcmoe_det.streaming import stages

        bench.patch.setattr(stages, "draw_detections", lambda *_, **__: _raises(ValueError("no font"))())
        return ["--source", make(bench.folder)]

    cases.append(Case("output raises", "drawing", "on the first frame", _failed_after(0, "no font"), drawing))
    return cases


def _closes() -> list[Case]:
    cases = []
    for kind in SINKS:

        def arrange(bench: Bench, kind: str = kind) -> list[object]:
            bench.outputs = ALL_KINDS
            original = SINKS[kind].close

            def close(self: Any, outcome: Any) -> Any:
                original(self, outcome)
                raise OutputError("the network folder is gone")

            bench.patch.setattr(SINKS[kind], "close", close)
            return ["--source", make(bench.folder)]

        def look(bench: Bench, ran: Ran) -> None:
            for other in SINKS:  # no output of a failed close takes another with it
                path = bench.path_of(other)
                assert count_of(other, path if path.exists() else part_of(path)) == CLIP_FRAMES

        expected = Expected(
            code=1, says="the network folder is gone", reads=CLIP_FRAMES, writes=CLIP_FRAMES, drops={},
            files="mixed", outcomes=["failed"],
        )  # fmt: skip
        cases.append(Case("output raises", kind, "in closing", expected, arrange, look))

    def summary(bench: Bench) -> list[object]:
        from pcmoe_det.streaming import append_file

        original = append_file._write_at

        def write_at(descriptor: int, data: bytes, offset: int) -> None:
            if b"frames_per_second" in data:
                raise OSError(28, "No space left on device")
            original(descriptor, data, offset)

        bench.patch.setattr(append_file, "_write_at", write_at)
        return ["--source", make(bench.folder)]

    expected = Expected(code=1, says=r"s\.json cannot be written", files="mixed")
    cases.append(Case("output raises", "summary", "in writing", expected, summary, _records_are_whole))
    return cases


def _records_are_whole(bench: Bench, ran: Ran) -> None:
    assert [count_of(kind, bench.path_of(kind)) for kind in ("mp4", "jsonl")] == [CLIP_FRAMES] * 2
    assert not bench.path_of("summary").exists()


def _live() -> list[Case]:
    """A live job survives a bad frame, counts it, and says so; not a run of them, and no full disk."""
    cases = []
    survived = dict(reads=CLIP_FRAMES, writes=CLIP_FRAMES - 1, drops={"bad_frame": 1}, says="a frame is lost")
    every = ["--mode", "every-frame"]
    for place, index in _PLACES.items():

        def arrange(bench: Bench, index: int = index) -> list[object]:
            bench.detector.at[index] = _raises(RuntimeError("no kernel"))
            return [*use_sources(bench, _live_source()), *every]

        expected = Expected(**survived)  # type: ignore[arg-type]
        cases.append(Case("live", "detector raises", f"on the {place} frame", expected, arrange))
    for kind in SINKS:

        def write(bench: Bench, kind: str = kind) -> list[object]:
            bench.outputs = ("jsonl", kind, "summary") if kind != "jsonl" else ("jsonl", "summary")
            fail_in_write(bench, kind, [7], ValueError("it does not fit"))
            return [*use_sources(bench, _live_source()), *every]

        expected = Expected(**{**survived, "files": "mixed"})  # type: ignore[arg-type]
        cases.append(Case("live", f"{kind} raises", "on one frame", expected, write))

    def always(bench: Bench) -> list[object]:
        bench.detector.always = lambda _: _raises(RuntimeError("no kernel"))()
        return [*use_sources(bench, _live_source()), *every]

    def full(bench: Bench) -> list[object]:
        fail_in_write(bench, "jsonl", [7], OutputError("the disk is full"))
        return [*use_sources(bench, _live_source()), *every]

    def recovers(bench: Bench) -> list[object]:
        for call in range(9):
            bench.detector.at[call] = _raises(RuntimeError("no kernel"))
        return [*use_sources(bench, _live_source()), *every]

    cases += [
        Case("live", "detector raises", "on every frame", _failed_after(0, "no kernel.*in a row", drops=None), always),
        Case("live", "jsonl cannot be written", "from the eighth frame on",
             _failed_after(7, "the disk is full"), full),
        Case("live", "detector raises", "nine times, then no more",
             Expected(reads=CLIP_FRAMES, writes=CLIP_FRAMES - 9, drops={"bad_frame": 9}), recovers),
        Case("live", "nothing", "no fault", done(CLIP_FRAMES), lambda b: [*use_sources(b, _live_source()), *every]),
    ]  # fmt: skip
    return cases
