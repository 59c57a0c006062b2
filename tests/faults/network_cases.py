"""Servers that refuse, hang, send garbage, end early or come back."""

# ruff: noqa: E501 - a table reads best with a line for a case.

from __future__ import annotations

import itertools
import json
import socket
import threading
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import numpy as np

from pcmoe_det.streaming import live_source
from pcmoe_det.streaming.reconnect import Backoff
from tests.faults.bench import Bench, Case, Expected, Ran, at_least, done, refused
from tests.faults.checks import count_of
from tests.faults.clips import CLIP_FRAMES, clip_bytes
from tests.streaming.servers import HttpServer, body, free_port, jpeg, multipart

__all__ = ["QUICK_TIME_OUTS", "network_cases", "tcp_server"]

_USER, _PASSWORD, _TOKEN = "us3r", "s3cr3t", "t0k3n"
QUICK_TIME_OUTS = ["--open-timeout", "500ms", "--read-timeout", "500ms"]
_CANNOT = "cannot be opened: "


def network_cases() -> list[Case]:
    return [*_unopened(), *_http_files(), *_http_live()]


def _bench_for_network(bench: Bench) -> None:
    bench.secrets = (_USER, _PASSWORD, _TOKEN)
    bench.patch.setattr(live_source, "Backoff", partial(Backoff, first_seconds=0.05))


def _url(scheme: str, port: int, path: str = "/live", host: str = "127.0.0.1") -> str:
    return f"{scheme}://{_USER}:{_PASSWORD}@{host}:{port}{path}?token={_TOKEN}"


def tcp_server(bench: Bench, answer: Callable[[socket.socket], object]) -> int:
    """Does ``answer`` with each connection and ends it."""
    listener = socket.create_server(("127.0.0.1", 0))
    bench.stack.callback(listener.close)

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            with connection:
                try:
                    answer(connection)
                except OSError:
                    continue

    threading.Thread(target=serve, daemon=True).start()
    return int(listener.getsockname()[1])


def _refuse(status: int, location: str = "") -> Callable[[Any], None]:
    def answer(handler: Any) -> None:
        handler.send_response(status)
        if location:
            handler.send_header("Location", location)
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def _unopened() -> list[Case]:
    """Every way in which a server gives no picture; no text of it shows the credentials."""

    def http(answer: Callable[[Any], None]) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            _bench_for_network(bench)
            server = bench.stack.enter_context(HttpServer(answer))
            return ["--source", _url("http", server.port), *QUICK_TIME_OUTS]

        return arrange

    def tcp(scheme: str, answer: Callable[[socket.socket], object]) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            _bench_for_network(bench)
            return ["--source", _url(scheme, tcp_server(bench, answer)), *QUICK_TIME_OUTS]

        return arrange

    def nobody(scheme: str, host: str = "127.0.0.1") -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            _bench_for_network(bench)
            return ["--source", _url(scheme, free_port(), host=host), *QUICK_TIME_OUTS]

        return arrange

    def silent(connection: socket.socket) -> None:
        connection.recv(4096)
        time.sleep(1.5)

    def drip(connection: socket.socket) -> None:
        for letter in b"HTTP/1.1 200 OK\r\n" * 9:
            connection.sendall(bytes([letter]))
            time.sleep(0.1)

    def garbage(connection: socket.socket) -> None:
        connection.recv(4096)
        connection.sendall(np.random.default_rng(2).bytes(5000))

    local = "file:///etc/passwd?token=" + _TOKEN
    hls = b"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile:///etc/passwd\n#EXT-X-ENDLIST\n"
    html = body(b"<html>log in first</html>" * 99, content_type="text/html")
    rows: list[tuple[str, str, Expected, Callable[[Bench], list[object]]]] = [
        *[("http", f"answers {status}", refused(says), http(_refuse(status))) for status, says in (
            (401, "check user name and password"), (403, "403"), (404, "404"), (500, "5XX"))],
        ("http", "redirects to a local file", refused(_CANNOT), http(_refuse(302, local))),
        ("http", "redirects to itself for ever", refused(_CANNOT), http(_refuse(302, "/live"))),
        ("http", "a playlist of local files", refused(_CANNOT), http(body(hls, content_type="application/x-mpegURL"))),
        ("http", "a page to log in", refused(_CANNOT), http(html)),
        ("http", "an empty answer", refused(_CANNOT), http(body(b"", content_type="video/mp4"))),
        ("http", "ends before the first picture", refused(_CANNOT), http(multipart([]))),
        ("http", "pictures that are none", refused(_CANNOT), http(multipart([b"no jpeg"] * 3))),
        ("http", "hangs", refused("no answer within"), tcp("http", silent)),
        ("http", "answers a letter at a time", refused(_CANNOT), tcp("http", drip)),
        ("http", "sends garbage", refused(_CANNOT), tcp("http", garbage)),
        ("http", "hangs up", refused(_CANNOT), tcp("http", lambda c: c.recv(10))),
        ("http", "refuses", refused(_CANNOT), nobody("http")),
        ("http", "unknown host", refused(_CANNOT), nobody("http", "nobody.invalid")),
        ("https", "speaks no TLS", refused(_CANNOT), tcp("https", garbage)),
        ("rtsp", "refuses", refused(_CANNOT), nobody("rtsp")),
        ("rtsp", "hangs", refused(_CANNOT), tcp("rtsp", silent)),
        ("rtsp", "sends garbage", refused(_CANNOT), tcp("rtsp", garbage)),
        ("rtsp", "hangs up", refused(_CANNOT), tcp("rtsp", lambda c: c.recv(10))),
        ("rtsp", "answers 401", refused(_CANNOT),
         tcp("rtsp", lambda c: (c.recv(4096), c.sendall(b"RTSP/1.0 401 Unauthorized\r\nCSeq: 1\r\n\r\n")))),
    ]  # fmt: skip

    def udp(bench: Bench) -> list[object]:
        return ["--source", f"udp://127.0.0.1:{free_port(socket.SOCK_DGRAM)}", *QUICK_TIME_OUTS]

    def typed(text: str) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            _bench_for_network(bench)
            return ["--source", text]

        return arrange

    rows += [
        ("udp", "nobody sends", refused("no answer within"), udp),
        ("ftp", "is not supported", refused("not supported", code=2), typed(f"ftp://{_USER}:{_PASSWORD}@host/a")),
        ("file", "is no address", refused("not supported", code=2), typed(f"file:///etc/passwd?{_TOKEN}")),
        ("rtsp", "a password with unescaped signs", refused("percent-encoded", code=2),
         typed(f"rtsp://{_USER}:a@{_PASSWORD}@host/live")),
    ]  # fmt: skip
    return [Case("server", source, fault, expected, arrange) for source, fault, expected, arrange in rows]


def _http_files() -> list[Case]:
    """A file on a server is read like a file: it ends, and a lost connection is an error or is made good."""

    def serve(answer: Callable[[Any], None]) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            _bench_for_network(bench)
            clip_bytes("mkv", frames=200)  # made before somebody waits for it
            server = bench.stack.enter_context(HttpServer(answer))
            return ["--source", _url("http", server.port, "/clip.mkv"), *QUICK_TIME_OUTS]

        return arrange

    def whole(handler: Any) -> None:
        body(clip_bytes("mkv"), content_type="video/x-matroska")(handler)

    def half(ranges: bool) -> Callable[[Any], None]:
        asked = itertools.count()

        def answer(handler: Any) -> None:
            data = clip_bytes("mkv", frames=200)
            if next(asked) and ranges:
                return body(data, content_type="video/x-matroska")(handler)
            handler.send_response(
                200 if ranges or handler.headers.get("Range", "bytes=0-") == "bytes=0-" else 404
            )
            handler.send_header("Content-Length", str(len(data)))
            if ranges:
                handler.send_header("Accept-Ranges", "bytes")
            handler.end_headers()
            handler.wfile.write(data[: len(data) // 2])
            handler.connection.shutdown(socket.SHUT_RDWR)
            return None

        return answer

    return [
        Case("server", "file over http", "no fault", done(CLIP_FRAMES), serve(whole)),
        Case("server", "file over http", "the connection breaks once", done(200), serve(half(True))),
        # What was read is kept; nothing says that it is the whole.
        Case("server", "file over http", "it ends early",
             Expected(code=(0, 1), says="lost after|missing|complete", reads=range(20, 200), files="mixed"),
             serve(half(False)), _an_early_end_is_told),
    ]  # fmt: skip


def _an_early_end_is_told(bench: Bench, ran: Ran) -> None:
    assert ran.code == 1 or ran.counts("source_faults"), "half of the file is missing and nothing says so"


def _http_live() -> list[Case]:
    limit = ["--reconnect", "2"]

    def live(
        *words: object, answers: Callable[[int], Callable[[Any], None]]
    ) -> Callable[[Bench], list[object]]:
        """The n-th request gets the n-th answer."""

        def arrange(bench: Bench) -> list[object]:
            _bench_for_network(bench)
            count = itertools.count()
            server = bench.stack.enter_context(HttpServer(lambda handler: answers(next(count))(handler)))
            return ["--source", _url("http", server.port), *QUICK_TIME_OUTS, "--mode", "every-frame", *words]

        return arrange

    def pictures(
        count: int, *, width: int = 64, still: bool = False, **settings: Any
    ) -> Callable[[Any], None]:
        return multipart(
            (jpeg(0 if still else n % 20, width=width, noise=0 if still else n) for n in range(count)),
            pause_seconds=0.01, **settings,
        )  # fmt: skip

    def broken(n: int) -> bytes:
        data = jpeg(n, noise=n)
        return data[: len(data) // 2] if n in (10, 15) else data

    def gaps_are_told(bench: Bench, ran: Ran) -> None:
        records = [json.loads(line) for line in bench.path_of("jsonl").read_text().splitlines()]
        assert [r["gap"]["cause"] for r in records if "gap" in r].count("reconnected") >= 1
        times = [record["pts_seconds"] for record in records]
        assert times == sorted(set(times))
        assert ran.total("source_seconds_lost") >= 0

    gone = Expected(code=1, says="lost after .* 2 attempts to get it back failed", files="part",
                    reads=range(5, 21), faults={"failed_reconnects": 2}, outcomes=["failed"])  # fmt: skip
    back = Expected(reads=60, writes=60, drops={}, faults={"reconnects": at_least(1, 4)})
    rows: list[tuple[str, Expected, Callable[[Bench], list[object]], Any]] = [
        ("lost for good", gone, live(*limit, answers=lambda n: _refuse(404) if n else pictures(20)), None),
        ("comes back", back, live("--max-frames", "60", answers=lambda n: pictures(40)), gaps_are_told),
        ("comes back with another size", back,
         live("--max-frames", "60", answers=lambda n: pictures(40, width=96 if n else 64)), gaps_are_told),
        ("comes back at the third attempt",
         Expected(reads=60, writes=60, drops={}, faults={"reconnects": at_least(1), "failed_reconnects": at_least(2)}),
         live("--max-frames", "60", answers=lambda n: _refuse(500) if n in (1, 2) else pictures(40)), gaps_are_told),
        ("falls silent and stays so",
         Expected(code=1, says="no (answer|picture) within", files="part", outcomes=["failed"]),
         live(*limit, answers=lambda n: (lambda h: time.sleep(1.2)) if n else _then_silent(pictures(20))), None),
        ("frozen, then comes back",
         Expected(faults={"frozen": 1, "reconnects": at_least(1)}, reads=60, drops={}, says="is frozen"),
         live("--max-frames", "60", "--frozen-after", "200ms",
              answers=lambda n: pictures(99) if n else pictures(99, still=True)), gaps_are_told),
        ("two pictures cut in half",
         Expected(reads=30, writes=30, drops={}, faults={"undecodable": range(0, 3), "corrupt": range(0, 3)}),
         live("--max-frames", "30", answers=lambda n: multipart((broken(n) for n in range(60)), pause_seconds=0.01)),
         None),
        ("another size in mid-stream", Expected(reads=30, writes=30, drops={}, faults={}),
         live("--max-frames", "30", answers=lambda n: multipart(
             (jpeg(n, width=64 if n < 15 else 96, noise=n) for n in range(60)), pause_seconds=0.01)),
         _size_change_is_told),
    ]  # fmt: skip
    return [Case("live server", "MJPEG over http", fault, exp, of, look) for fault, exp, of, look in rows]


def _size_change_is_told(bench: Bench, ran: Ran) -> None:
    text = bench.path_of("jsonl").read_text()
    assert text.count('"size_changed"') == 1
    assert count_of("mp4", bench.path_of("mp4")) == 30


def _then_silent(answer: Callable[[Any], None]) -> Callable[[Any], None]:
    def both(handler: Any) -> None:
        answer(handler)
        time.sleep(1.2)

    return both
