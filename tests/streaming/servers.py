"""Servers on 127.0.0.1 for the tests of network sources."""

from __future__ import annotations

import contextlib
import io
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterable
from fractions import Fraction
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import av
import numpy as np
from PIL import Image

from pcmoe_det.streaming.network_source import NetworkSource
from pcmoe_det.streaming.reconnect import Backoff
from pcmoe_det.streaming.sources import SourceOptions
from tests.streaming.stand_ins import grey_of

RTSP_SERVER = Path(__file__).with_name("rtsp_server.py")
SYSTEM_PYTHON = "/usr/bin/python3"  # the one that sees Debian's GStreamer bindings
BOUNDARY = "frame"


def jpeg(index: int, *, width: int = 64, height: int = 48, noise: int = 0) -> bytes:
    """A picture with the grey value ``grey_of(index)``; ``noise`` makes each one differ in its bytes."""
    image = np.full((height, width, 3), grey_of(index), np.uint8)
    image[:8, :8] = noise % 256
    file = io.BytesIO()
    Image.fromarray(image).save(file, "JPEG", quality=90)
    return file.getvalue()


class HttpServer:
    """Answers every request with ``answer(handler)``; ``requests`` holds their paths.

    ``kill`` drops every connection and stops listening, ``HttpServer(port=...)`` then takes its place.
    """

    def __init__(self, answer: Callable[[BaseHTTPRequestHandler], None], *, port: int = 0) -> None:
        self.requests: list[str] = []
        self.stopping = threading.Event()
        self._sockets: list[socket.socket] = []
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                outer.requests.append(self.path)
                outer._sockets.append(self.connection)
                with contextlib.suppress(OSError):  # the client left
                    answer(self)
                self.close_connection = True

            def log_message(self, *arguments: object) -> None:
                pass

        class Server(ThreadingHTTPServer):
            daemon_threads = True

            def handle_error(self, request: object, client_address: object) -> None:
                pass

        self._server = Server(("127.0.0.1", port), Handler)
        self.port = self._server.server_address[1]
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.02,), daemon=True)
        self._thread.start()

    def url(self, path: str = "/video", *, user: str = "") -> str:
        return f"http://{user}127.0.0.1:{self.port}{path}"

    def kill(self) -> None:
        self.stopping.set()
        self._server.shutdown()
        self._server.server_close()
        for connection in self._sockets:
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)
        self._thread.join(5)

    def __enter__(self) -> HttpServer:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()


def multipart(
    pictures: Iterable[bytes], *, hold: threading.Event | None = None, pause_seconds: float = 0.02
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Sends the pictures as MJPEG, waits for ``hold`` if there is one, and ends the connection."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        handler.send_response(200)
        handler.send_header("Content-Type", f"multipart/x-mixed-replace; boundary={BOUNDARY}")
        handler.end_headers()
        for picture in pictures:
            part = f"--{BOUNDARY}\r\nContent-Type: image/jpeg\r\nContent-Length: {len(picture)}\r\n\r\n"
            handler.wfile.write(part.encode() + picture + b"\r\n")
            threading.Event().wait(pause_seconds)
        # The end of a picture is known by the boundary after it.
        handler.wfile.write(f"--{BOUNDARY}\r\n".encode())
        if hold is not None:
            hold.wait()

    return answer


def body(
    data: bytes, *, content_type: str, with_length: bool = True, status: int = 200
) -> Callable[[BaseHTTPRequestHandler], None]:
    """Sends ``data``, with its length and ranges, or without, as a live stream does."""

    def answer(handler: BaseHTTPRequestHandler) -> None:
        first = 0
        wanted = handler.headers.get("Range", "")
        if with_length and wanted.startswith("bytes="):
            first = int(wanted.removeprefix("bytes=").split("-")[0])
            handler.send_response(206)
            handler.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        else:
            handler.send_response(status)
        handler.send_header("Content-Type", content_type)
        if with_length:
            handler.send_header("Accept-Ranges", "bytes")
            handler.send_header("Content-Length", str(len(data) - first))
        handler.end_headers()
        handler.wfile.write(data[first:])

    return answer


def free_port(kind: socket.SocketKind = socket.SOCK_STREAM) -> int:
    """A port that was free a moment ago."""
    with socket.socket(socket.AF_INET, kind) as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def can_serve_rtsp() -> bool:
    """Whether Debian's GStreamer RTSP server is installed."""
    if not Path(SYSTEM_PYTHON).exists():
        return False
    check = subprocess.run([SYSTEM_PYTHON, str(RTSP_SERVER), "--check"], capture_output=True, check=False)
    return check.returncode == 0


def start_rtsp_server(clip: Path, port: int, *, user: str = "") -> subprocess.Popen[bytes]:
    """Serves ``rtsp://127.0.0.1:port/live`` from the clip, without encoding it again."""
    command = [SYSTEM_PYTHON, str(RTSP_SERVER), str(port), str(clip), *([user] if user else [])]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=sys.stderr)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    return process


def options_of(limit: int | None = 0, *, seconds: float = 3.0, frozen_seconds: float = 60.0) -> SourceOptions:
    return SourceOptions(
        open_timeout_seconds=seconds,
        read_timeout_seconds=seconds,
        reconnect_limit=limit,
        frozen_after_seconds=frozen_seconds,
    )


def open_network(
    url: str, *, limit: int | None = 0, seconds: float = 3.0, frozen_seconds: float = 60.0
) -> NetworkSource:
    options = options_of(limit, seconds=seconds, frozen_seconds=frozen_seconds)
    return NetworkSource(url, options=options, backoff=Backoff(limit, first_seconds=0.05))


def read_until(source: NetworkSource, enough: Callable[[list], bool]) -> list:
    frames: list = []
    for frame in source:
        frames.append(frame)
        if enough(frames):
            break
    source.close()
    return frames


def noise_clip(path: Path, *, frames: int = 40, width: int = 160, height: int = 120) -> Path:
    """A clip whose frames all differ, with a key frame every 10."""
    chance = np.random.default_rng(3)
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=25, options={"g": "10", "preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        for index in range(frames):
            image = chance.integers(0, 255, (height, width, 3), np.uint8)
            frame = av.VideoFrame.from_ndarray(image, format="bgr24")
            frame.pts, frame.time_base = index, Fraction(1, 25)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    return path
