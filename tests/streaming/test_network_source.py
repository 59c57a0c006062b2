"""Network sources over HTTP, against real servers on 127.0.0.1."""

from __future__ import annotations

import socket
import threading
from itertools import count, pairwise
from pathlib import Path

import pytest

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming import network_source
from pcmoe_det.streaming.source_factory import open_source
from tests.streaming.servers import (
    HttpServer,
    body,
    jpeg,
    multipart,
    noise_clip,
    open_network,
    options_of,
    read_until,
)
from tests.streaming.stand_ins import index_of, make_clip

pytestmark = pytest.mark.timeout(60)


def test_multipart_mjpeg_is_live_and_timed_by_the_capture_clock() -> None:
    hold = threading.Event()
    with HttpServer(multipart((jpeg(index) for index in count()), hold=hold)) as server:
        source = open_network(server.url("/cam?channel=1"))
        assert source.is_live
        assert (source.frame_rate, source.frame_count, source.time_base) == (None, None, None)
        assert source.source_id == f"http://127.0.0.1:{server.port}/cam?channel=1"
        frames = read_until(source, lambda frames: len(frames) == 8)
        hold.set()
    times = [frame.captured_at_seconds for frame in frames]
    assert [frame.pts_seconds for frame in frames] == pytest.approx([at - times[0] for at in times])
    assert [frame.frame_index for frame in frames] == list(range(8))
    assert all(frame.image.shape == (48, 64, 3) for frame in frames)
    steps = {(index_of(b.image) - index_of(a.image)) % 24 for a, b in pairwise(frames)}
    assert steps == {1}  # what came before the iteration was replaced, what comes in it is all there


def test_a_live_stream_that_ends_is_opened_again_with_another_size() -> None:
    first = HttpServer(multipart(jpeg(index) for index in range(12)))
    source = open_network(first.url(), limit=None)
    second: list[HttpServer] = []

    def enough(frames: list) -> bool:
        if len(frames) == 1:
            port = first.port
            first.kill()
            second.append(HttpServer(multipart(jpeg(index, width=96) for index in count()), port=port))
        return frames[-1].image.shape[1] == 96 and len(frames) > 3

    frames = read_until(source, enough)
    second[0].kill()
    gaps = [frame.gap for frame in frames if frame.gap is not None]
    after = next(index for index, frame in enumerate(frames) if frame.gap is not None)
    assert len(gaps) == 1
    assert gaps[0].cause == "reconnected"
    assert frames[after].image.shape == (48, 96, 3)
    lost_seconds = frames[after].captured_at_seconds - frames[after - 1].captured_at_seconds
    assert gaps[0].seconds == pytest.approx(lost_seconds)
    assert source.seconds_lost == pytest.approx(lost_seconds)
    assert source.faults["reconnects"] == 1
    assert [frame.frame_index for frame in frames] == list(range(len(frames)))
    times = [frame.pts_seconds for frame in frames]
    assert times == sorted(set(times))


def test_a_server_that_falls_silent_is_lost_after_the_read_time_out() -> None:
    hold = threading.Event()
    with HttpServer(multipart([jpeg(index) for index in range(6)], hold=hold)) as server:
        source = open_network(server.url(), seconds=0.5)
        with pytest.raises(SourceError, match=r"was lost after \d frames: no (answer|picture) within 0\.5 s"):
            list(source)
        source.close()
        hold.set()


def test_interrupt_ends_the_wait_for_a_silent_server() -> None:
    hold = threading.Event()
    with HttpServer(multipart([jpeg(index) for index in range(6)], hold=hold)) as server:
        source = open_network(server.url(), seconds=30.0)
        reader = threading.Thread(target=lambda: list(source), daemon=True)
        reader.start()
        source.interrupt()
        reader.join(5)
        assert not reader.is_alive()
        source.close()
        hold.set()


def test_a_frozen_picture_is_noticed_and_the_stream_opened_again() -> None:
    still = jpeg(5)
    with HttpServer(multipart(still for _ in count())) as server:
        source = open_network(server.url(), limit=None, frozen_seconds=0.3)
        frames = read_until(source, lambda frames: frames[-1].gap is not None)
        assert len(server.requests) == 2
    assert source.faults["frozen"] == 1
    assert source.faults["reconnects"] == 1
    assert len(frames) > 3


def test_mpeg_ts_without_a_length_is_live_and_keeps_the_senders_times(tmp_path: Path) -> None:
    data = noise_clip(tmp_path / "clip.ts").read_bytes()
    with HttpServer(body(data, content_type="video/mp2t", with_length=False)) as server:
        source = open_network(server.url(), limit=None)
        assert source.is_live
        assert source.frame_rate == 25
        frames = read_until(source, lambda frames: frames[-1].gap is not None)
        assert len(server.requests) == 2
    before = [frame.pts_seconds for frame in frames[:-1]]
    assert before == pytest.approx([index / 25 for index in range(len(before))])
    assert frames[-1].pts_seconds > before[-1]


@pytest.mark.parametrize("suffix", [".mp4", ".ts", ".mkv"])
def test_a_file_on_a_server_is_read_like_a_file(tmp_path: Path, suffix: str) -> None:
    clip = make_clip(tmp_path / f"clip{suffix}", ticks=range(20))
    with HttpServer(body(clip.read_bytes(), content_type="video/any")) as server:
        source = open_source(server.url(f"/clip{suffix}"), options=options_of())
        frames = list(source)
        source.close()
    assert not source.is_live
    assert [index_of(frame.image) for frame in frames] == list(range(20))
    assert [frame.frame_index for frame in frames] == list(range(20))
    first = frames[0].pts_seconds
    assert [frame.pts_seconds - first for frame in frames] == pytest.approx([n / 25 for n in range(20)])
    assert {frame.gap for frame in frames} == {None}
    assert source.faults == {}


def test_a_file_whose_connection_breaks_goes_on_without_losing_a_frame(tmp_path: Path) -> None:
    clip = noise_clip(tmp_path / "clip.mkv", frames=60)
    data = clip.read_bytes()
    whole = body(data, content_type="video/x-matroska")
    broken = threading.Event()

    def answer(handler) -> None:
        if broken.is_set():
            return whole(handler)
        broken.set()
        handler.send_response(200)
        handler.send_header("Accept-Ranges", "bytes")
        handler.send_header("Content-Length", str(len(data)))
        handler.end_headers()
        handler.wfile.write(data[: len(data) // 2])
        handler.connection.shutdown(socket.SHUT_RDWR)
        return None

    with HttpServer(answer) as server:
        source = open_network(server.url())
        assert len(list(source)) == 60
        source.close()
        assert len(server.requests) >= 2
    assert source.faults == {}


def test_a_single_picture_on_a_server_is_one_frame() -> None:
    with HttpServer(body(jpeg(3), content_type="image/jpeg")) as server:
        source = open_network(server.url("/snapshot.jpg"))
        frames = list(source)
        source.close()
    assert [index_of(frame.image) for frame in frames] == [3]
    assert not source.is_live


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("rtsp://cam/a", {"rtsp_transport": "tcp", "timeout": "3000000"}),
        ("https://cam/a", {"rw_timeout": "3000000"}),
        ("udp://127.0.0.1:5000", {"localaddr": "127.0.0.1"}),
        ("udp://localhost:5000", {"localaddr": "127.0.0.1"}),
    ],
)
def test_ffmpeg_is_told_its_time_outs_and_what_it_may_open(url: str, expected: dict[str, str]) -> None:
    address = network_source.parse_address(url)
    chosen = network_source._ffmpeg_options(address, options_of())
    assert expected.items() <= chosen.items()
    assert "file" not in chosen["protocol_whitelist"].split(",")


@pytest.mark.parametrize("url", ["udp://:5000", "udp://@239.0.0.1:5000", "udp://10.0.0.9:5000"])
def test_other_udp_addresses_are_left_to_ffmpeg(url: str) -> None:
    assert "localaddr" not in network_source._ffmpeg_options(network_source.parse_address(url), options_of())
