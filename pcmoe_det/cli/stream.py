"""``tools/stream.py``: detect objects in a video or a camera's pictures."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING

from pcmoe_det.cli.committee_options import add_committee_options, open_detector
from pcmoe_det.cli.entry import EXIT_INTERRUPTED, EXIT_OK, make_parser, run
from pcmoe_det.errors import OutputError, UsageError

if TYPE_CHECKING:
    from pcmoe_det.streaming import FrameSource, OutputFile, ResultSink, StreamPipeline
    from pcmoe_det.streaming.window_sink import WindowSink
    from pcmoe_det.structures import FrameDetector

__all__ = ["StopSignals", "entry", "stream"]

_POLL_SECONDS = 0.1
_WINDOW_POLL_SECONDS = 0.02


def entry() -> int:
    """The command ``pcmoe-stream``."""
    with ExitStack() as opened:  # the store and the committee outlive the pipeline's threads
        exit_code = run(_parser(), lambda arguments: stream(arguments, load=_loader(opened)))
        if any(thread.name.startswith("pcmoe-") for thread in threading.enumerate()):
            # A detector or a source that was left behind: Python does not wait for it, but native code
            # still running can crash the interpreter's clean-up.
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(exit_code)
    return exit_code


def stream(arguments: argparse.Namespace, *, load: Callable[[argparse.Namespace], FrameDetector]) -> int:
    """Check outputs and source, load the detector, run the stream, print its summary.

    Args:
        arguments: As the parser of ``entry`` gives them.
        load: Gives the detector; called once everything else that can fail early has been checked.

    Returns:
        The exit code: 0 done (also when the window was closed), 130 interrupted.

    Raises:
        PcmoeError: What ended the stream; the summary was printed and partial outputs are kept.
    """
    with StopSignals() as signals:
        # OpenCV reports a missing camera in several lines on standard error; ours is one sentence.
        os.environ.setdefault("OPENCV_LOG_LEVEL", "INFO" if arguments.verbose else "SILENT")
        outputs = _check_outputs(arguments)
        source = _open(arguments)
        with ExitStack() as on_failure:
            on_failure.callback(source.close)
            detector = load(arguments)
            on_failure.pop_all()  # from here on the pipeline closes the source
        return _run_pipeline(arguments, source, detector, outputs, signals)


class StopSignals:
    """Ctrl-C and SIGTERM: the first asks for an orderly end, the second leaves at once.

    Until ``graceful`` is set (there is nothing to put in order while the model loads) the first one raises
    ``KeyboardInterrupt``. The handler itself takes no locks: it may interrupt a thread that holds them.
    """

    def __init__(self) -> None:
        self.graceful = False
        self.count = 0
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopSignals:
        for number in (signal.SIGINT, signal.SIGTERM):
            self._previous[number] = signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:  # noqa: ARG002
        self.count += 1
        if not self.graceful:
            raise KeyboardInterrupt
        if self.count >= 2:
            os.write(2, b"\nleft at once; unfinished outputs are named *.part.*\n")
            os._exit(EXIT_INTERRUPTED)


def _parser() -> argparse.ArgumentParser:
    parser = make_parser("pcmoe-stream", "Detect objects in a video file or a camera's pictures.")
    source = parser.add_argument_group("source (one of)").add_mutually_exclusive_group(required=True)
    source.add_argument("--source", action="append", metavar="FILE", help="a video file")
    source.add_argument("--camera", type=_whole_number(0), metavar="N", help="a camera by its index, from 0")
    output = parser.add_argument_group("output")
    output.add_argument(
        "--output", metavar="FILE", help="write the video with boxes drawn (H.264: .mp4 .m4v .mov .mkv)"
    )
    output.add_argument("--jsonl", metavar="FILE", help="write one JSON object per frame")
    output.add_argument("--summary", metavar="FILE", help="write the final summary as JSON")
    output.add_argument("--show", action="store_true", help="open a window; q closes it and ends")
    output.add_argument("--overwrite", action="store_true", help="replace existing output files")
    model = parser.add_argument_group("model")
    model.add_argument(
        "--model",
        metavar="PATH",
        help="weights, or a folder of tools/pack.py; without it the shipped weights",
    )
    model.add_argument(
        "--config", metavar="PATH", help="the model's configuration, where the weights do not name it"
    )
    model.add_argument("--device", default="cpu", help="where the model runs")
    model.add_argument("--threads", type=_whole_number(1), metavar="N", help="threads of the detector")
    model.add_argument(
        "--score-threshold", type=_score, default=0.3, metavar="S", help="leave out detections scored below"
    )
    model.add_argument("--dtype", choices=("auto", "float32", "bfloat16"), default="auto", help="arithmetic")
    parser.add_argument("--max-frames", type=_whole_number(1), metavar="N", help="stop after so many frames")
    add_committee_options(parser, loading="background")
    return parser


def _loader(opened: ExitStack) -> Callable[[argparse.Namespace], FrameDetector]:
    """What opens the detector that the options describe; ``opened`` closes it."""

    def load(arguments: argparse.Namespace) -> FrameDetector:
        from pcmoe_det.committee.detector import CommitteeDetector

        result = opened.enter_context(
            open_detector(
                arguments.model,
                arguments,
                score_threshold=arguments.score_threshold,
            )
        )
        if result.committee is None:
            return result.detector
        return CommitteeDetector(result.detector, result.committee)

    return load


def _check_outputs(arguments: argparse.Namespace) -> dict[str, OutputFile]:
    """Targets by option, checked as far as possible before anything slow happens."""
    from pcmoe_det.streaming import OutputFile
    from pcmoe_det.streaming.video_sink import check_video_suffix
    from pcmoe_det.streaming.window_sink import check_display

    if arguments.source is not None and len(arguments.source) > 1:
        raise UsageError("several sources at once are not supported yet; give --source once")
    if arguments.output is not None:
        check_video_suffix(Path(arguments.output))
    source = arguments.source[0] if arguments.source else None
    targets: dict[str, OutputFile] = {}
    taken: dict[Path, str] = {}
    for option in ("output", "jsonl", "summary"):
        path = getattr(arguments, option)
        if path is None:
            continue
        target = OutputFile(path, overwrite=arguments.overwrite, source=source)
        for name in (target.path.absolute(), target.partial_path.absolute()):
            if name in taken:
                raise UsageError(
                    f"--{taken[name]} and --{option} both write {name}; give them different names"
                )
            taken[name] = option
        targets[option] = target
    if arguments.show:
        check_display()
    return targets


def _open(arguments: argparse.Namespace) -> FrameSource:
    from pcmoe_det.streaming import open_camera, open_source

    return open_source(arguments.source[0]) if arguments.source else open_camera(arguments.camera)


def _run_pipeline(
    arguments: argparse.Namespace,
    source: FrameSource,
    detector: FrameDetector,
    outputs: dict[str, OutputFile],
    signals: StopSignals,
) -> int:
    from pcmoe_det.streaming import JsonLinesSink, StreamPipeline, VideoSink
    from pcmoe_det.streaming.window_sink import WindowSink

    signals.graceful = True
    sinks: list[ResultSink] = []
    window = WindowSink(f"{source.source_id} - q to quit") if arguments.show else None
    if "output" in outputs:
        sinks.append(VideoSink(outputs["output"], frame_rate=source.frame_rate, time_base=source.time_base))
    if window is not None:
        sinks.append(window)
    if "jsonl" in outputs:  # last, so that its records hold the latency of the others
        sinks.append(JsonLinesSink(outputs["jsonl"], class_names=detector.class_names))
    total = min((n for n in (source.frame_count, arguments.max_frames) if n is not None), default=None)
    pipeline = StreamPipeline(
        source, detector, sinks, score_threshold=arguments.score_threshold, max_frames=arguments.max_frames
    )
    pipeline.start()
    try:
        _follow(pipeline, signals, window, total=total)
    finally:
        pipeline.stop()  # without effect after the end
        try:
            pipeline.close()
        finally:
            _report(pipeline, outputs.get("summary"))
    return EXIT_INTERRUPTED if signals.count else EXIT_OK


def _follow(
    pipeline: StreamPipeline, signals: StopSignals, window: WindowSink | None, *, total: int | None
) -> None:
    """Wait for the end of the stream while passing on signals and showing progress and pictures."""
    from tqdm import tqdm

    with tqdm(total=total, unit="frame", file=sys.stderr, disable=not sys.stderr.isatty()) as bar:
        try:
            stopping = False
            window_open = window is not None
            while not pipeline.wait(_POLL_SECONDS if window is None else _WINDOW_POLL_SECONDS):
                bar.update(pipeline.counts["detected"] - bar.n)
                if signals.count and not stopping:
                    stopping = True
                    print("stopping and closing the files; once more to leave at once", file=sys.stderr)
                    pipeline.stop()
                if window is not None and window_open and not window.show_newest():
                    window_open = False
                    pipeline.stop()
            bar.update(pipeline.counts["detected"] - bar.n)
        finally:
            if window is not None:
                window.close_window()


def _report(pipeline: StreamPipeline, target: OutputFile | None) -> None:
    summary = pipeline.summary()
    print(summary.as_text(), flush=True)
    if target is None:
        return
    try:
        target.partial_path.write_text(json.dumps(summary.as_record(), indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise OutputError(f"the summary {target.path} cannot be written: {error}") from error
    target.finish("complete")


def _whole_number(smallest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest:
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {smallest}")
        return value

    return parse


def _score(text: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = -1.0
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number from 0 to 1")
    return value
