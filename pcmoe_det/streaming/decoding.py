"""From what PyAV opened to BGR pictures the right way up; shared by files and network streams."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import SourceError

__all__ = [
    "LARGEST_PICTURE_PIXELS",
    "LARGEST_SIDE_PIXELS",
    "PacketTally",
    "check_picture_size",
    "choose_video_stream",
    "missing_frames",
    "prepare_decoder",
    "reason_of",
    "to_upright_bgr",
]

LARGEST_SIDE_PIXELS = 16384
LARGEST_PICTURE_PIXELS = 100_000_000
# PyAV 17 and later convert with as many threads as there are cores, started anew for every frame: 5.1 ms
# instead of 2.4 at 1920 x 1080, 0.9 instead of 0.2 at 416 x 256. Before, it was one thread.
_ONE_THREAD: dict[str, Any] = {"threads": 1} if int(av.__version__.split(".")[0]) >= 17 else {}
_ATTACHED_PICTURE = 0x0400  # AV_DISPOSITION_ATTACHED_PIC


def check_picture_size(width: int, height: int, *, what: str) -> None:
    """Refuse pictures so large that they would only fill the memory.

    Raises:
        SourceError: A side above 16384 pixels or more than 100 million pixels.
    """
    if max(width, height) > LARGEST_SIDE_PIXELS or width * height > LARGEST_PICTURE_PIXELS:
        raise SourceError(
            f"{what} is {width} x {height} pixels; at most {LARGEST_SIDE_PIXELS} a side and "
            f"{LARGEST_PICTURE_PIXELS // 1_000_000} million in all are read: scale it down first"
        )


def choose_video_stream(container: Any, *, what: str) -> Any:
    """The first video stream that is no cover picture and no rendering of a text file.

    Raises:
        SourceError: There is none, or its pictures are too large.
    """
    for stream in container.streams.video:
        disposition = getattr(stream, "disposition", 0)
        is_cover = bool(int(getattr(disposition, "value", disposition)) & _ATTACHED_PICTURE)
        codec = stream.codec_context.name if stream.codec_context is not None else None
        if not is_cover and codec is not None and codec not in ("ansi", "bintext", "xbin", "idf"):
            check_picture_size(stream.codec_context.width, stream.codec_context.height, what=what)
            return stream
    raise SourceError(f"{what} holds no video that can be decoded; give a video")


@dataclass
class PacketTally:
    """What became of a file's packets.

    Attributes:
        read: Packets that hold something.
        discarded: Of them, those before the beginning of a trimmed video: decoded for the others, not shown.
        lost: Of them, those that could not be decoded.
    """

    read: int = 0
    discarded: int = 0
    lost: int = 0

    def add(self, packet: Any) -> None:
        """Count a packet of PyAV."""
        if packet.size:
            self.read += 1
            self.discarded += bool(packet.is_discard)


def missing_frames(
    container: Any, stream: Any, *, tally: PacketTally, decoded_count: int, end_seconds: float
) -> int:
    """How many frames a file announces and did not hold, once it is read to its end.

    Most containers count their frames, those too that an edit list cuts off at the beginning or at the end.
    Matroska has its length in the header instead.

    Args:
        container: As PyAV opened it.
        stream: The video in it.
        tally: Of its packets.
        decoded_count: Frames decoded.
        end_seconds: When the last frame ended, by its time stamp.
    """
    rate = stream.average_rate or stream.guessed_rate
    if stream.frames:
        cut_off = tally.discarded
        if rate and _is_at_its_end(stream, end_seconds, float(rate)):
            cut_off += max(0, int(stream.frames) - tally.read)
        return max(0, int(stream.frames) - decoded_count - tally.lost - cut_off)
    if "matroska" not in container.format.name or not rate:
        return 0
    missing = (_announced_seconds(container, stream) - end_seconds) * float(rate)
    # Times in Matroska are whole milliseconds, and how long the last frame lasts need not be known.
    return round(missing) if missing > 1.5 else 0


def _is_at_its_end(stream: Any, end_seconds: float, rate: float) -> bool:
    """Whether the frames last as long as the container says that the (trimmed) video does."""
    if not stream.duration or not stream.time_base:
        return False
    announced_seconds = float((stream.duration + (stream.start_time or 0)) * stream.time_base)
    return (announced_seconds - end_seconds) * rate <= 0.5  # frames


def _announced_seconds(container: Any, stream: Any) -> float:
    """The length of a Matroska file's video as its header tells it; 0.0 where it does not."""
    match = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d*)?)", stream.metadata.get("DURATION", ""))
    if match is not None:
        return int(match[1]) * 3600 + int(match[2]) * 60 + float(match[3])
    # The whole file's length is the video's where there is nothing else in it.
    return (container.duration or 0) / 1e6 if len(container.streams) == 1 else 0.0


def prepare_decoder(stream: Any) -> None:
    """Set up the decoder of a stream before its first packet.

    One decoding thread: 1080p H.264 takes 3.5 ms a frame with one, 3.8 with two slice threads and 4.1 with
    two frame threads, which also hold frames back. The cores belong to the detector.
    """
    stream.thread_type = "NONE"
    stream.codec_context.thread_count = 1
    # Of a size that changes in mid-stream nothing is known before it is decoded.
    stream.codec_context.options = {"max_pixels": str(LARGEST_PICTURE_PIXELS)}


def to_upright_bgr(picture: Any) -> NDArray[np.uint8]:
    """``[height, width, 3]`` uint8 BGR, turned as the display matrix says. Alpha is dropped, 16 bits are
    scaled to 8.

    ``rotation`` is counter-clockwise in degrees, as ``numpy.rot90`` counts. PyAV below 14 has no such
    attribute; there the picture stays as stored.

    Raises:
        SourceError: A picture format that cannot be converted.
    """
    try:
        image: NDArray[np.uint8] = picture.to_ndarray(format="bgr24", **_ONE_THREAD)
    except (av.error.FFmpegError, ValueError) as error:
        raise SourceError(
            f"pictures of the format {picture.format.name} cannot be used ({reason_of(error)}); "
            "convert the video to yuv420p"
        ) from error
    quarter_turns = round(getattr(picture, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image


def reason_of(error: BaseException) -> str:
    """What went wrong in FFmpeg's words, without the address, which PyAV's own text holds."""
    if isinstance(error, av.error.ExitError):
        return "no answer in time"
    return str(getattr(error, "strerror", None) or type(error).__name__)
