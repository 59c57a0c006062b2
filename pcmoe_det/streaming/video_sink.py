"""The annotated video: H.264 with the source's time stamps, through PyAV."""

from __future__ import annotations

import contextlib
import math
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
from pcmoe_det.streaming.video_file import FragmentFile, container_options, copy_with_index_in_front
from pcmoe_det.streaming.video_times import DEFAULT_FRAME_RATE, TimeStamps, choose_time_base
from pcmoe_det.structures import FrameResult

__all__ = ["VIDEO_SUFFIXES", "VideoSink", "check_video_suffix"]

VIDEO_SUFFIXES = (".mp4", ".m4v", ".mov", ".mkv")

# The detector shares the cores, so CPU time counts first. One encoder thread, crf 23, no B-frames, 60 frames
# of a street with five drawn boxes, machine loaded (clip A at 640x352 enlarged, clip B at 1920x1080 reduced):
#
#   CPU ms a frame; kB a frame; PSNR of luma    640x360            1280x720           1920x1080
#   clip A  ultrafast                        2.0; 12; 39.1      5.8; 26; 41.0     11.3; 47; 42.7
#           superfast                        2.8;  9; 37.7      7.5; 19; 40.5     15.8; 33; 42.6
#   clip B  ultrafast                        1.2;  8; 41.8      4.1; 17; 44.2      7.9; 30; 45.6
#           superfast                        1.7;  6; 41.4      6.4; 13; 43.9     12.4; 22; 45.8
#           veryfast                         3.1;  3; 39.1     10.0;  6; 41.7     16.2; 11; 43.5
#
# ultrafast is a third cheaper than superfast for files a third larger at the same quality. superfast stays:
# 0.5 to 4 ms of a frame buy that third of the disk and of the network. veryfast looks 10 frames ahead, which
# a killed process would lose. ``tune=zerolatency`` changes neither time nor size; without B-frames and
# lookahead only one frame is held back anyway. And without B-frames decoding time equals presentation time:
# no edit list shifts the time stamps of a variable frame rate. CAVLC instead of CABAC, or CABAC in ultrafast,
# move both figures along the same line.
#
# BGR to yuv420p with OpenCV, frame object included: 0.16, 0.6, 1.3 ms; with swscale 0.6-1.8, 6.5, 6.2 ms.
_ENCODER_OPTIONS = {"preset": "superfast", "crf": "23", "bf": "0"}
# Level 5.1, 4096x2304, is what browsers and decoders in hardware go up to; H.264 itself ends at 139,264.
_MOST_MACROBLOCKS = 36_864
_LONGEST_SIDE = 8_688
# Copying takes 13 us a packet and 5 ms a megabyte. Whoever interrupts waits for 2 s at most, for everything.
_INTERRUPTED_COPY_FRAMES, _INTERRUPTED_COPY_BYTES = 20_000, 100_000_000
# The index of a plain MP4 takes 80 bytes a frame of memory while it is copied: 80 MB.
_COPY_FRAMES = 1_000_000


def check_video_suffix(path: Path) -> None:
    """Raise ``UsageError`` unless ``path`` names a container that we write."""
    if path.suffix.lower() not in VIDEO_SUFFIXES:
        raise UsageError(f"the video {path} must end in one of {', '.join(VIDEO_SUFFIXES)}")


class VideoSink:
    """Writes H.264 (yuv420p) that browsers play; the first frame's size is the video's.

    Odd sizes are padded by one pixel at the right and bottom. Pictures beyond 4096x2304 pixels (in area) are
    scaled down, because browsers play no larger ones. A frame of another size later on is scaled to fit, with
    black bars, because a container has one size and players handle no other solution. A gap stands still for
    as long as it took (an hour at most).

    See ``video_file`` for what a crash or a full disk leaves.

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
        self._frame_rate = frame_rate if frame_rate is not None and frame_rate > 0 else DEFAULT_FRAME_RATE
        self._times = TimeStamps(choose_time_base(time_base), self._frame_rate)
        self._file: FragmentFile | None = None
        self._container: Any = None
        self._stream: Any = None
        self._count = 0

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:
        if picture is None:
            raise ValueError("the video needs the drawn picture; the stream did not make one")
        gap = result.frame.gap
        try:
            if self._container is None:
                self._open(height=picture.shape[0], width=picture.shape[1])
            yuv = cv2.cvtColor(_fit(picture, self._stream.height, self._stream.width), cv2.COLOR_BGR2YUV_I420)
            frame = av.VideoFrame.from_ndarray(yuv, format="yuv420p")
            frame.pts = self._times.next_ticks(
                result.frame.pts_seconds, gap_seconds=None if gap is None else gap.seconds
            )
            frame.time_base = self._times.time_base
            self._mux(self._stream.encode(frame))
        except (av.error.FFmpegError, OSError) as error:
            reason = _reason((self._file and self._file.error) or error)
            kept = f"all but about the last second is kept, playable, in {self._target.partial_path}"
            if self._nothing_kept:
                kept = "there is nothing to keep yet"
            raise OutputError(
                f"{self._target.path} cannot be written after {self._count} frames: {reason}; {kept}"
            ) from error
        self._count += 1

    def close(self, outcome: SinkOutcome) -> list[Path]:
        if self._container is None or self._file is None:
            return []
        try:
            self._close_container(self._file)
        except (av.error.FFmpegError, OSError) as error:
            if outcome != "failed":
                raise OutputError(
                    f"{self._target.path} cannot be finished: {_reason(error)}; what there is: "
                    f"{self._target.partial_path}"
                ) from error
        if self._nothing_kept:
            self._target.discard()
        elif outcome != "failed":
            self._put_index_in_front(outcome)
        path = self._target.finish(outcome)
        return [] if path is None else [path]

    @property
    def _nothing_kept(self) -> bool:
        file = self._file
        return self._count == 0 or file is None or (file.error is not None and file.whole_bytes == 0)

    def _open(self, *, height: int, width: int) -> None:
        time_base = self._times.time_base
        container_format, options = container_options(self._target.path.suffix, time_base)
        file = FragmentFile(self._target.create())
        container = None
        try:
            container = av.open(file, "w", format=container_format, options=options)
            stream = container.add_stream("libx264", rate=self._frame_rate, options=dict(_ENCODER_OPTIONS))
            stream.height, stream.width = _video_size(height, width)
            stream.pix_fmt = "yuv420p"
            codec = stream.codec_context
            codec.time_base = time_base
            codec.thread_count = 1
            # OpenCV converts with BT.601 and limited range: said in the file, because players guess BT.709
            # for high definition. 5: BT.470BG, 1: limited.
            codec.colorspace, codec.color_range = 5, 1
            container.start_encoding()
        except BaseException:
            with contextlib.suppress(av.error.FFmpegError, OSError):
                if container is not None:
                    container.close()
            file.close()
            self._target.discard()
            raise
        self._file, self._container, self._stream = file, container, stream

    def _close_container(self, file: FragmentFile) -> None:
        try:
            # After a write that failed, the muxer's state does not matter: the file takes nothing more.
            if self._count and file.error is None:
                self._mux(self._stream.encode(None))
        finally:
            try:
                self._container.close()
            finally:
                file.close()

    def _put_index_in_front(self, outcome: SinkOutcome) -> None:
        path = self._target.partial_path
        if path.suffix.lower() == ".mkv" or self._count > _COPY_FRAMES or not path.exists():
            return
        if outcome == "interrupted" and (
            self._count > _INTERRUPTED_COPY_FRAMES or path.stat().st_size > _INTERRUPTED_COPY_BYTES
        ):
            return
        copy = path.with_name(f"{path.stem}-copy{path.suffix}")
        if copy_with_index_in_front(path, copy, time_base=self._times.time_base):
            copy.replace(path)

    def _mux(self, packets: list[Any]) -> None:
        for packet in packets:
            # Only the last one's counts: containers take the others from the next frame's time.
            packet.duration = self._times.frame_ticks
            self._container.mux(packet)


def _video_size(height: int, width: int) -> tuple[int, int]:
    """Height and width of the video for pictures of this size: even, and no more than browsers play."""
    scale = min(
        1.0, _LONGEST_SIDE / max(height, width), math.sqrt(_MOST_MACROBLOCKS * 256 / (height * width))
    )
    while True:
        even_height, even_width = (max(2, 2 * math.ceil(side * scale / 2)) for side in (height, width))
        if math.ceil(even_height / 16) * math.ceil(even_width / 16) <= _MOST_MACROBLOCKS:
            return even_height, even_width
        scale *= 0.995  # blocks at the border count as whole ones


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
