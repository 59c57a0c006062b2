"""Senders that stop and come back: UDP, FFmpeg as a server, RTSP."""

from __future__ import annotations

import shutil
import socket
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pcmoe_det.errors import SourceError
from tests.streaming.servers import (
    can_serve_rtsp,
    free_port,
    noise_clip,
    open_network,
    read_until,
    start_rtsp_server,
)

pytestmark = pytest.mark.timeout(60)

needs_ffmpeg = pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")


def _send(data: bytes, port: int, stop: threading.Event) -> None:
    """Datagrams of seven packets of MPEG-TS, at about the pace of the clip, over and over."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        while not stop.is_set():
            for start in range(0, len(data), 1316):
                sender.sendto(data[start : start + 1316], ("127.0.0.1", port))
                if stop.wait(0.002):
                    return


@pytest.fixture
def udp_sender() -> Iterator[Callable[[Path, int], threading.Event]]:
    stops: list[tuple[threading.Event, threading.Thread]] = []

    def start(clip: Path, port: int) -> threading.Event:
        stop = threading.Event()
        thread = threading.Thread(target=_send, args=(clip.read_bytes(), port, stop), daemon=True)
        stops.append((stop, thread))
        thread.start()
        return stop

    yield start
    for stop, thread in stops:
        stop.set()
        thread.join(5)


def test_udp_survives_a_sender_that_stops_and_comes_back_larger(tmp_path: Path, udp_sender) -> None:
    port = free_port(socket.SOCK_DGRAM)
    first = udp_sender(noise_clip(tmp_path / "a.ts"), port)
    larger = noise_clip(tmp_path / "b.ts", width=192)
    source = open_network(f"udp://127.0.0.1:{port}", limit=None, seconds=1.5)
    assert source.is_live
    with Path("/proc/net/udp").open() as table:
        assert f"0100007F:{port:04X}" in table.read()  # nothing but this machine is heard

    def enough(frames: list) -> bool:
        if len(frames) == 5:
            first.set()
            threading.Timer(2.0, udp_sender, (larger, port)).start()
        return frames[-1].image.shape[1] == 192 and len(frames) > 8

    frames = read_until(source, enough)
    assert source.faults["reconnects"] >= 1
    assert any(frame.gap is not None and frame.gap.cause == "reconnected" for frame in frames)
    times = [frame.pts_seconds for frame in frames]
    assert times == sorted(set(times))


def test_udp_without_a_sender_ends_at_the_open_time_out() -> None:
    port = free_port(socket.SOCK_DGRAM)
    with pytest.raises(
        SourceError, match=rf"udp://127\.0\.0\.1:{port} cannot be opened: no answer within 0\.5 s"
    ):
        open_network(f"udp://127.0.0.1:{port}", seconds=0.5)


def _ffmpeg_server(clip: Path, port: int) -> subprocess.Popen[bytes]:
    command = ["ffmpeg", "-loglevel", "error", "-re", "-stream_loop", "-1", "-i", str(clip), "-c", "copy"]
    return subprocess.Popen(
        [*command, "-f", "mpegts", "-listen", "1", f"http://127.0.0.1:{port}"],
        stdin=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )


def _survives_a_restart(
    start: Callable[[Path, int], subprocess.Popen[bytes]], url: str, port: int, tmp: Path
) -> None:
    """Kill the server after a few frames, start it again with another frame size, and read on."""
    small = noise_clip(tmp / "a.mp4", frames=250)
    large = noise_clip(tmp / "b.mp4", frames=250, width=192)
    servers = [start(small, port)]
    source = None
    try:
        for _ in range(50):  # until it listens
            try:
                source = open_network(url, limit=None, seconds=5.0)
                break
            except SourceError:
                time.sleep(0.2)
        assert source is not None

        def enough(frames: list) -> bool:
            if len(frames) == 10:
                servers[0].kill()
                servers[0].wait()
                servers.append(start(large, port))
            return frames[-1].image.shape[1] == 192 and len(frames) > 20

        frames = read_until(source, enough)
    finally:
        for server in servers:
            server.kill()
            server.wait()
    gaps = [frame.gap for frame in frames if frame.gap is not None]
    assert [gap.cause for gap in gaps] == ["reconnected"]
    assert source.faults["reconnects"] == 1
    times = [frame.pts_seconds for frame in frames]
    assert times == sorted(set(times))


@needs_ffmpeg
def test_ffmpeg_as_an_http_server_may_be_restarted(tmp_path: Path) -> None:
    port = free_port()
    _survives_a_restart(_ffmpeg_server, f"http://127.0.0.1:{port}/", port, tmp_path)


@pytest.mark.skipif(not can_serve_rtsp(), reason="needs GStreamer's RTSP server for the system's Python")
def test_an_rtsp_server_may_be_restarted(tmp_path: Path) -> None:
    port = free_port()
    _survives_a_restart(start_rtsp_server, f"rtsp://127.0.0.1:{port}/live", port, tmp_path)
