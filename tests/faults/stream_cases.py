"""Several streams of which one fails, and slow ends of a stream."""

# ruff: noqa: E501 - a table reads best with a line for a case.

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any

from pcmoe_det.errors import OutputError, SourceError
from tests.faults.bench import Bench, Case, Expected, Ran, at_least, done, refused
from tests.faults.checks import count_of
from tests.faults.clips import CLIP_FRAMES, make
from tests.faults.small_disk import small_disk
from tests.faults.stage_cases import SINKS, fail_in_write, use_sources
from tests.streaming.stand_ins import StandInSource

__all__ = ["stream_cases"]


def stream_cases() -> list[Case]:
    return [*_several(), *_slow()]


def _two_clips(bench: Bench) -> list[object]:
    bench.several = True
    names = (make(bench.folder, name=name) for name in ("a.mp4", "b.mp4"))
    return [word for name in names for word in ("--source", name)]


def _first_is_whole(bench: Bench, ran: Ran) -> None:
    """The other stream has all its frames and its files under their names."""
    for kind in ("mp4", "jsonl"):
        assert count_of(kind, bench.paths_of(kind)[0]) == CLIP_FRAMES


def _several() -> list[Case]:
    def missing(bench: Bench) -> list[object]:
        return [*_two_clips(bench), "--source", bench.folder / "no.mp4"]

    def cut(bench: Bench) -> list[object]:
        bench.several = True
        paths = [make(bench.folder, "mkv", name=name) for name in ("a.mkv", "b.mkv")]
        os.truncate(paths[1], paths[1].stat().st_size // 2)
        return [word for path in paths for word in ("--source", path)]

    def second_raises(bench: Bench) -> list[object]:
        bench.several = True
        sources = [
            StandInSource(CLIP_FRAMES, clock=time.monotonic, source_id="a"),
            StandInSource(CLIP_FRAMES, clock=time.monotonic, source_id="b", fail_at=8, error=SourceError("it is gone")),
        ]  # fmt: skip
        return use_sources(bench, *sources)

    def detector_on_second(bench: Bench) -> list[object]:
        bench.several = True
        paths = [make(bench.folder, name="a.mp4"), make(bench.folder, name="b.mp4", width=80)]

        def refuse(image: Any) -> None:
            if image.shape[1] == 80 and len(bench.detector.seen) > 9:
                raise RuntimeError("a width of 80 is none")

        bench.detector.always = refuse
        return [word for path in paths for word in ("--source", path)]

    def output_of_second(kind: str, error: Exception) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            fail_in_write(bench, kind, [6], error, source="b.mp4")
            return _two_clips(bench)

        return arrange

    def close_of_second(bench: Bench) -> list[object]:
        original = SINKS["jsonl"].close

        def close(self: Any, outcome: Any) -> Any:
            paths = original(self, outcome)
            if any("2-" in str(path) for path in paths):
                raise OutputError("the network folder is gone")
            return paths

        bench.patch.setattr(SINKS["jsonl"], "close", close)
        return _two_clips(bench)

    def disk_of_second(bench: Bench) -> list[object]:
        bench.several = True
        (bench.out / "2").symlink_to(small_disk(bench, kib=120))
        (bench.out / "1").mkdir()
        bench.outputs = ("summary",)
        paths = [
            make(bench.folder, name=name, frames=200, width=160, height=120) for name in ("a.mp4", "b.mp4")
        ]
        bench.detector.at[0] = lambda: (bench.out / "2" / "ballast").write_bytes(bytes(105_000))
        sources = [word for path in paths for word in ("--source", path)]
        return [*sources, "--jsonl", bench.out / "{n}" / "o.jsonl"]

    def disk_look(bench: Bench, ran: Ran) -> None:
        assert count_of("jsonl", bench.out / "1" / "o.jsonl") == 200
        assert count_of("jsonl", bench.out / "2" / "o.part.jsonl") == ran.summaries[1]["frames_written"] > 0

    def lost(bench: Bench) -> list[object]:
        bench.several = True
        live = StandInSource(
            CLIP_FRAMES,
            is_live=True,
            clock=time.monotonic,
            source_id="camera",
            fail_at=4,
            error=SourceError("lost"),
        )
        return [*use_sources(bench, StandInSource(CLIP_FRAMES, clock=time.monotonic, source_id="a"), live)]

    def stuck_output(bench: Bench) -> list[object]:
        """One output hangs; the other stream goes on, and a stop gives the hanging one up."""
        from pcmoe_det.streaming import pipeline

        released = threading.Event()
        bench.stack.callback(released.set)
        original = SINKS["jsonl"].write

        def write(self: Any, result: Any, picture: Any) -> None:
            if "b.mp4" in result.frame.source_id and result.frame.frame_index == 3:
                released.wait(30)
            original(self, result, picture)

        bench.patch.setattr(SINKS["jsonl"], "write", write)
        bench.patch.setitem(pipeline.StreamPipeline.__init__.__kwdefaults__, "stuck_seconds", 0.3)
        options = _two_clips(bench)

        def press_when_first_is_done() -> None:
            while not bench.paths_of("jsonl")[0].exists():
                time.sleep(0.01)
            bench.signals.press()
            time.sleep(2.0)
            released.set()  # long after the stream was given up

        threading.Thread(target=press_when_first_is_done, daemon=True).start()
        return options

    one_failed = ["complete", "failed"]
    broken = dict(files="mixed", outcomes=one_failed)
    rows: list[tuple[str, str, Expected, Callable[[Bench], list[object]], Any]] = [
        ("two files", "a third is missing", refused("there is no file"), missing, None),
        ("two files", "the second is cut off",
         Expected(files="final", reads=range(CLIP_FRAMES + 2, 2 * CLIP_FRAMES), drops={}), cut, _first_is_whole),
        ("two files", "reading the second raises",
         Expected(code=1, says="it is gone", reads=CLIP_FRAMES + 8, writes=CLIP_FRAMES + 8, **broken), second_raises,
         _first_is_whole),
        ("two files", "the detector refuses the second",
         Expected(code=1, says="b.mp4.*a width of 80", **broken), detector_on_second, _first_is_whole),
        ("two files", "the second's video raises",
         Expected(code=1, says="encode.*frame 6 .*b.mp4.*no codec", **broken),
         output_of_second("mp4", ValueError("no codec")), _first_is_whole),
        ("two files", "the second's records cannot be written",
         Expected(code=1, says="b is full", **broken), output_of_second("jsonl", OutputError("b is full")),
         _first_is_whole),
        ("two files", "the second's records cannot be closed",
         Expected(code=1, says="folder is gone", reads=2 * CLIP_FRAMES, **broken), close_of_second, _first_is_whole),
        ("two files", "the second's disk fills up", Expected(code=1, says="No space", **broken), disk_of_second,
         disk_look),
        ("file and camera", "the camera is lost for good",
         Expected(code=1, says="lost", **broken), lost, _first_is_whole),
        ("two files", "the second's output hangs, then a signal",
         Expected(code=1, says="did not take a frame within", files="mixed", outcomes=one_failed), stuck_output,
         _first_is_whole),
    ]  # fmt: skip
    return [Case("several", source, fault, exp, of, look) for source, fault, exp, of, look in rows]


class _PacedSource(StandInSource):
    """Takes its time for every frame."""

    def __init__(self, count: int, *, seconds: float, **settings: Any) -> None:
        super().__init__(count, clock=time.monotonic, **settings)
        self._seconds = seconds

    def __iter__(self) -> Any:
        frames = super().__iter__()
        while not self.released.wait(self._seconds):
            frame = next(frames, None)
            if frame is None:
                return
            yield frame


def _slow_writes(bench: Bench, seconds: float) -> None:
    original = SINKS["jsonl"].write

    def write(self: Any, result: Any, picture: Any) -> None:
        time.sleep(seconds)
        original(self, result, picture)

    bench.patch.setattr(SINKS["jsonl"], "write", write)


def _slow() -> list[Case]:
    def paced(*words: object, live: bool, seconds: float, **slow: float) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            bench.detector.seconds = slow.get("detector", 0.0)
            if "writer" in slow:
                _slow_writes(bench, slow["writer"])
            return [*use_sources(bench, _PacedSource(40, seconds=seconds, is_live=live)), *words]

        return arrange

    some = dict(reads=40, writes=range(2, 40))
    late = {"replaced_by_newer": at_least(0), "too_late": at_least(0)}
    rows = [
        ("file", "slow reader", done(40), paced(live=False, seconds=0.01)),
        ("live", "slow reader", Expected(reads=40, drops={"replaced_by_newer": range(0, 3)}),
         paced(live=True, seconds=0.02)),
        ("file", "slow writer: the reader waits", done(40), paced(live=False, seconds=0.0, writer=0.01)),
        ("file", "slow detector: the reader waits", done(40), paced(live=False, seconds=0.0, detector=0.01)),
        ("live", "slow writer: old frames are dropped", Expected(drops={"replaced_by_newer": at_least(10)}, **some),
         paced(live=True, seconds=0.005, writer=0.05)),
        ("live", "slow detector: old frames are dropped", Expected(drops={"replaced_by_newer": at_least(10)}, **some),
         paced(live=True, seconds=0.005, detector=0.05)),
        ("live", "slow detector, every frame", done(40),
         paced("--mode", "every-frame", live=True, seconds=0.0, detector=0.01)),
        ("live", "slow detector, every frame within 100 ms",
         Expected(reads=40, writes=range(1, 40), drops={"too_late": at_least(10)}),
         paced("--mode", "every-frame", "--max-latency", "100ms", live=True, seconds=0.002, detector=0.04)),
        ("live", "a limit that cannot be met says so", Expected(reads=40, says="alone is more than", drops=late),
         paced("--max-latency", "20ms", live=True, seconds=0.03, detector=0.04)),
        ("file", "slow detector, freshest", Expected(drops={"replaced_by_newer": at_least(10)}, **some),
         paced("--mode", "freshest", live=False, seconds=0.005, detector=0.05)),
    ]  # fmt: skip
    return [Case("slow", source, fault, expected, arrange) for source, fault, expected, arrange in rows]
