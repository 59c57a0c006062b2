"""What network sources must not show, and must not open."""

from __future__ import annotations

import io
import logging
import threading
import time
from pathlib import Path

import av
import numpy as np
import pytest

from pcmoe_det.errors import SourceError, UsageError
from pcmoe_det.streaming.source_factory import open_source
from tests.streaming.servers import (
    HttpServer,
    body,
    can_serve_rtsp,
    free_port,
    jpeg,
    multipart,
    noise_clip,
    open_network,
    options_of,
    read_until,
    start_rtsp_server,
)
from tests.streaming.stand_ins import index_of, make_clip

pytestmark = pytest.mark.timeout(60)


def _refuse(status: int):
    def answer(handler) -> None:
        handler.send_response(status)
        if status == 302:
            handler.send_header("Location", "file:///etc/passwd?token=s3cr3t")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    return answer


def _sound() -> bytes:
    file = io.BytesIO()
    with av.open(file, "w", format="wav") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))
    return file.getvalue()


_FAILURES = {
    "401": (_refuse(401), "401 Unauthorized.*check user name and password"),
    "403": (_refuse(403), "403 Forbidden"),
    "404": (_refuse(404), "404 Not Found"),
    "500": (_refuse(500), "5XX"),
    "redirected to a local file": (_refuse(302), "cannot be opened"),
    "text": (body(b"hello\n" * 500, content_type="text/html"), "Invalid data|holds no video"),
    "nothing": (body(b"", content_type="video/mp4"), "cannot be opened"),
    "sound only": (body(_sound(), content_type="audio/wav"), "holds no video"),
    "no answer": (lambda handler: time.sleep(2.0), r"no answer within 0\.7 s"),
    "no picture": (multipart([b"no jpeg"] * 3), "cannot be opened"),
}


@pytest.mark.parametrize("failure", [*_FAILURES, "nobody there", "unknown host"])
def test_no_failure_shows_the_credentials(failure: str, caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    answer, message = _FAILURES.get(failure, (_refuse(404), "cannot be opened"))
    server = HttpServer(answer)
    host = "nobody.invalid" if failure == "unknown host" else "127.0.0.1"
    if failure == "nobody there":
        server.kill()
    url = f"http://us3r:s3cr3t@{host}:{server.port}/live/a?token=s3cr3t&sig=s3cr3t&fps=5"
    with pytest.raises(SourceError, match=message) as caught:
        open_source(url, options=options_of(seconds=0.7))
    server.kill()
    _assert_no_secret(caught.value, caplog, capfd)
    assert f"http://{host}:{server.port}/live/a?token=***&sig=***&fps=5 cannot be opened" in str(caught.value)


def _assert_no_secret(error: BaseException | None, caplog, capfd) -> None:
    captured = capfd.readouterr()
    shown = captured.out + captured.err + caplog.text
    while error is not None:  # all that a traceback prints, but for the source lines of this test
        shown += f"{error} {error!r}"
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)
    threads = " ".join(thread.name for thread in threading.enumerate())
    assert "s3cr3t" not in shown + threads
    assert "us3r" not in shown + threads


def test_a_loss_and_its_attempts_do_not_show_the_credentials(caplog, capfd) -> None:
    caplog.set_level(logging.DEBUG)
    server = HttpServer(multipart([jpeg(0), jpeg(1), jpeg(2)]))
    source = open_network(server.url("/a?token=s3cr3t", user="us3r:s3cr3t@"), limit=2)
    server.kill()
    with pytest.raises(SourceError, match="2 attempts to get it back failed") as caught:
        frames = []
        for frame in source:
            frames.append(frame)
    source.close()
    assert {frame.source_id for frame in frames} == {f"http://127.0.0.1:{server.port}/a?token=***"}
    assert "attempt 2" in caplog.text
    _assert_no_secret(caught.value, caplog, capfd)


def test_user_name_and_password_reach_the_server() -> None:
    seen: list[str] = []

    def answer(handler) -> None:
        given = handler.headers.get("Authorization", "")
        seen.append(given)
        if given == "Basic dXMzcjpzM2NyM3Q=":
            return body(jpeg(3), content_type="image/jpeg")(handler)
        handler.send_response(401)
        handler.send_header("WWW-Authenticate", 'Basic realm="cam"')
        handler.send_header("Content-Length", "0")
        handler.end_headers()
        return None

    with HttpServer(answer) as server:
        source = open_network(server.url("/a.jpg", user="us3r:s3cr3t@"))
        assert len(list(source)) == 1
        source.close()
    assert seen[-1] == "Basic dXMzcjpzM2NyM3Q="


@pytest.mark.parametrize("how", ["hls", "concat", "sdp"])
def test_a_playlist_does_not_open_local_files(tmp_path: Path, how: str) -> None:
    clip = make_clip(tmp_path / "private.ts")
    text = {
        "hls": f"#EXTM3U\n#EXT-X-TARGETDURATION:9\n#EXTINF:9,\nfile://{clip}\n#EXT-X-ENDLIST\n",
        "concat": f"ffconcat version 1.0\nfile 'file:{clip}'\n",
        "sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\ns=x\nc=IN IP4 127.0.0.1\nt=0 0\nm=video 6970 RTP/AVP 33\n",
    }[how]
    content_type = {"hls": "application/x-mpegURL", "concat": "text/plain", "sdp": "application/sdp"}[how]
    with (
        HttpServer(body(text.encode(), content_type=content_type)) as server,
        pytest.raises(SourceError, match="cannot be opened"),
    ):
        open_source(server.url(f"/list.{how}"), options=options_of(seconds=1.0))


def test_a_playlist_of_the_same_server_is_read(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", ticks=range(20)).read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:0.8,\n/clip.ts\n#EXT-X-ENDLIST\n"
    answers = {
        "/list.m3u8": body(playlist, content_type="application/x-mpegURL"),
        "/clip.ts": body(clip, content_type="video/mp2t"),
    }
    with HttpServer(lambda handler: answers[handler.path](handler)) as server:
        source = open_network(server.url("/list.m3u8"))
        assert not source.is_live
        assert [index_of(frame.image) for frame in source] == list(range(20))
        source.close()


def test_a_live_playlist_is_given_at_the_pace_of_its_stamps(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.ts", ticks=range(20)).read_bytes()
    playlist = b"#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXT-X-MEDIA-SEQUENCE:1\n#EXTINF:0.8,\n/clip.ts\n"
    answers = {
        "/list.m3u8": body(playlist, content_type="application/x-mpegURL"),
        "/clip.ts": body(clip, content_type="video/mp2t"),
    }
    with HttpServer(lambda handler: answers[handler.path](handler)) as server:
        source = open_network(server.url("/list.m3u8"))
        assert source.is_live
        frames = read_until(source, lambda frames: len(frames) == 12)
    by_stamps = frames[-1].pts_seconds - frames[0].pts_seconds
    by_clock = frames[-1].captured_at_seconds - frames[0].captured_at_seconds
    assert by_stamps > 0.4
    assert by_clock >= 0.9 * by_stamps  # a burst would take no time at all


@pytest.mark.parametrize("location", ["ftp://us3r:s3cr3t@host/a", "file:///etc/passwd", "rtsp:///a"])
def test_what_is_no_supported_address_is_a_usage_error(location: str) -> None:
    with pytest.raises(UsageError) as caught:
        open_source(location)
    assert "s3cr3t" not in str(caught.value)


@pytest.mark.skipif(not can_serve_rtsp(), reason="needs GStreamer's RTSP server for the system's Python")
def test_an_rtsp_server_asks_for_a_password_that_is_never_shown(tmp_path: Path, caplog, capfd) -> None:
    port = free_port()
    server = start_rtsp_server(noise_clip(tmp_path / "a.mp4"), port, user="us3r:s3cr3t")
    try:
        with pytest.raises(SourceError, match="401 Unauthorized") as caught:
            open_network(f"rtsp://us3r:wr0ng@127.0.0.1:{port}/live")
        assert "wr0ng" not in str(caught.value) + caplog.text
        _assert_no_secret(caught.value, caplog, capfd)
        with pytest.raises(SourceError, match="404 Not Found"):
            open_network(f"rtsp://us3r:s3cr3t@127.0.0.1:{port}/nothing")
        source = open_network(f"rtsp://us3r:s3cr3t@127.0.0.1:{port}/live")
        assert source.is_live
        assert len(read_until(source, lambda frames: len(frames) == 5)) == 5
        assert source.source_id == f"rtsp://127.0.0.1:{port}/live"
        _assert_no_secret(None, caplog, capfd)
    finally:
        server.kill()
        server.wait()
