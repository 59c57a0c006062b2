"""Video files, decoded by PyAV with the container's time stamps."""

from __future__ import annotations

import logging
import stat
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from time import monotonic
from typing import Any

import av
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import SourceError
from pcmoe_det.structures import Frame

__all__ = ["FileSource"]

_log = logging.getLogger(__name__)

# A damaged place costs one or a few packets; a run of this many failed reads is a device that has gone.
_MAX_FAILED_READS_IN_A_ROW = 32
# Playlists make FFmpeg open other files or addresses, and a local HLS list without an end marker makes it
# wait for more for ever. A file source is one file.
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"v=0\n", b"v=0\r\n", b"<MPD", b"<?xml")
_ATTACHED_PICTURE = 0x0400  # AV_DISPOSITION_ATTACHED_PIC
# Safety net for a damaged header that sends a demuxer round in circles.
_OPEN_TIMEOUT_SECONDS = 20.0
_READ_TIMEOUT_SECONDS = 60.0


class FileSource:
    """One video file: every frame, in order of presentation, as BGR pictures the right way up.

    Variable frame rates are kept (``pts_seconds`` is the container's), rotation metadata is applied.
    Packets that cannot be decoded are counted in ``faults`` and skipped; each takes a ``frame_index``, so
    that later frames keep their position in the file.

    Args:
        path: The file. The first frame is decoded at once, so that an unusable file is found early.
        clock: Seconds; for ``captured_at_seconds``.

    Raises:
        SourceError: No such file, a folder, an empty file, not a video, or no frame can be decoded.
    """

    is_live = False

    def __init__(self, path: str | Path, *, clock: Callable[[], float] = monotonic) -> None:
        self._path = Path(path)
        self._clock = clock
        self._faults: Counter[str] = Counter()
        self._interrupted = False
        self._lost_packets = 0
        _check_regular_file(self._path)
        self._container = _open_container(self._path)
        try:
            self._stream = _choose_video_stream(self._container, self._path)
            # One decoding thread: 1080p H.264 takes 3.5 ms a frame with one, 3.8 with two slice threads and
            # 4.1 with two frame threads, which also hold frames back. The cores belong to the detector.
            self._stream.thread_type = "NONE"
            self._stream.codec_context.thread_count = 1
            self._decoded = self._decode()
            self._first: Any = next(self._decoded, None)
            if self._first is None:
                raise SourceError(
                    f"no frame of {self._path} can be decoded; it may be damaged or cut off: try to play it"
                )
        except BaseException:
            self._container.close()
            raise

    @property
    def source_id(self) -> str:
        return str(self._path)

    @property
    def frame_rate(self) -> Fraction | None:
        rate = self._stream.average_rate or self._stream.guessed_rate
        return Fraction(rate) if rate else None

    @property
    def frame_count(self) -> int | None:
        return int(self._stream.frames) or None

    @property
    def time_base(self) -> Fraction | None:
        return Fraction(self._stream.time_base) if self._stream.time_base else None

    @property
    def faults(self) -> Mapping[str, int]:
        """Counts: ``unreadable`` and ``undecodable`` packets, ``corrupt`` frames that were decoded all the
        same, ``missing`` frames that the container announces but does not hold."""
        return dict(self._faults)

    def __iter__(self) -> Iterator[Frame]:
        decoded_count = 0
        try:
            while not self._interrupted:
                picture = self._first if decoded_count == 0 else next(self._decoded, None)
                if picture is None:
                    break
                self._first = None
                if picture.is_corrupt:
                    self._faults["corrupt"] += 1
                yield Frame(
                    image=_to_upright_bgr(picture),
                    source_id=self.source_id,
                    frame_index=decoded_count + self._lost_packets,
                    pts_seconds=None if picture.pts is None else float(picture.pts * picture.time_base),
                    captured_at_seconds=self._clock(),
                )
                decoded_count += 1
        except av.error.FFmpegError as error:
            raise SourceError(
                f"{self._path} cannot be read after frame {decoded_count - 1}: {error}"
            ) from error
        announced = self.frame_count
        missing = 0 if announced is None else announced - decoded_count - self._lost_packets
        if missing > 0 and not self._interrupted:
            self._faults["missing"] = missing

    def interrupt(self) -> None:
        self._interrupted = True

    def close(self) -> None:
        self._container.close()

    def _decode(self) -> Iterator[Any]:
        """Frames as PyAV gives them, over damaged places."""
        packets = self._container.demux(self._stream)
        failed_in_a_row = 0
        while not self._interrupted:
            try:
                packet = next(packets)
                failed_in_a_row = 0
            except StopIteration:
                return
            except av.error.FFmpegError as error:
                self._faults["unreadable"] += 1
                failed_in_a_row += 1
                if failed_in_a_row >= _MAX_FAILED_READS_IN_A_ROW:
                    raise
                _log.info("%s: %s; reading on", self._path, error)
                packets = self._container.demux(self._stream)
                continue
            try:
                pictures = packet.decode()
            except av.error.FFmpegError as error:
                self._faults["undecodable"] += 1
                self._lost_packets += 1
                _log.info("%s: a packet cannot be decoded: %s", self._path, error)
                continue
            yield from pictures


def _check_regular_file(path: Path) -> None:
    """Raise a ``SourceError`` that says what is there instead of a video file."""
    try:
        status = path.stat()
        if stat.S_ISDIR(status.st_mode):
            raise SourceError(f"the source {path} is a folder; give a video file")
        if not stat.S_ISREG(status.st_mode):
            raise SourceError(f"the source {path} is not a regular file; give a video file")
        if status.st_size == 0:
            raise SourceError(f"the source {path} is empty (0 bytes)")
        with path.open("rb") as file:
            start = file.read(64)
    except FileNotFoundError:
        raise SourceError(f"there is no file {path}; check the path") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        raise SourceError(f"the source {path} cannot be read: {error}") from error
    if start.lstrip().startswith(_PLAYLIST_STARTS):
        raise SourceError(f"the source {path} is a playlist or a text file; give a video file")


def _open_container(path: Path) -> Any:
    try:
        return av.open(
            f"file:{path}",  # else a colon in the name would be taken for a protocol
            options={"protocol_whitelist": "file"},
            timeout=(_OPEN_TIMEOUT_SECONDS, _READ_TIMEOUT_SECONDS),
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise SourceError(f"{path} is not a video that FFmpeg can read ({reason})") from error


def _choose_video_stream(container: Any, path: Path) -> Any:
    """The first video stream that is no cover picture and no rendering of a text file."""
    for stream in container.streams.video:
        disposition = getattr(stream, "disposition", 0)
        is_cover = bool(int(getattr(disposition, "value", disposition)) & _ATTACHED_PICTURE)
        codec = stream.codec_context.name if stream.codec_context is not None else None
        if not is_cover and codec is not None and codec not in ("ansi", "bintext", "xbin", "idf"):
            return stream
    raise SourceError(f"{path} holds no video that can be decoded; give a video file")


def _to_upright_bgr(picture: Any) -> NDArray[np.uint8]:
    """``[height, width, 3]`` uint8 BGR, turned as the display matrix says.

    ``rotation`` is counter-clockwise in degrees, as ``numpy.rot90`` counts. PyAV below 14 has no such
    attribute; there the picture stays as stored.
    """
    image: NDArray[np.uint8] = picture.to_ndarray(format="bgr24")
    quarter_turns = round(getattr(picture, "rotation", 0) / 90) % 4
    return np.ascontiguousarray(np.rot90(image, quarter_turns)) if quarter_turns else image
