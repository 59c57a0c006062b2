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
from PIL import Image

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming import FileSource, open_source
from pcmoe_det.streaming.image_source import ImageSource
from tests.streaming.stand_ins import grey_of, index_of, make_clip


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


@pytest.mark.parametrize("lost", [1, 2])
def test_the_last_frames_are_missed(tmp_path: Path, lost: int) -> None:
    clip = make_clip(tmp_path / "clip.mp4", codec="mpeg4", ticks=range(24))
    with (
        av.open(str(clip)) as whole,
        av.open(str(tmp_path / "front.mp4"), "w", options={"movflags": "faststart"}) as copy,
    ):
        stream = whole.streams.video[0]
        target = copy.add_stream_from_template(stream)
        packets = [packet for packet in whole.demux(stream) if packet.dts is not None]
        sizes = [packet.size for packet in packets]
        for packet in packets:
            packet.stream = target
            copy.mux(packet)
    content = (tmp_path / "front.mp4").read_bytes()
    (tmp_path / "front.mp4").write_bytes(content[: len(content) - sum(sizes[-lost:])])
    source = FileSource(tmp_path / "front.mp4")
    assert len(list(source)) == 24 - lost
    assert source.faults == {"missing": lost}


def _trimmed(clip: Path, path: Path, *, first: int, last: int) -> Path:
    """A copy whose edit list shows frames ``first`` to ``last`` only, as a trim without encoding makes it."""
    with av.open(str(clip)) as whole, av.open(str(path), "w") as copy:
        stream = whole.streams.video[0]
        target = copy.add_stream_from_template(stream)
        for packet in whole.demux(stream):
            if packet.dts is None:
                continue
            shift = int(first / 25 / packet.time_base)
            packet.pts, packet.dts, packet.stream = packet.pts - shift, packet.dts - shift, target
            copy.mux(packet)
    content = bytearray(path.read_bytes())
    edits = content.index(b"elst") + 4  # version and flags, number of entries, then duration, start, rate
    assert int.from_bytes(content[edits + 4 : edits + 8], "big") == 1
    shown = int.from_bytes(content[edits + 8 : edits + 12], "big") * (last + 1 - first) // (12 - first)
    content[edits + 8 : edits + 12] = shown.to_bytes(4, "big")
    path.write_bytes(content)
    return path


@pytest.mark.parametrize(("first", "last"), [(4, 11), (0, 7), (3, 8)])
def test_a_trimmed_video_is_not_damaged(tmp_path: Path, first: int, last: int) -> None:
    clip = make_clip(tmp_path / "clip.mp4", codec="mpeg4")
    source = FileSource(_trimmed(clip, tmp_path / "trimmed.mp4", first=first, last=last))
    assert [index_of(frame.image) for frame in source] == list(range(first, last + 1))
    assert source.faults == {}


def test_a_name_that_is_no_utf8_is_printable(tmp_path: Path) -> None:
    path = Path(os.fsdecode(os.fsencode(tmp_path / "stra") + b"\xdfe.mp4"))
    make_clip(tmp_path / "clip.mp4").rename(path)
    source = FileSource(path)
    assert source.source_id.endswith("stra\\xdfe.mp4")
    assert {frame.source_id for frame in source} == {source.source_id}


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


@pytest.mark.parametrize(
    ("suffix", "codec", "pix_fmt"),
    [
        (".mp4", "libx264", "yuv420p10le"),
        (".mp4", "libx264", "yuv444p"),
        (".mkv", "ffv1", "yuv420p10le"),
        (".mkv", "ffv1", "gray16le"),
        (".mkv", "ffv1", "yuva420p"),
        (".mkv", "ffv1", "gbrp16le"),
        (".avi", "rawvideo", "uyvy422"),
    ],
)
def test_deep_planar_and_alpha_formats_become_bgr(tmp_path: Path, suffix, codec, pix_fmt) -> None:
    width = 64 if codec == "rawvideo" else 62
    path = make_clip(tmp_path / f"clip{suffix}", codec=codec, pix_fmt=pix_fmt, width=width, height=46)
    frames = list(FileSource(path))
    assert [index_of(frame.image) for frame in frames] == list(range(12))
    assert {frame.image.shape for frame in frames} == {(46, width, 3)}


def test_palettes_become_bgr(tmp_path: Path) -> None:
    pictures = [Image.new("P", (31, 17), index) for index in range(5)]
    for picture in pictures:
        picture.putpalette([value for index in range(5) for value in (grey_of(index),) * 3])
    pictures[0].save(tmp_path / "clip.gif", save_all=True, append_images=pictures[1:], duration=100)
    frames = list(FileSource(tmp_path / "clip.gif"))
    assert [index_of(frame.image) for frame in frames] == list(range(5))
    assert frames[0].image.shape == (17, 31, 3)


def test_odd_sizes_are_kept(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4", pix_fmt="yuv444p", width=65, height=49)
    assert {frame.image.shape for frame in FileSource(path)} == {(49, 65, 3)}


def test_the_size_may_change_in_mid_stream(tmp_path: Path) -> None:
    first = make_clip(tmp_path / "a.ts", ticks=range(6), width=64, height=48)
    second = make_clip(tmp_path / "b.ts", ticks=range(6, 12), width=96, height=32)
    path = tmp_path / "both.ts"
    path.write_bytes(first.read_bytes() + second.read_bytes())
    shapes = [frame.image.shape for frame in FileSource(path)]
    assert shapes == [(48, 64, 3)] * 6 + [(32, 96, 3)] * 6


def test_too_large_pictures_in_mid_stream_are_an_error(tmp_path: Path) -> None:
    path = tmp_path / "both.mjpeg"
    with path.open("wb") as file:
        for size in [(64, 48)] * 6 + [(16400, 16)]:
            Image.new("RGB", size).save(file, "JPEG")
    frames = iter(FileSource(path))
    for _ in range(6):
        next(frames)
    with pytest.raises(SourceError, match=r"frame 6 of .* is 16400 x 16 pixels; at most 16384 a side"):
        next(frames)


def test_the_name_may_lie_about_the_kind_of_video(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4").rename(tmp_path / "clip.txt")
    assert len(list(open_source(str(path)))) == 12


@pytest.mark.parametrize(("width", "height"), [(16400, 16), (16, 16400), (12000, 10000)])
def test_too_large_a_video_is_refused_before_a_frame_is_decoded(tmp_path: Path, width, height) -> None:
    path = tmp_path / "bomb.avi"
    picture = Image.new("1", (width, height))
    picture.save(tmp_path / "bomb.png")
    with av.open(str(path), "w") as container:
        stream = container.add_stream("png", rate=1)
        stream.width, stream.height, stream.pix_fmt = width, height, "monob"
        packet = av.Packet((tmp_path / "bomb.png").read_bytes())
        packet.stream, packet.pts, packet.dts, packet.time_base = stream, 0, 0, Fraction(1, 1)
        container.mux(packet)
    with pytest.raises(SourceError, match=f"{width} x {height} pixels; at most 16384 a side"):
        FileSource(path)


def test_many_damaged_packets_are_named_with_their_number(tmp_path: Path, caplog) -> None:
    path = make_clip(tmp_path / "clip.mov", codec="png", pix_fmt="rgb24", ticks=range(20))
    with av.open(str(path)) as container:
        positions = [packet.pos for packet in container.demux(video=0) if packet.size]
    damaged = bytearray(path.read_bytes())
    for position in positions[1:16]:
        damaged[position : position + 60] = bytes(60)
    path.write_bytes(damaged)
    source = FileSource(path)
    assert [frame.frame_index for frame in source] == [0, 16, 17, 18, 19]
    assert source.faults == {"undecodable": 15}
    assert "is damaged (15 undecodable of its packets or frames)" in caplog.text


def test_a_file_that_grows_while_it_is_read_is_fine(tmp_path: Path) -> None:
    whole = make_clip(tmp_path / "whole.ts", ticks=range(24), width=320, height=240).read_bytes()
    path = tmp_path / "growing.ts"
    path.write_bytes(whole[: len(whole) // 2 // 188 * 188])
    source = FileSource(path)
    frames = iter(source)
    seen = [index_of(next(frames).image)]
    path.write_bytes(whole)
    seen += [index_of(frame.image) for frame in frames]
    assert seen == list(range(len(seen)))
    assert len(seen) > 5


def test_no_permission_is_one_sentence(tmp_path: Path) -> None:
    path = make_clip(tmp_path / "clip.mp4")
    path.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nothing is forbidden to root
    try:
        with pytest.raises(SourceError, match=r"cannot be read: .*Permission denied"):
            FileSource(path)
    finally:
        os.seteuid(user)


def test_a_nul_in_the_path_is_one_sentence() -> None:
    with pytest.raises(SourceError, match="cannot be read"):
        open_source("clip\0.mp4")


def test_a_single_picture_is_read_as_a_picture(tmp_path: Path) -> None:
    Image.new("RGB", (9, 5)).save(tmp_path / "one.png")
    assert isinstance(open_source(str(tmp_path / "one.png")), ImageSource)
