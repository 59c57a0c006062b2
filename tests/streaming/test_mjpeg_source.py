"""MJPEG through a pipe."""

from __future__ import annotations

import contextlib
import io
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from pcmoe_det.errors import SourceError, UsageError
from pcmoe_det.streaming.mjpeg_source import MjpegSource
from pcmoe_det.streaming.source_factory import open_source
from tests.streaming.stand_ins import grey_of, index_of, make_clip

pytestmark = pytest.mark.timeout(30)


def _jpeg(index: int, *, width: int = 63, height: int = 47) -> bytes:
    file = io.BytesIO()
    Image.fromarray(np.full((height, width, 3), grey_of(index), np.uint8)).save(file, "JPEG", quality=95)
    return file.getvalue()


@pytest.fixture
def pipe():
    reader, writer = os.pipe()
    ends = {"reader": reader, "writer": writer}
    yield ends
    for descriptor in ends.values():
        with contextlib.suppress(OSError):
            os.close(descriptor)


def _write_and_end(pipe: dict[str, int], data: bytes) -> None:
    def write() -> None:
        view = memoryview(data)
        while view:
            view = view[os.write(pipe["writer"], view) :]
        os.close(pipe["writer"])

    threading.Thread(target=write, daemon=True).start()


def test_every_picture_in_order_and_in_any_size(pipe: dict[str, int]) -> None:
    _write_and_end(pipe, b"".join(_jpeg(index, width=40 + index) for index in range(12)))
    source = MjpegSource(pipe["reader"], clock=lambda: 5.0)
    frames = list(source)
    assert [index_of(frame.image) for frame in frames] == list(range(12))
    assert [frame.frame_index for frame in frames] == list(range(12))
    assert [frame.image.shape for frame in frames] == [(47, 40 + index, 3) for index in range(12)]
    assert {frame.pts_seconds for frame in frames} == {None}
    assert {frame.captured_at_seconds for frame in frames} == {5.0}
    assert (source.source_id, source.is_live, source.faults) == ("stdin", False, {})
    source.close()
    source.close()


def test_faults_are_counted_and_a_bad_picture_keeps_its_index(pipe: dict[str, int]) -> None:
    # Whole by its markers, but its frame header says 0 components.
    bad = bytearray(_jpeg(1))
    header = bad.index(b"\xff\xc0")
    bad[header + 9] = 0
    _write_and_end(pipe, b"hello" + _jpeg(0) + bytes(bad) + _jpeg(2) + _jpeg(3)[:-9])
    source = MjpegSource(pipe["reader"])
    frames = list(source)
    assert [(frame.frame_index, index_of(frame.image)) for frame in frames] == [(0, 0), (2, 2)]
    assert source.faults == {"garbage": 1, "undecodable": 1, "truncated": 1}


@pytest.mark.parametrize("data", [b"", b"no picture at all", _jpeg(0)[:-2]])
def test_an_end_without_a_picture_is_an_error(pipe: dict[str, int], data: bytes) -> None:
    _write_and_end(pipe, data)
    with pytest.raises(SourceError, match="stdin ended without a JPEG picture"):
        list(MjpegSource(pipe["reader"]))


def test_interrupt_ends_the_wait_for_a_silent_writer(pipe: dict[str, int]) -> None:
    os.write(pipe["writer"], _jpeg(0) + _jpeg(1)[:50])
    source = MjpegSource(pipe["reader"])
    frames: list = []
    first = threading.Event()

    def read() -> None:
        for frame in source:
            frames.append(frame)
            first.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert first.wait(5)
    source.interrupt()
    reader.join(5)
    assert not reader.is_alive()
    assert len(frames) == 1
    source.close()
    source.interrupt()  # too late, and harmless


def test_a_terminal_is_a_usage_error(monkeypatch: pytest.MonkeyPatch) -> None:
    master, terminal = os.openpty()
    with open(terminal, closefd=False) as file:
        monkeypatch.setattr(sys, "stdin", file)
        with pytest.raises(UsageError, match="is a terminal"):
            open_source("-")
    os.close(master)
    os.close(terminal)


def test_a_missing_standard_input_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)
    with pytest.raises(SourceError, match="no standard input"):
        open_source("-")


@pytest.mark.skipif(shutil.which("ffmpeg") is None, reason="needs the ffmpeg program")
def test_what_ffmpeg_writes_is_read(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", ticks=range(20), width=320, height=240)
    command = ["ffmpeg", "-loglevel", "error", "-i", str(clip), "-f", "mjpeg", "-q:v", "2", "-"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL) as process:
        assert process.stdout is not None
        frames = list(MjpegSource(process.stdout.fileno()))
    assert [index_of(frame.image) for frame in frames] == list(range(20))
