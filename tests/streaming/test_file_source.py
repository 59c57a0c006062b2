"""Video files: order, times, rotation, damage."""

from __future__ import annotations

import os
import random
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pcmoe_det.errors import SourceError, UsageError
from pcmoe_det.streaming import FileSource, open_source
from tests.streaming.stand_ins import index_of, make_clip


def test_every_frame_in_order_with_index_and_time(tmp_path: Path) -> None:
    source = FileSource(make_clip(tmp_path / "clip.mp4", ticks=range(20)))
    frames = list(source)
    assert [index_of(frame.image) for frame in frames] == list(range(20))
    assert [frame.frame_index for frame in frames] == list(range(20))
    assert [frame.pts_seconds for frame in frames] == pytest.approx([index / 25 for index in range(20)])
    assert (source.frame_rate, source.frame_count, source.is_live) == (Fraction(25), 20, False)
    assert frames[0].image.shape == (48, 64, 3)
    assert source.faults == {}
    source.close()


@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_variable_frame_rate_is_kept(tmp_path: Path, suffix: str) -> None:
    ticks = [0, 40, 50, 200, 210, 700, 1500]
    source = FileSource(make_clip(tmp_path / f"vfr{suffix}", ticks=ticks, time_base=Fraction(1, 1000)))
    assert [frame.pts_seconds for frame in source] == pytest.approx([tick / 1000 for tick in ticks], abs=1e-9)


@pytest.mark.parametrize("rotation", [0, 90, 180, 270])
def test_rotation_is_applied_as_opencv_does(tmp_path: Path, rotation: int) -> None:
    path = make_clip(tmp_path / "turned.mp4", rotation=rotation, corner=True)
    truth = cv2.VideoCapture(str(path)).read()[1]
    image = next(iter(FileSource(path))).image
    assert image.shape == truth.shape == ((64, 48, 3) if rotation % 180 else (48, 64, 3))
    assert np.abs(image.astype(int) - truth).max() <= 2


@pytest.mark.parametrize("pix_fmt", ["rgb24", "gray", "rgba", "rgb48be", "gray16be"])
def test_grey_alpha_and_16_bit_pictures_become_bgr(tmp_path: Path, pix_fmt: str) -> None:
    path = make_clip(tmp_path / "clip.mov", codec="png", pix_fmt=pix_fmt, width=63, height=47)
    frames = list(FileSource(path))
    assert [index_of(frame.image) for frame in frames] == list(range(12))
    assert frames[0].image.shape == (47, 63, 3)


def test_capture_times_come_from_the_clock(tmp_path: Path) -> None:
    ticks = iter(range(100, 200))
    source = FileSource(make_clip(tmp_path / "clip.mp4"), clock=lambda: float(next(ticks)))
    assert [frame.captured_at_seconds for frame in source] == [float(tick) for tick in range(100, 112)]


def test_an_undecodable_packet_is_counted_and_keeps_its_index(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mov", codec="png", pix_fmt="rgb24", ticks=range(10))
    with av.open(str(path)) as container:
        packets = [(packet.pos, packet.size) for packet in container.demux(video=0) if packet.size]
    damaged = bytearray(path.read_bytes())
    position = damaged.index(b"\x89PNG", packets[4][0])
    damaged[position : position + 40] = bytes(40)
    path.write_bytes(damaged)
    source = FileSource(path)
    frames = list(source)
    assert [frame.frame_index for frame in frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert [index_of(frame.image) for frame in frames] == [0, 1, 2, 3, 5, 6, 7, 8, 9]
    assert source.faults == {"undecodable": 1}


def test_frames_cut_off_are_reported_missing(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", ticks=range(24), width=320, height=240, key_frames_only=True)
    with (
        av.open(str(path)) as container,
        av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "+faststart"}) as front,
    ):
        stream = front.add_stream_from_template(container.streams.video[0])
        for packet in container.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                front.mux(packet)
    whole = (tmp_path / "front.mp4").read_bytes()
    path.write_bytes(whole[: len(whole) - len(whole) // 3])
    source = FileSource(path)
    frames = list(source)
    assert 0 < len(frames) < 24
    assert [index_of(frame.image) for frame in frames[:-1]] == list(range(len(frames) - 1))
    assert source.faults["missing"] > 0
    # A packet that was cut in two counts as undecodable.
    assert sum(source.faults.values()) == 24 - len(frames)


@pytest.mark.timeout(60)
def test_random_damage_never_escapes_as_something_else(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "clip.mp4", ticks=range(24), width=160, height=120).read_bytes()
    chance = random.Random(3)
    path = tmp_path / "damaged.mp4"
    ended = {"read": 0, "refused": 0}
    for _ in range(40):
        damaged = bytearray(whole)
        for _ in range(chance.choice((1, 20, 200))):
            damaged[chance.randrange(len(damaged))] = chance.randrange(256)
        path.write_bytes(damaged[: chance.choice((len(damaged), chance.randrange(1, len(damaged))))])
        try:
            source = FileSource(path)
            list(source)
            source.close()
            ended["read"] += 1
        except SourceError:
            ended["refused"] += 1
    assert ended["read"] > 3
    assert ended["refused"] > 3


def _sound_only(path: Path) -> None:
    with av.open(str(path), "w") as container:
        stream = container.add_stream("pcm_s16le", rate=8000, layout="mono")
        sound = av.AudioFrame.from_ndarray(np.zeros((1, 8000), np.int16), format="s16", layout="mono")
        sound.sample_rate = 8000
        container.mux(stream.encode(sound))


@pytest.mark.timeout(60)
@pytest.mark.parametrize(
    ("name", "make", "message"),
    [
        ("nothing.mp4", lambda path: None, "there is no file"),
        ("folder.mp4", lambda path: path.mkdir(), "is a folder"),
        ("empty.mp4", lambda path: path.touch(), "is empty"),
        ("text.mp4", lambda path: path.write_text("hello\n" * 100), "is not a video"),
        ("text.txt", lambda path: path.write_text("hello\n" * 100), "is not a video|no video"),
        ("noise.mp4", lambda path: path.write_bytes(random.Random(1).randbytes(9000)), "is not a video"),
        ("list.m3u8", lambda path: path.write_text("#EXTM3U\n#EXTINF:10,\nclip.ts\n"), "is a playlist"),
        ("sound.wav", _sound_only, "holds no video"),
        ("pipe.mp4", lambda path: os.mkfifo(path), "not a regular file"),
    ],
)
def test_what_is_no_video_is_refused_in_one_sentence(tmp_path: Path, name: str, make, message: str) -> None:
    path = tmp_path / name
    make(path)
    with pytest.raises(SourceError, match=message) as caught:
        FileSource(path)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_odd_names_are_files_not_patterns_or_protocols(tmp_path: Path) -> None:
    path = tmp_path / "a:b %03d é.mp4"
    make_clip(tmp_path / "plain.mp4").rename(path)
    assert len(list(FileSource(path))) == 12


def test_interrupt_ends_the_iteration(tmp_path: Path) -> None:
    source = FileSource(make_clip(tmp_path / "clip.mp4"))
    frames = iter(source)
    next(frames)
    source.interrupt()
    assert list(frames) == []
    assert source.faults == {}


@pytest.mark.parametrize("location", ["rtsp://user:secret@host/x", "https://host/x.mp4", "-"])
def test_what_is_not_supported_yet_is_a_usage_error_without_secrets(location: str) -> None:
    with pytest.raises(UsageError, match="not supported") as caught:
        open_source(location)
    assert "secret" not in str(caught.value)
