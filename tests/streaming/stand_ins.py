"""Made-up sources, detectors, sinks and clips for the tests of streams."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np

from pcmoe_det.structures import Detections, Frame, Gap

CLASS_NAMES = ("pedestrian", "car", "truck", "bus", "motorcycle", "bicycle")
VALUE_STEP = 10  # grey levels between neighbouring frames: more than H.264 loses on a flat picture


def grey_of(index: int) -> int:
    """The grey value that says which frame this is, for up to 24 frames."""
    return 10 + VALUE_STEP * (index % 24)


def index_of(image: np.ndarray) -> int:
    """The frame index that ``grey_of`` wrote into a picture."""
    return round((float(image.mean()) - 10) / VALUE_STEP)


def make_clip(
    path: Path,
    *,
    ticks: Sequence[int] = tuple(range(12)),
    time_base: Fraction = Fraction(1, 25),
    width: int = 64,
    height: int = 48,
    codec: str = "libx264",
    pix_fmt: str = "yuv420p",
    rotation: int = 0,
    corner: bool = False,
    key_frames_only: bool = False,
) -> Path:
    """A clip whose frame ``i`` has the grey value ``grey_of(i)`` and the time ``ticks[i] * time_base``."""
    options = {"g": "1"} if key_frames_only else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=25, options=options)
        stream.width, stream.height, stream.pix_fmt = width, height, pix_fmt
        stream.codec_context.time_base = time_base
        if rotation:
            stream.set_display_rotation(rotation)
        for index, tick in enumerate(ticks):
            image = np.full((height, width, 3), grey_of(index), np.uint8)
            if corner:
                image[: height // 4, : width // 4] = (0, 0, 255)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format=pix_fmt)
            frame.pts, frame.time_base = tick, time_base
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path


def read_clip(path: Path) -> tuple[list[float], list[np.ndarray]]:
    """Times in seconds and BGR pictures of a clip, by PyAV's plain interface."""
    with av.open(str(path)) as container:
        frames = [
            (float(frame.pts * frame.time_base), frame.to_ndarray(format="bgr24"))
            for frame in container.decode(video=0)
        ]
    return [time for time, _ in frames], [image for _, image in frames]


def detections(*rows: tuple[float, float, float, float, float, int]) -> Detections:
    """Rows of x1, y1, x2, y2, score, class."""
    table = np.array(rows, np.float64).reshape(-1, 6)
    return Detections(
        boxes_xyxy=table[:, :4].astype(np.float32),
        scores=table[:, 4].astype(np.float32),
        class_ids=table[:, 5].astype(np.int64),
    )


def frame(
    index: int = 0,
    *,
    width: int = 64,
    height: int = 48,
    pts_seconds: float | None = 0.0,
    source_id: str = "made",
    gap: Gap | None = None,
    captured_at_seconds: float | None = None,
) -> Frame:
    image = np.full((height, width, 3), grey_of(index), np.uint8)
    return Frame(
        image=image,
        source_id=source_id,
        frame_index=index,
        pts_seconds=pts_seconds,
        captured_at_seconds=float(index) if captured_at_seconds is None else captured_at_seconds,
        gap=gap,
    )


class StandInDetector:
    """Finds one box whose score tells which frame it was."""

    class_names = CLASS_NAMES

    def __init__(self) -> None:
        self.seen: list[int] = []

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        self.seen += [index_of(image) for image in images]
        return [detections((1, 2, 30, 40, 0.9, 1), (5, 5, 9, 9, 0.1, 2)) for _ in images]


class StandInSource:
    """Frames from memory. ``fail_at`` raises there; ``wait_at`` blocks there until interrupted; the second
    frame comes when ``gate`` is set; ``gaps`` come before the frames they are listed under."""

    frame_rate: Fraction | None = Fraction(25)
    time_base: Fraction | None = None

    def __init__(
        self,
        count: int = 20,
        *,
        is_live: bool = False,
        fail_at: int | None = None,
        error: BaseException | None = None,
        wait_at: int | None = None,
        heeds_interrupt: bool = True,
        gate: threading.Event | None = None,
        source_id: str = "made",
        gaps: Mapping[int, Gap] | None = None,
        clock: Callable[[], float] | None = None,
    ) -> None:
        self.source_id = source_id
        self.frame_count: int | None = count
        self.is_live = is_live
        self.faults: dict[str, int] = {}
        self.seconds_lost = 0.0
        self.waiting = threading.Event()
        self.released = threading.Event()
        self.closed = 0
        self._fail_at, self._error, self._wait_at = fail_at, error, wait_at
        self._heeds_interrupt, self._gate = heeds_interrupt, gate
        self._gaps, self._clock = gaps or {}, clock

    def __iter__(self) -> Iterator[Frame]:
        for index in range(self.frame_count or 0):
            if index == 1 and self._gate is not None:
                self._gate.wait()
            if index == self._fail_at:
                raise self._error or OSError("the disk went away")
            if index == self._wait_at:
                self.waiting.set()
                self.released.wait()
                return
            yield frame(
                index,
                pts_seconds=index / 25,
                source_id=self.source_id,
                gap=self._gaps.get(index),
                captured_at_seconds=None if self._clock is None else self._clock(),
            )

    def interrupt(self) -> None:
        if self._heeds_interrupt:
            self.released.set()

    def close(self) -> None:
        self.closed += 1


class StandInSink:
    """Keeps what it is given. ``fail_at`` raises there; ``block`` makes ``write`` wait for ``released``."""

    needs_picture = False

    def __init__(self, stage: str = "kept", *, fail_at: int | None = None, block: bool = False) -> None:
        self.stage = stage
        self.results: list[int] = []
        self.latencies: list[dict[str, float]] = []
        self.detections: list[Detections] = []
        self.outcomes: list[str] = []
        self.writing = threading.Event()
        self.released = threading.Event()
        self.fail_in_close: BaseException | None = None
        self._fail_at, self._block = fail_at, block

    def write(self, result, picture) -> None:
        self.writing.set()
        if self._block:
            self.released.wait()
        if result.frame.frame_index == self._fail_at:
            raise ValueError("the sink is full")
        self.results.append(result.frame.frame_index)
        self.latencies.append(dict(result.latency_ms))
        self.detections.append(result.detections)

    def close(self, outcome) -> list[Path]:
        self.outcomes.append(outcome)
        if self.fail_in_close is not None:
            raise self.fail_in_close
        return [Path(self.stage)]
