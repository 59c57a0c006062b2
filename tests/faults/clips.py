"""Clips of every kind of container, made once, to be damaged."""

from __future__ import annotations

import tempfile
from fractions import Fraction
from functools import lru_cache
from pathlib import Path

import av
import numpy as np

from tests.streaming.stand_ins import grey_of

__all__ = ["CLIP_FRAMES", "KINDS", "clip_bytes", "frames_before", "make"]

CLIP_FRAMES = 20
# Name of the kind: file suffix, codec, options of the container.
KINDS: dict[str, tuple[str, str, dict[str, str]]] = {
    "mp4": (".mp4", "libx264", {}),
    "mp4 with its index in front": (".mp4", "libx264", {"movflags": "+faststart"}),
    "mkv": (".mkv", "libx264", {}),
    "avi": (".avi", "mpeg4", {}),
    "ts": (".ts", "libx264", {}),
    "mjpeg": (".mjpeg", "mjpeg", {}),
    "webm": (".webm", "libvpx", {}),
}


@lru_cache(maxsize=32)
def clip_bytes(kind: str = "mp4", *, frames: int = CLIP_FRAMES, width: int = 96, height: int = 64) -> bytes:
    """A clip whose frame ``i`` has the mean grey value ``grey_of(i)`` and much noise, so that nearly all of
    its bytes are pictures; a key frame every five, no B-frames."""
    suffix, codec, options = KINDS[kind]
    chance = np.random.default_rng(5)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"clip{suffix}"
        with av.open(str(path), "w", options=options) as container:
            stream = container.add_stream(codec, rate=25)
            stream.width, stream.height = width, height
            stream.pix_fmt = "yuvj420p" if codec == "mjpeg" else "yuv420p"
            stream.codec_context.gop_size = 5
            stream.codec_context.thread_count = 1
            stream.codec_context.bit_rate = 4_000_000
            if codec == "libx264":
                stream.codec_context.options = {"bf": "0", "preset": "ultrafast", "tune": "zerolatency"}
            for index in range(frames):
                noise = chance.integers(-9, 10, (height, width, 3))
                image = np.clip(grey_of(index) + noise, 0, 255).astype(np.uint8)
                frame = av.VideoFrame.from_ndarray(image, format="bgr24").reformat(format=stream.pix_fmt)
                frame.pts, frame.time_base = index, Fraction(1, 25)
                container.mux(stream.encode(frame))
            container.mux(stream.encode(None))
        return path.read_bytes()


def make(folder: Path, kind: str = "mp4", name: str | None = None, **settings: int) -> Path:
    """The clip as a file."""
    path = folder / (name or f"clip{KINDS[kind][0]}")
    path.write_bytes(clip_bytes(kind, **settings))
    return path


def frames_before(kind: str, offset: int) -> int:
    """How many frames of the whole clip lie before ``offset``, by the places of its packets. The last one is
    not counted, because where it ends is not known."""
    with tempfile.TemporaryDirectory() as folder, av.open(str(make(Path(folder), kind))) as container:
        places = sorted(packet.pos for packet in container.demux(video=0) if packet.size)
    return max(0, sum(place <= offset for place in places) - 1)
