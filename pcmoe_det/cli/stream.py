"""``tools/stream.py``: detect objects in videos and in cameras' pictures."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack
from types import FrameType
from typing import TYPE_CHECKING

from pcmoe_det.cli.committee_choice import check_committee_options
from pcmoe_det.cli.committee_options import open_detector
from pcmoe_det.cli.entry import EXIT_INTERRUPTED, EXIT_OK, run
from pcmoe_det.cli.stream_options import make_stream_parser as _parser
from pcmoe_det.cli.stream_outputs import check_outputs
from pcmoe_det.cli.stream_run import StreamRun, locations_of, open_sources

if TYPE_CHECKING:
    from pcmoe_det.structures import FrameDetector

__all__ = ["StopSignals", "entry", "stream"]


def entry() -> int:
    """The command ``pcmoe-stream``."""
    left_open: list[ExitStack] = []
    exit_code = run(_parser(), lambda arguments: _stream_and_close(arguments, left_open))
    if left_open:
        # Python does not wait for such a thread, but native code still running in it can crash the
        # interpreter's clean-up.
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(exit_code)
    return exit_code


def _stream_and_close(arguments: argparse.Namespace, left_open: list[ExitStack]) -> int:
    """Run the command; the store and the committee outlive the pipeline's threads.

    A detector that was left behind keeps what it works with: that goes to ``left_open``. Where only a source
    was left, an empty stack does: model and trace are closed, but the interpreter must not clean up under it.
    """
    with ExitStack() as opened:
        try:
            return stream(arguments, load=_loader(opened))
        finally:
            left = {thread.name for thread in threading.enumerate() if thread.name.startswith("pcmoe-")}
            if left:
                from pcmoe_det.streaming.pipeline import DETECTOR_THREAD

                left_open.append(opened.pop_all() if DETECTOR_THREAD in left else ExitStack())


def stream(arguments: argparse.Namespace, *, load: Callable[[argparse.Namespace], FrameDetector]) -> int:
    """Check outputs and sources, load the detector, run the streams, print their summaries.

    Args:
        arguments: As the parser of ``entry`` gives them.
        load: Gives the detector; called once everything else that can fail early has been checked.

    Returns:
        The exit code: 0 done (also when a window was closed), 130 interrupted.

    Raises:
        PcmoeError: What ended a stream; the summaries were printed and partial outputs are kept.
    """
    with StopSignals() as signals, ExitStack() as stack:
        # OpenCV reports a missing camera in several lines on standard error; ours is one sentence.
        os.environ.setdefault("OPENCV_LOG_LEVEL", "INFO" if arguments.verbose else "SILENT")
        check_committee_options(arguments)
        locations = locations_of(arguments)
        outputs, summary_target = check_outputs(arguments, locations)
        with ExitStack() as on_failure:
            sources = open_sources(arguments, locations, on_failure=on_failure)
            streams = stack.enter_context(StreamRun(arguments, sources, outputs, summary_target))
            streams.prepare(load(arguments))
            signals.graceful = True
            on_failure.pop_all()  # from here on the pipeline closes the sources
        streams.run(signals)
        return EXIT_INTERRUPTED if signals.count else EXIT_OK


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


def _loader(opened: ExitStack) -> Callable[[argparse.Namespace], FrameDetector]:
    """What opens the detector that the options describe; ``opened`` closes it."""

    def load(arguments: argparse.Namespace) -> FrameDetector:
        result = opened.enter_context(
            open_detector(
                arguments.model,
                arguments,
                score_threshold=arguments.score_threshold,
            )
        )
        return result.for_frames()

    return load
