"""The annotated video: H.264 with the source's time stamps, through PyAV."""

from __future__ import annotations

import contextlib
from fractions import Fraction
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import OutputError, UsageError
from pcmoe_det.streaming.output_files import OutputFile
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.structures import FrameResult

__all__ = ["VIDEO_SUFFIXES", "TimeStamps", "VideoSink", "check_video_suffix", "choose_time_base"]

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")

# Measured on 90 annotated-size frames, one encoder thread, CPU time a frame at 1920x1080 / 640x352:
# ultrafast 14.8 / 1.9 ms (2.1 / 0.72 MB), superfast 15.2 / 2.7 ms (1.5 / 0.49 MB), veryfast 21.0 / 3.9 ms
# (0.67 / 0.33 MB), fast 38.0 / 7.2 ms. The detector shares the cores, so superfast. Without B-frames
# decoding time equals presentation time: no edit list shifts the time stamps of a variable frame rate.
_ENCODER_OPTIONS = {"preset": "superfast", "crf": "23", "bf": "0"}
_DEFAULT_TIME_BASE = Fraction(1, 90_000)
# MP4 counts in 1/n with 32 bits; a finer unit would overflow after an hour or two.
_FINEST_TIME_BASE = Fraction(1, 1_000_000)
_DEFAULT_FRAME_RATE = Fraction(25)
# A file may start a little late, and its video then does too. Recordings of broadcasts start at any hour of
# their clock: those start at 0, else players show hours of nothing.
_LATEST_START_SECONDS = 10.0


def check_video_suffix(path: Path) -> None:
    """Raise ``UsageError`` unless ``path`` names a container that we write."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(f"the video {path} must end in one of {', '.join(VIDEO_SUFFIXES)}")


def choose_time_base(source_time_base: Fraction | None) -> Fraction:
    """The unit ``1/n`` s in which the source's time stamps are whole numbers, or 1/90000 s.

    A unit ``m/n`` becomes ``1/n``, because MP4 can only count in ``1/n``.
    """
    if source_time_base is None or source_time_base <= 0:
        return _DEFAULT_TIME_BASE
    unit = Fraction(1, source_time_base.denominator)
    return unit if unit >= _FINEST_TIME_BASE else _DEFAULT_TIME_BASE


class TimeStamps:
    """Turns ``pts_seconds`` into ticks that strictly increase, as a container demands.

    Sources that behave keep their times exactly. A time that repeats or steps back by up to a second is
    moved to the next tick; a larger step back (a clock that was reset) continues one frame after the last.
    A frame without a time comes one frame after the last. ``adjusted`` counts all of these.
    """

    def __init__(self, time_base: Fraction, frame_rate: Fraction) -> None:
        self.time_base = time_base
        self.frame_ticks = max(1, round(1 / (frame_rate * time_base)))
        self.adjusted = 0
        self._offset_ticks = 0
        self._last: int | None = None

    def next_ticks(self, pts_seconds: float | None) -> int:
        """Ticks of the next frame."""
        ticks = None if pts_seconds is None else round(pts_seconds / float(self.time_base))
        if self._last is None:
            first = 0 if ticks is None else ticks
            if not 0 <= first * self.time_base <= _LATEST_START_SECONDS:
                self._offset_ticks = -first
                first = 0
            self._last = first
            return first
        if ticks is None:
            self.adjusted += 1
            self._last += self.frame_ticks
            return self._last
        ticks += self._offset_ticks
        if ticks <= self._last:
            self.adjusted += 1
            steps_back_far = (self._last - ticks) * self.time_base > 1
            continued = self._last + (self.frame_ticks if steps_back_far else 1)
            if steps_back_far:
                self._offset_ticks += continued - ticks
            ticks = continued
        self._last = ticks
        return ticks


class VideoSink:
    """Writes H.264 (yuv420p) that browsers play; the first frame's size is the video's.

    Odd sizes are padded by one pixel at the right and bottom. A frame of another size later on is scaled to
    fit, with black bars, because a container has one size.

    Args:
        target: Where to write; see ``OutputFile`` for what a failure leaves behind.
        frame_rate: Frames per second that the source announces, or None. Sets the length of the last frame
            and what the encoder aims at; times come from the frames.
        time_base: Unit of the source's time stamps in seconds, or None.
    """

    stage = "encode"
    needs_picture = True

    def __init__(
        self, target: OutputFile, *, frame_rate: Fraction | None = None, time_base: Fraction | None = None
    ) -> None:
        check_video_suffix(target.path)
        self._target = target
        self._frame_rate = frame_rate if frame_rate is not None and frame_rate > 0 else _DEFAULT_FRAME_RATE
        self._times = TimeStamps(choose_time_base(time_base), self._frame_rate)
        self._container: Any = None
        self._stream: Any = None
        self._count = 0

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:
        if picture is None:
            raise ValueError("the video needs the drawn picture; the stream did not make one")
        try:
            if self._container is None:
                self._open(height=picture.shape[0], width=picture.shape[1])
            yuv = cv2.cvtColor(_fit(picture, self._stream.height, self._stream.width), cv2.COLOR_BGR2YUV_I420)
            frame = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
            frame.pts = self._times.next_ticks(result.frame.pts_seconds)
            frame.time_base = self._times.time_base
            self._mux(self._stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            raise OutputError(
                f"{self._target.path} cannot be written after {self._count} frames: {_reason(error)}"
            ) from error
        self._count += 1

    def close(self, outcome: SinkOutcome) -> list[Path]:
        if self._container is None:
            return []
        try:
            try:
                if self._count:
                    self._mux(self._stream.encode(None))
            finally:
                self._container.close()
        except (av.error.FFmpegError, OSError) as error:
            if outcome != "failed":
                raise OutputError(
                    f"{self._target.path} cannot be finished: {_reason(error)}; what there is: "
                    f"{self._target.partial_path}"
                ) from error
        if self._count == 0:
            self._target.discard()
        path = self._target.finish(outcome)
        return [] if path is None else [path]

    def _open(self, *, height: int, width: int) -> None:
        time_base = self._times.time_base
        is_mp4 = self._target.path.suffix.lower() != ".mkv"
        # The index goes to the front, so that a browser plays while it loads; edit lists are counted in the
        # movie's time scale, which is 1/1000 s unless told otherwise.
        options = {"movflags": "+faststart", "movie_timescale": str(time_base.denominator)} if is_mp4 else {}
        container = av.open(f"file:{self._target.partial_path}", "w", options=options)
        try:
            stream = container.add_stream("libx264", rate=self._frame_rate, options=dict(_ENCODER_OPTIONS))
            stream.width, stream.height = width + width % 2, height + height % 2
            stream.pix_fmt = "yuv420p"
            codec = stream.codec_context
            codec.time_base = time_base
            codec.thread_count = 1
            # OpenCV converts with BT.601 and limited range (4 ms a 1080p frame; swscale takes 9): said in the
            # file, because players guess BT.709 for high definition. 5: BT.470BG, 1: limited.
            codec.colorspace, codec.color_range = 5, 1
            container.start_encoding()  # creates the file now, not when the encoder gives its first packet
        except BaseException:
            with contextlib.suppress(av.error.FFmpegError, OSError):
                container.close()
            raise
        self._container, self._stream = container, stream

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # Only the last one's counts: containers take the others from the next frame's time.
            packet.duration = self._times.frame_ticks
            self._container.mux(packet)


def _fit(picture: NDArray[np.uint8], height: int, width: int) -> NDArray[np.uint8]:
    """``picture`` as ``[height, width, 3]``: as it is, padded by one pixel, or scaled between black bars."""
    have_height, have_width = picture.shape[:2]
    if (have_height, have_width) == (height, width):
        return picture
    missing_rows, missing_columns = height - have_height, width - have_width
    if missing_rows in (0, 1) and missing_columns in (0, 1):
        padded = cv2.copyMakeBorder(picture, 0, missing_rows, 0, missing_columns, cv2.BORDER_REPLICATE)
        return np.asarray(padded, dtype=np.uint8)
    scale = min(height / have_height, width / have_width)
    inner_height = min(height, max(1, round(have_height * scale)))
    inner_width = min(width, max(1, round(have_width * scale)))
    canvas = np.zeros((height, width, 3), np.uint8)
    top, left = (height - inner_height) // 2, (width - inner_width) // 2
    interpolation = cv2.INTER_AREA if scale < 1 else cv2.INTER_LINEAR
    scaled = cv2.resize(picture, (inner_width, inner_height), interpolation=interpolation)
    canvas[top : top + inner_height, left : left + inner_width] = scaled
    return canvas


def _reason(error: BaseException) -> str:
    return str(getattr(error, "strerror", None) or error)
