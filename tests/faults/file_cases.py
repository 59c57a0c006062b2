"""Damaged files, what is no video, folders, odd pictures."""

# ruff: noqa: E501 - a table reads best with a line for a case.

from __future__ import annotations

import io
import json
import os
import socket
import struct
import wave
import zlib
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path

import numpy as np
from PIL import Image

from tests.faults.bench import Bench, Case, Expected, Ran, done, refused
from tests.faults.clips import CLIP_FRAMES, KINDS, clip_bytes, frames_before, make

__all__ = ["file_cases"]

_UNREADABLE = "is not a video|no frame|cannot be read|holds no video"
_SEEDS = range(4)


def file_cases() -> list[Case]:
    return [*_truncated(), *_corrupted(), *_no_videos(), *_places(), *_pictures()]


def _source(path: Path | str) -> list[object]:
    return ["--source", path]


def _truncated() -> list[Case]:
    cases = []
    for kind, (suffix, _, _) in KINDS.items():
        size = len(clip_bytes(kind))
        for seed in _SEEDS:
            # By hand: the first lies in the header, the others anywhere in the pictures.
            share = 0.002 if seed == 0 else np.random.default_rng(seed).uniform(0.3, 0.95)
            offset = max(3, int(share * size))

            def arrange(bench: Bench, kind: str = kind, suffix: str = suffix, offset: int = offset):
                path = bench.folder / f"cut{suffix}"
                path.write_bytes(clip_bytes(kind)[:offset])
                return _source(path)

            def look(bench: Bench, ran: Ran, kind: str = kind, offset: int = offset) -> None:
                read = ran.total("frames_read")
                assert read >= frames_before(kind, offset) - 1, "whole frames before the cut were lost"
                greys = [round((grey - 10) / 10) for grey, _ in bench.detector.seen]
                assert greys[: read - 2] == list(range(read - 2)), "other frames than those of the file"
                told = sum(ran.counts("source_faults").values())
                if kind not in ("ts", "mjpeg"):  # these do not say how much there should be
                    assert told, "frames are missing and nothing says so"
                    assert "is damaged" in ran.err

            if seed == 0 or kind == "mp4":  # the index of a plain MP4 is its end
                expected, look_there = refused(_UNREADABLE), None
            else:
                expected = Expected(reads=range(1, CLIP_FRAMES), writes=range(1, CLIP_FRAMES), drops={})
                look_there = look
            cases.append(Case("truncated", kind, f"at {share:.1%}", expected, arrange, look_there))
    return cases


def _corrupted() -> list[Case]:
    """Whatever is hit: either it cannot be used, and that is said in one sentence, or what can be decoded is
    detected and the damage is counted. Never more frames than there were, never a loss that nobody tells."""
    cases = []
    for kind, (suffix, _, _) in KINDS.items():
        for seed in _SEEDS:
            how = "one stretch of noise" if seed % 2 else "single bytes"

            def arrange(bench: Bench, kind: str = kind, suffix: str = suffix, how: str = how):
                data = bytearray(clip_bytes(kind))
                if how == "single bytes":
                    for _ in range(30):
                        data[bench.chance.randrange(len(data))] ^= 1 << bench.chance.randrange(8)
                else:
                    first = bench.chance.randrange(len(data) - 400)
                    data[first : first + 400] = bench.chance.randbytes(400)
                path = bench.folder / f"bad{suffix}"
                path.write_bytes(data)
                return _source(path)

            def look(bench: Bench, ran: Ran, kind: str = kind) -> None:
                missing = ran.code == 0 and ran.total("frames_read") < CLIP_FRAMES
                # Plain JPEGs one after another neither count nor number themselves.
                if missing and kind != "mjpeg" and not ran.counts("source_faults"):
                    times = [json.loads(line)["pts_seconds"] for line in bench.path_of("jsonl").open()]
                    steps = [after - before for before, after in pairwise(times)]
                    assert max(steps) > 0.06, "frames are missing and neither a count nor a time says so"
                if ran.code == 1:
                    assert not bench.path_of("jsonl").exists()
                    assert not bench.path_of("mp4").exists()

            expected = Expected(
                code=(0, 1), says="bad|complete", reads=range(1, CLIP_FRAMES + 1), drops={}, files="mixed",
                loads=None,
            )  # fmt: skip
            cases.append(Case("corrupted", kind, f"{how}, {seed}", expected, arrange, look))
    return cases


def _written(name: str, content: Callable[[], bytes]) -> Callable[[Bench], list[object]]:
    def arrange(bench: Bench) -> list[object]:
        path = bench.folder / name
        path.write_bytes(content())
        return _source(path)

    return arrange


def _sound() -> bytes:
    file = io.BytesIO()
    with wave.open(file, "wb") as sound:
        sound.setnchannels(1)
        sound.setsampwidth(2)
        sound.setframerate(8000)
        sound.writeframes(bytes(16000))
    return file.getvalue()


def picture_bytes(
    width: int = 40, height: int = 30, *, kind: str = "PNG", mode: str = "RGB", value: int = 90
) -> bytes:
    file = io.BytesIO()
    Image.new(mode, (width, height), value if mode in ("L", "I;16", "1") else (value,) * len(mode)).save(
        file, kind
    )
    return file.getvalue()


def _no_videos() -> list[Case]:
    empty = [
        Case("zero bytes", name, "empty file", refused(says), _written(name, bytes))
        for name, says in (
            ("a.mp4", "a.mp4 is empty"), ("a.mkv", "a.mkv is empty"), ("a.avi", "a.avi is empty"),
            ("a.webm", "a.webm is empty"), ("a.jpg", "a.jpg cannot be read as a picture"), ("a", "a is empty"),
        )
    ]  # fmt: skip
    rows: list[tuple[str, str, Callable[[], bytes], Expected]] = [
        ("a.avi", "is an MP4", lambda: clip_bytes("mp4"), done(CLIP_FRAMES)),
        ("a.mp4", "is a Matroska", lambda: clip_bytes("mkv"), done(CLIP_FRAMES)),
        ("a.mkv", "is an AVI", lambda: clip_bytes("avi"), done(CLIP_FRAMES)),
        ("a.txt", "is a transport stream", lambda: clip_bytes("ts"), done(CLIP_FRAMES)),
        ("no-suffix", "is an MP4", lambda: clip_bytes("mp4"), done(CLIP_FRAMES)),
        ("a.jpg", "is a PNG", picture_bytes, done(1)),
        ("a.jpg", "is an MP4", lambda: clip_bytes("mp4"), refused("a.jpg cannot be read as a picture")),
        ("a.mp4", "is text", lambda: b"hello\n" * 500, refused(_UNREADABLE)),
        ("a.mp4", "is noise", lambda: np.random.default_rng(1).bytes(9000), refused(_UNREADABLE)),
        ("a.mp4", "is sound", _sound, refused("a.mp4 holds no video")),
        ("a.mp4", "is a playlist", lambda: b"#EXTM3U\n#EXTINF:9,\nfile:///etc/passwd\n", refused("a playlist")),
        ("a.mp4", "is a list of files", lambda: b"ffconcat version 1.0\nfile 'x.mp4'\n", refused("a playlist")),
        ("a.avi", "is an archive", lambda: b"PK\x03\x04" + bytes(3000), refused(_UNREADABLE)),
        ("a.mp4", "is zeros", lambda: bytes(100_000), refused(_UNREADABLE)),
    ]  # fmt: skip
    return empty + [
        Case("wrong extension", name, what, exp, _written(name, of)) for name, what, of, exp in rows
    ]


def _places() -> list[Case]:
    def folder_of(*names: str, good: bool = True) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            for name in names:
                (bench.folder / name).parent.mkdir(exist_ok=True)
                is_bad = "bad" in name
                (bench.folder / name).write_bytes(b"no picture" if is_bad else picture_bytes())
            return _source(bench.folder)

        return arrange

    def odd(make_it: Callable[[Path], object], name: str = "odd.mp4") -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            make_it(bench.folder / name)
            return _source(bench.folder / name)

        return arrange

    def link_to_clip(path: Path) -> None:
        path.symlink_to(make(path.parent))

    def socket_at(path: Path) -> None:
        with socket.socket(socket.AF_UNIX) as made:
            here = Path.cwd()
            os.chdir(path.parent)  # names of sockets are short
            try:
                made.bind(path.name)
            finally:
                os.chdir(here)

    def only_videos(bench: Bench) -> list[object]:
        make(bench.folder)
        return _source(bench.folder)

    rows = [
        ("empty folder", "nothing in it", refused("holds no pictures"), lambda b: _source(b.folder)),
        ("folder", "holds only videos", refused("holds no pictures"), only_videos),
        ("folder", "one picture of three is broken", done(2, faults={"unreadable": 1}),
         folder_of("1.png", "2bad.png", "3.png")),
        ("folder", "all pictures are broken", refused("none of the 2 pictures"), folder_of("1bad.png", "2bad.png")),
        ("folder", "its pictures are one level down", refused("holds no pictures"), folder_of("down/1.png")),
        ("pattern", "matches nothing", refused("nothing matches"), lambda b: _source(f"{b.folder}/*.png")),
        ("missing file", "is not there", refused("there is no file"), lambda b: _source(b.folder / "no.mp4")),
        ("link", "leads nowhere", refused("there is no file"), odd(lambda p: p.symlink_to("nowhere"))),
        ("link", "leads to itself", refused("odd.mp4"), odd(lambda p: p.symlink_to(p))),
        ("link", "leads to a clip", done(CLIP_FRAMES), odd(link_to_clip)),
        ("named pipe", "nobody writes", refused("not a regular file"), odd(os.mkfifo)),
        ("socket", "is no file", refused("not a regular file"), odd(socket_at)),
        ("device", "never ends", refused("not a regular file"), lambda b: _source("/dev/zero")),
        ("name", "with a colon", done(CLIP_FRAMES), odd(lambda p: make(p.parent, name=p.name), "a:b.mp4")),
        ("name", "looks like a pattern", done(CLIP_FRAMES), odd(lambda p: make(p.parent, name=p.name), "a[1].mp4")),
        ("name", "is too long", refused("name too long"), lambda b: _source(b.folder / ("x" * 300))),
        ("name", "holds a NUL", refused("cannot be read|no file"), lambda b: _source(f"{b.folder}/a\0b")),
    ]  # fmt: skip
    return [Case("place", source, fault, expected, arrange) for source, fault, expected, arrange in rows]


def _bomb(width: int, height: int) -> bytes:
    """A PNG that says it is this large and holds next to nothing."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = zlib.crc32(name + data)
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", checksum)

    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(bytes(999)))
        + chunk(b"IEND", b"")
    )


def _pictures() -> list[Case]:
    def cut(kind: str) -> Callable[[], bytes]:
        return lambda: picture_bytes(200, 100, kind=kind)[:-30]

    def sizes(bench: Bench) -> list[object]:
        for number, (width, height) in enumerate([(64, 48), (63, 47), (1, 1), (48, 64), (640, 4)]):
            (bench.folder / f"{number}.png").write_bytes(picture_bytes(width, height))
        return _source(bench.folder)

    def size_of_video(width: int, height: int) -> Callable[[Bench, Ran], None]:
        def look(bench: Bench, ran: Ran) -> None:
            import av

            with av.open(str(bench.path_of("mp4"))) as container:
                stream = container.streams.video[0]
                assert (stream.width, stream.height) == (width, height)

        return look

    def video(width: int, height: int) -> Callable[[Bench], list[object]]:
        return lambda bench: _source(make(bench.folder, "mjpeg", frames=2, width=width, height=height))

    def large(name: str, kind: str) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            bench.outputs = ("mp4", "jsonl", "summary") if kind == "JPEG" else ("jsonl", "summary")
            return _written(name, lambda: picture_bytes(8000, 6000, kind=kind, mode="L"))(bench)

        return arrange

    rows = [
        ("1x1 PNG", "tiny", done(1), _written("a.png", lambda: picture_bytes(1, 1)), size_of_video(2, 2)),
        ("1x1 JPEG", "tiny", done(1), _written("a.jpg", lambda: picture_bytes(1, 1, kind="JPEG")), None),
        ("3x3 video", "tiny", done(2), video(3, 3), size_of_video(4, 4)),
        ("8000x6000 JPEG", "large", done(1, seconds=60), large("a.jpg", "JPEG"), size_of_video(3530, 2648)),
        ("8000x6000 PNG", "large", done(1, seconds=60), large("a.png", "PNG"), None),
        ("1x6000 PNG", "narrow", done(1), _written("a.png", lambda: picture_bytes(1, 6000)), None),
        ("63x47 video", "odd sides", done(2), video(63, 47), size_of_video(64, 48)),
        ("20000x10 PNG", "too wide", refused("20000 x 10 pixels"), _written("a.png", lambda: picture_bytes(20000, 10)),
         None),
        ("30000x30000 PNG", "bomb", refused("30000 x 30000|exceeds"), _written("a.png", lambda: _bomb(30000, 30000)),
         None),
        ("9000x9000 PNG", "holds next to nothing", refused("a.png cannot be read"),
         _written("a.png", lambda: _bomb(9000, 9000)), None),
        ("JPEG", "cut off", refused("cannot be read as a picture"), _written("a.jpg", cut("JPEG")), None),
        ("PNG", "cut off", refused("cannot be read as a picture"), _written("a.png", cut("PNG")), None),
        ("grey PNG", "16 bits", done(1), _written("a.png", lambda: picture_bytes(mode="I;16", value=30000)), None),
        ("PNG", "1 bit", done(1), _written("a.png", lambda: picture_bytes(mode="1", value=1)), None),
        ("PNG", "transparent", done(1), _written("a.png", lambda: picture_bytes(mode="RGBA")), None),
        ("JPEG", "CMYK", done(1), _written("a.jpg", lambda: picture_bytes(kind="JPEG", mode="CMYK")), None),
        ("folder", "every picture has another size", done(5), sizes, size_of_video(64, 48)),
    ]  # fmt: skip
    return [Case("picture", source, fault, exp, arrange, look) for source, fault, exp, arrange, look in rows]
