"""Streams and files on a network (RTSP, HTTP, UDP), through PyAV."""

from __future__ import annotations

import ipaddress
from collections.abc import Callable, Iterator
from fractions import Fraction
from time import monotonic
from typing import Any

import av

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming.addresses import Address, parse_address
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
from pcmoe_det.streaming.live_connection import ConnectionFacts, Picture
from pcmoe_det.streaming.live_source import LiveSource
from pcmoe_det.streaming.pacing import Pacer
from pcmoe_det.streaming.reconnect import Backoff
from pcmoe_det.streaming.sources import SourceOptions

__all__ = ["NetworkSource"]

# FFmpeg's defaults (5 s, 5 MB, 20 frames to guess the rate) hold the first picture back: 25 frames a second
# over RTSP, HTTP and UDP opened in 1.2, 0.9 and 0.9 s with them, in 0.5, 0.2 and 0.5 s with these.
_PROBING = {"analyzeduration": "2000000", "probesize": "1000000", "fpsprobesize": "4"}
_NO_TIMESTAMPS = 0x0080  # AVFMT_NOTIMESTAMPS
_DEFAULT_OPTIONS = SourceOptions()


class NetworkSource(LiveSource):
    """A stream or a video file on a server.

    ``is_live`` is True for RTSP and UDP, and for HTTP unless the server announces a length (a file, or one
    picture) or a playlist has an end: those are read like a file, every frame once, until their end. HTTP
    without a length (multipart MJPEG, MPEG-TS) is a live stream, and its end a loss, unless what comes back
    is a recording (a live playlist that got its end). Files on a server that allows ranges survive a lost
    connection inside FFmpeg, without losing a frame.

    What carries no time stamps of its own (MJPEG) gets its ``pts_seconds`` from the capture clock. A live
    playlist (HLS) comes in segments of several seconds; their pictures are given at the pace of their stamps.

    Args:
        location: ``rtsp://``, ``rtsps://``, ``http://``, ``https://`` or ``udp://HOST:PORT`` (listens there).
        options: Time-outs and limits.
        clock: Seconds, monotonic.
        backoff: Delays between attempts.

    Raises:
        UsageError: The address cannot be understood.
        SourceError: It does not answer, or holds no video; the message names it without credentials.
    """

    def __init__(
        self,
        location: str,
        *,
        options: SourceOptions = _DEFAULT_OPTIONS,
        clock: Callable[[], float] = monotonic,
        backoff: Backoff | None = None,
    ) -> None:
        address = parse_address(location)
        super().__init__(
            lambda faults: _NetworkConnection(address, options=options, clock=clock, faults=faults),
            source_id=address.redacted,
            options=options,
            clock=clock,
            backoff=backoff,
            scrub=address.scrub,
        )


class _NetworkConnection:
    """One open connection of PyAV. Errors are raised without a cause, whose text would hold the address."""

    def __init__(
        self, address: Address, *, options: SourceOptions, clock: Callable[[], float], faults: FaultCounter
    ) -> None:
        self._address = address
        self._clock = clock
        self._faults = faults
        self._read_timeout_seconds = options.read_timeout_seconds
        try:
            self._container: Any = av.open(
                address.url,
                options=_ffmpeg_options(address, options),
                timeout=(options.open_timeout_seconds, options.read_timeout_seconds),
                metadata_errors="replace",
            )
        except (av.error.FFmpegError, OSError, ValueError) as error:
            raise SourceError(_sentence(error, options.open_timeout_seconds)) from None
        try:
            self._stream = choose_video_stream(self._container, what="what it sends")
            prepare_decoder(self._stream)
            self._has_stamps = not int(self._container.format.flags) & _NO_TIMESTAMPS
            self._facts = self._find_facts()
            self._pacer = (
                Pacer(clock) if self._facts.is_live and self._container.format.name == "hls" else None
            )
        except BaseException:
            self._container.close()
            raise

    @property
    def facts(self) -> ConnectionFacts:
        return self._facts

    def pictures(self) -> Iterator[Picture]:
        decoded_count = 0
        tally = PacketTally()
        end_seconds = 0.0
        packets = self._container.demux(self._stream)
        while True:
            try:
                packet = next(packets, None)
            except av.error.FFmpegError as error:
                raise SourceError(_sentence(error, self._read_timeout_seconds)) from None
            if packet is None:
                break
            tally.add(packet)
            try:
                decoded = packet.decode()
            except av.error.FFmpegError:
                # Whoever comes in the middle of a stream waits for the next whole picture: no fault.
                if decoded_count or not self._facts.is_live:
                    self._faults.add("undecodable")
                    tally.lost += 1
                continue
            for picture in decoded:
                yield self._picture(picture, index=decoded_count + tally.lost)
                decoded_count += 1
                if picture.pts is not None:
                    end_seconds = float((picture.pts + (picture.duration or 0)) * picture.time_base)
        if not self._facts.is_live:
            missing = missing_frames(
                self._container,
                self._stream,
                tally=tally,
                decoded_count=decoded_count,
                end_seconds=end_seconds,
            )
            self._faults.add("missing", missing)

    def close(self) -> None:
        self._container.close()

    def _picture(self, picture: Any, *, index: int) -> Picture:
        check_picture_size(picture.width, picture.height, what="a picture that it sends")
        if picture.is_corrupt:
            self._faults.add("corrupt")
        stamp_seconds = None
        if self._has_stamps and picture.pts is not None:
            stamp_seconds = float(picture.pts * picture.time_base)
        image = to_upright_bgr(picture)
        if self._pacer is not None and stamp_seconds is not None:
            self._pacer.wait_for(stamp_seconds)
        return Picture(
            image=image,
            stamp_seconds=stamp_seconds,
            captured_at_seconds=self._clock(),
            index=None if self._facts.is_live else index,
        )

    def _find_facts(self) -> ConnectionFacts:
        stream = self._stream
        is_live = not _is_finite(self._container, self._address)
        rate = (stream.average_rate or stream.guessed_rate) if self._has_stamps else None
        return ConnectionFacts(
            is_live=is_live,
            frame_rate=Fraction(rate) if rate else None,
            frame_count=None if is_live else int(stream.frames) or None,
            time_base=Fraction(stream.time_base) if self._has_stamps and stream.time_base else None,
        )


def _is_finite(container: Any, address: Address) -> bool:
    """Whether this ends by itself: a server that announces a length sends a file."""
    if address.scheme not in ("http", "https"):
        return False
    if container.format.name == "hls" or "dash" in container.format.name:
        return container.duration is not None  # the length is the playlist's, not the stream's
    return "mpjpeg" not in container.format.name and container.size > 0


def _ffmpeg_options(address: Address, options: SourceOptions) -> dict[str, str]:
    """Options of FFmpeg 7 and 8 for the scheme. Their time-outs of sockets are in microseconds.

    PyAV's own time-outs work through a callback that every waiting protocol asks; those of the sockets say
    what happened.
    """
    timeout = str(int(options.read_timeout_seconds * 1e6))
    chosen = {
        "protocol_whitelist": address.protocols,
        **_PROBING,
    }
    if address.scheme in ("rtsp", "rtsps"):
        # Over UDP a busy machine loses packets, and with them pictures until the next key frame.
        chosen |= {"rtsp_transport": "tcp", "allowed_media_types": "video", "timeout": timeout}
    elif address.scheme in ("http", "https"):
        # Only where the length is known and ranges are served, so for files: goes on where it stopped.
        chosen |= {"rw_timeout": timeout, "timeout": timeout, "reconnect": "1", "reconnect_delay_max": "4"}
    else:
        chosen |= {"overrun_nonfatal": "1", "buffer_size": str(1 << 20)}
        if _is_loopback(address.host):
            chosen["localaddr"] = "127.0.0.1" if address.host == "localhost" else address.host
    return chosen


def _is_loopback(host: str) -> bool:
    """Whether only this machine is to be heard; FFmpeg would listen on every interface all the same."""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _sentence(error: BaseException, timeout_seconds: float) -> str:
    if isinstance(error, av.error.ExitError):
        return f"no answer within {timeout_seconds:g} s"
    if isinstance(error, av.error.HTTPUnauthorizedError):
        return "it refuses access (401 Unauthorized); check user name and password"
    return reason_of(error)
