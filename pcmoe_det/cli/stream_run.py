"""Sources and sinks of ``tools/stream.py`` put together, run to the end and reported."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

from pcmoe_det.cli.stream_outputs import StreamOutputs, make_folder
from pcmoe_det.cli.stream_report import report
from pcmoe_det.errors import UsageError

if TYPE_CHECKING:
    from pcmoe_det.cli.stream import StopSignals
    from pcmoe_det.streaming import FrameSource, OutputFile, ResultSink, StreamPipeline
    from pcmoe_det.streaming.preview import PreviewServer
    from pcmoe_det.streaming.tracking import Tracker
    from pcmoe_det.streaming.window_sink import WindowSink
    from pcmoe_det.structures import FrameDetector

__all__ = ["StreamRun", "locations_of", "open_sources"]

_POLL_SECONDS = 0.1
_WINDOW_POLL_SECONDS = 0.02


def locations_of(arguments: argparse.Namespace) -> list[str | int]:
    """The sources asked for: files and addresses as text, cameras as numbers.

    Raises:
        UsageError: There is none, or one is given twice.
    """
    locations: list[str | int] = [*(arguments.source or ()), *(arguments.camera or ())]
    if not locations:
        raise UsageError("nothing to read from; give --source or --camera (see --help)")
    for number, location in enumerate(locations):
        if location in locations[:number]:
            option = "--camera" if isinstance(location, int) else "--source"
            # An address may hold a password: its place says enough.
            raise UsageError(f"{option} number {number + 1} is given twice; each source is read once")
    return locations


def open_sources(
    arguments: argparse.Namespace, locations: Sequence[str | int], *, on_failure: ExitStack
) -> list[FrameSource]:
    """Open every source; ``on_failure`` closes them.

    Raises:
        PcmoeError: One cannot be opened, or ``--max-latency`` would have no effect.
    """
    from pcmoe_det.streaming import open_camera, open_source
    from pcmoe_det.streaming.sources import SourceOptions

    options = SourceOptions(
        open_timeout_seconds=arguments.open_timeout,
        read_timeout_seconds=arguments.read_timeout,
        reconnect_limit=arguments.reconnect,
        frozen_after_seconds=arguments.frozen_after,
    )
    sources = []
    for location in locations:
        if isinstance(location, int):
            source = open_camera(location, options=options)
        else:
            source = open_source(location, options=options)
        on_failure.callback(source.close)
        sources.append(source)
    drops_late_frames = arguments.mode == "freshest" or any(source.is_live for source in sources)
    if arguments.max_latency is not None and not drops_late_frames:
        raise UsageError(
            "--max-latency drops frames of live sources and there is none; every frame of a file is "
            "wanted unless --mode freshest is given"
        )
    return sources


class StreamRun:
    """One run of the command, from open sources to the exit code's facts.

    Constructed before the model is loaded, so that trackers that cannot be made and ports that are in use
    are found before. Closed by leaving ``with``.

    Args:
        arguments: Of the command.
        sources: Open; the pipeline closes them once ``run`` has been called.
        outputs: One for each source.
        summary_target: Where the summary goes, or None.
    """

    def __init__(
        self,
        arguments: argparse.Namespace,
        sources: Sequence[FrameSource],
        outputs: Sequence[StreamOutputs],
        summary_target: OutputFile | None,
    ) -> None:
        self._arguments = arguments
        self._sources = sources
        self._outputs = outputs
        self._summary_target = summary_target
        self._pipeline: StreamPipeline | None = None
        self._detector: FrameDetector | None = None
        self._windows: list[WindowSink] = []
        self._trackers = [self._make_tracker(source) for source in sources]
        self._preview = self._make_preview()

    def __enter__(self) -> StreamRun:
        return self

    def __exit__(self, *_: object) -> None:
        if self._preview is not None:
            self._preview.close()

    def prepare(self, detector: FrameDetector) -> None:
        """Open the outputs. From here on the pipeline closes the sources.

        Raises:
            PcmoeError: An output cannot be opened; those that were are closed.
        """
        from pcmoe_det.streaming import Stream, StreamPipeline

        arguments = self._arguments
        self._detector = detector
        with ExitStack() as on_failure:
            streams = [
                Stream(
                    source,
                    self._sinks(source, outputs, detector.class_names, on_failure),
                    mode=arguments.mode,
                    max_frames=arguments.max_frames,
                    tracker=tracker,
                )
                for source, outputs, tracker in zip(self._sources, self._outputs, self._trackers, strict=True)
            ]
            self._pipeline = StreamPipeline(
                streams,
                detector,
                score_threshold=arguments.score_threshold,
                max_latency_seconds=arguments.max_latency,
            )
            on_failure.pop_all()

    def run(self, signals: StopSignals) -> None:
        """Run every stream to its end and report it; after ``prepare``.

        Raises:
            PcmoeError: What ended a stream first; the summaries were printed and partial outputs are kept.
        """
        pipeline = self._pipeline
        if pipeline is None:
            raise RuntimeError("run before prepare")
        if self._preview is not None:
            self._preview.start()
            print(f"the preview is at {self._preview.url}", file=sys.stderr)
        pipeline.start()
        try:
            self._follow(pipeline, signals)
        finally:
            pipeline.stop()  # without effect after the end
            try:
                pipeline.close()
            finally:
                report(pipeline.summaries(), self._summary_target)

    def _make_tracker(self, source: FrameSource) -> Tracker | None:
        if self._arguments.track is None:
            return None
        from pcmoe_det.streaming.tracking import make_tracker

        rate = source.frame_rate
        return make_tracker(self._arguments.track, frame_rate=None if rate is None else float(rate))

    def _make_preview(self) -> PreviewServer | None:
        arguments = self._arguments
        if arguments.preview is None:
            for option in ("preview_host", "preview_token"):
                if getattr(arguments, option) is not None:
                    raise UsageError(f"--{option.replace('_', '-')} needs --preview")
            return None
        from pcmoe_det.streaming.preview import PreviewServer

        return PreviewServer(
            arguments.preview,
            host=arguments.preview_host or "127.0.0.1",
            token=arguments.preview_token or os.environ.get("PCMOE_PREVIEW_TOKEN"),
            summaries=lambda: () if self._pipeline is None else self._pipeline.summaries(),
            committee=self._committee_view,
        )

    def _committee_view(self) -> Mapping[str, Any] | None:
        committee = getattr(self._detector, "committee", None)
        if committee is None:
            return None
        from pcmoe_det.committee.view import committee_view

        return committee_view(committee)

    def _sinks(
        self,
        source: FrameSource,
        outputs: StreamOutputs,
        class_names: tuple[str, ...],
        on_failure: ExitStack,
    ) -> list[ResultSink]:
        """In the order of writing: what makes pictures, what shows, and records last, so that those hold
        the latency of the others. ``on_failure`` closes them."""
        from pcmoe_det.streaming import JsonLinesSink, VideoSink
        from pcmoe_det.streaming.coco_sink import CocoSink
        from pcmoe_det.streaming.image_sinks import CropSink, FrameImageSink
        from pcmoe_det.streaming.mot_sink import MotSink
        from pcmoe_det.streaming.window_sink import WindowSink

        files, folders, overwrite = outputs.files, outputs.folders, self._arguments.overwrite
        most = self._arguments.max_images
        sinks: list[ResultSink] = []

        def add(sink: ResultSink) -> None:
            on_failure.callback(sink.close, "failed")
            sinks.append(sink)

        if "output" in files:
            add(VideoSink(files["output"], frame_rate=source.frame_rate, time_base=source.time_base))
        if "frames" in folders:
            folder = make_folder(folders["frames"])
            add(FrameImageSink(folder, annotated=True, overwrite=overwrite, max_images=most))
        if "crops" in folders:
            folder = make_folder(folders["crops"])
            add(CropSink(folder, class_names=class_names, overwrite=overwrite, max_images=most))
        if self._arguments.show:
            window = WindowSink(f"{source.source_id} - q to quit")
            self._windows.append(window)
            add(window)
        if self._preview is not None:
            add(self._preview.sink(source.source_id))
        if "coco" in files:
            add(CocoSink(files["coco"], class_names=class_names))
        if "mot" in files:
            add(MotSink(files["mot"], class_names=class_names))
        if "jsonl" in files:
            add(JsonLinesSink(files["jsonl"], class_names=class_names))
        return sinks

    def _total(self, source: FrameSource) -> int | None:
        counts = (source.frame_count, self._arguments.max_frames)
        return min((count for count in counts if count is not None), default=None)

    def _follow(self, pipeline: StreamPipeline, signals: StopSignals) -> None:
        """Wait for the end while passing on signals and showing progress and pictures."""
        with ExitStack() as stack:
            update = self._open_bars(stack)
            for window in self._windows:
                stack.callback(window.close_window)
            stopping = False
            windows_open = bool(self._windows)
            while not pipeline.wait(_WINDOW_POLL_SECONDS if self._windows else _POLL_SECONDS):
                update(pipeline.counts)
                if signals.count and not stopping:
                    stopping = True
                    print("stopping and closing the files; once more to leave at once", file=sys.stderr)
                    pipeline.stop()
                shown = [window.show_newest() for window in self._windows if windows_open]
                if not all(shown):
                    windows_open = False
                    pipeline.stop()
            update(pipeline.counts)

    def _open_bars(self, stack: ExitStack) -> Callable[[Sequence[Mapping[str, int]]], None]:
        """One progress bar a source, where there is a terminal; gives what moves them."""
        from tqdm import tqdm

        several = len(self._sources) > 1
        bars = [
            stack.enter_context(
                tqdm(
                    total=self._total(source),
                    unit="frame",
                    desc=source.source_id[-30:] if several else None,
                    position=position,
                    file=sys.stderr,
                    disable=not sys.stderr.isatty(),
                )
            )
            for position, source in enumerate(self._sources)
        ]

        def update(counts: Sequence[Mapping[str, int]]) -> None:
            for bar, count in zip(bars, counts, strict=True):
                bar.update(count["detected"] - bar.n)

        return update
