"""Video files, decoded by PyAV with the container's time stamps."""

from __future__ import annotations

import logging
import stat
from collections.abc import Callable, Iterator, Mapping
from fractions import Fraction
from pathlib import Path
from time import monotonic
from typing import Any

import av

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming.decoding import (
    PacketTally,
    check_picture_size,
    choose_video_stream,
    missing_frames,
    prepare_decoder,
    reason_of,
    to_upright_bgr,
)
from pcmoe_det.streaming.faults import FaultCounter
from pcmoe_det.streaming.sources import SourceOptions, printable_path
from pcmoe_det.structures import Frame

__all__ = ["FileSource"]

_log = logging.getLogger(__name__)

# A damaged place costs one or a few packets; a run of this many failed reads is a device that has gone.
_MAX_FAILED_READS_IN_A_ROW = 32
# Playlists make FFmpeg open other files or addresses, and a local HLS list without an end marker makes it
# wait for more for ever. A file source is one file.
_PLAYLIST_STARTS = (b"#EXTM3U", b"ffconcat", b"v=0\n", b"v=0\r\n", b"<MPD", b"<?xml")
_DEFAULT_OPTIONS = SourceOptions()


class FileSource:
    """One video file: every frame, in order of presentation, as BGR pictures the right way up.

    Variable frame rates are kept (``pts_seconds`` is the container's), rotation metadata is applied, the
    size may change on the way.

    Packets that cannot be decoded are counted in ``faults`` and skipped; each takes a ``frame_index``, so
    that later frames keep their position in the file.

    Args:
        path: The file. The first frame is decoded at once, so that an unusable file is found early.
        options: Its time-outs are a safety net for damage that sends FFmpeg round in circles.
        clock: Seconds; for ``captured_at_seconds``.

    Raises:
        SourceError: No such file, a folder, an empty file, not a video, too large pictures, or no frame
            can be decoded.
    """

    is_live = False
    seconds_lost = 0.0

    def __init__(
        self,
        path: str | Path,
        *,
        options: SourceOptions = _DEFAULT_OPTIONS,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._path = Path(path)
        self._source_id = printable_path(self._path)
        self._clock = clock
        self._faults = FaultCounter()
        self._interrupted = False
        self._packets = PacketTally()
        _check_regular_file(self._path)
        self._container = _open_container(self._path, options)
        try:
            self._stream = choose_video_stream(self._container, what=str(self._path))
            prepare_decoder(self._stream)
            self._decoded = self._decode()
            self._first: Any = next(self._decoded, None)
            if self._first is None:
                raise SourceError(
                    f"no frame of {self._path} can be decoded{self._counted()}; "
                    "it may be damaged or cut off: try to play it"
                )
        except av.error.FFmpegError as error:
            self._container.close()
            raise SourceError(f"{self._path} cannot be read: {reason_of(error)}{self._counted()}") from error
        except BaseException:
            self._container.close()
            raise

    @property
    def source_id(self) -> str:
        return self._source_id

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
        same, ``missing`` frames that the container announces but does not hold (for Matroska by its length
        and frame rate)."""
        return self._faults.as_dict()

    def __iter__(self) -> Iterator[Frame]:
        decoded_count = 0
        end_seconds = 0.0
        try:
            while not self._interrupted:
                picture = self._first if decoded_count == 0 else next(self._decoded, None)
                if picture is None:
                    break
                self._first = None
                check_picture_size(
                    picture.width, picture.height, what=f"frame {decoded_count} of {self._path}"
                )
                if picture.is_corrupt:
                    self._faults.add("corrupt")
                yield Frame(
                    image=to_upright_bgr(picture),
                    source_id=self._source_id,
                    frame_index=decoded_count + self._packets.lost,
                    pts_seconds=None if picture.pts is None else float(picture.pts * picture.time_base),
                    captured_at_seconds=self._clock(),
                )
                decoded_count += 1
                if picture.pts is not None:
                    end_seconds = float((picture.pts + (picture.duration or 0)) * picture.time_base)
        except av.error.FFmpegError as error:
            raise SourceError(
                f"{self._path} cannot be read after {decoded_count} frames: "
                f"{reason_of(error)}{self._counted()}"
            ) from error
        missing = missing_frames(
            self._container,
            self._stream,
            tally=self._packets,
            decoded_count=decoded_count,
            end_seconds=end_seconds,
        )
        if missing > 0 and not self._interrupted:
            self._faults.add("missing", missing)
        if self._faults.as_dict():
            _log.warning("%s is damaged%s", self._path, self._counted())

    def interrupt(self) -> None:
        self._interrupted = True

    def close(self) -> None:
        self._container.close()

    def _counted(self) -> str:
        """What went wrong so far, in brackets; empty if nothing did."""
        faults = self._faults.as_dict()
        counts = ", ".join(f"{count} {cause}" for cause, count in faults.items())
        return f" ({counts} of its packets or frames)" if counts else ""

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
                self._faults.add("unreadable")
                failed_in_a_row += 1
                if failed_in_a_row >= _MAX_FAILED_READS_IN_A_ROW:
                    raise
                _log.info("%s: %s; reading on", self._path, error)
                packets = self._container.demux(self._stream)
                continue
            self._packets.add(packet)
            try:
                pictures = packet.decode()
            except av.error.FFmpegError as error:
                self._faults.add("undecodable")
                self._packets.lost += 1
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


def _open_container(path: Path, options: SourceOptions) -> Any:
    try:
        return av.open(
            f"file:{path}",  # else a colon in the name would be taken for a protocol
            options={"protocol_whitelist": "file"},
            timeout=(options.open_timeout_seconds, options.read_timeout_seconds),
            metadata_errors="replace",
        )
    except (av.error.FFmpegError, OSError, ValueError) as error:
        raise SourceError(f"{path} is not a video that FFmpeg can read ({reason_of(error)})") from error
