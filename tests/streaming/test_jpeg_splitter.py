"""Cutting a stream of bytes into JPEG pictures."""

from __future__ import annotations

import io
import random

import numpy as np
import pytest
from PIL import Image

from pcmoe_det.streaming.jpeg_splitter import JpegSplitter


def _jpeg(seed: int, *, side: int = 40, **options) -> bytes:
    noise = np.random.default_rng(seed).integers(0, 255, (side, side, 3), np.uint8)
    file = io.BytesIO()
    Image.fromarray(noise).save(file, "JPEG", **options)
    return file.getvalue()


def _with_thumbnail(seed: int) -> bytes:
    """A picture with a whole JPEG in an APP1 segment."""
    picture, thumbnail = _jpeg(seed), _jpeg(seed + 100, side=8)
    segment = b"\xff\xe1" + (len(thumbnail) + 2).to_bytes(2, "big") + thumbnail
    return picture[:2] + segment + picture[2:]


PICTURES = [
    _jpeg(0),
    _jpeg(1, progressive=True),
    _jpeg(2, restart_marker_rows=1),
    _with_thumbnail(3),
    _jpeg(4, quality=100, comment=b"\xff\xd9 not the end \xff\xd8"),
    _jpeg(5, side=1),
]


@pytest.mark.parametrize("chunk_size", [1, 2, 7, 1000, 1 << 20])
def test_pictures_come_out_as_they_went_in(chunk_size: int) -> None:
    data = b"".join(PICTURES)
    splitter = JpegSplitter()
    found = []
    for start in range(0, len(data), chunk_size):
        found += splitter.feed(data[start : start + chunk_size])
    splitter.finish()
    assert found == PICTURES
    assert (splitter.garbage, splitter.truncated) == (0, 0)


def test_a_picture_is_given_with_its_last_byte() -> None:
    splitter = JpegSplitter()
    assert splitter.feed(PICTURES[0][:-1]) == []
    assert splitter.feed(PICTURES[0][-1:]) == [PICTURES[0]]


@pytest.mark.parametrize("chunk_size", [1, 13, 1 << 20])
def test_garbage_is_skipped_and_each_stretch_counted_once(chunk_size: int) -> None:
    first, second, third = PICTURES[:3]
    data = b"head\r\n\r\n" + first + b"\xff\x00" * 5000 + second + b"--b\r\n" + third + b"rest"
    splitter = JpegSplitter()
    found = []
    for start in range(0, len(data), chunk_size):
        found += splitter.feed(data[start : start + chunk_size])
    splitter.finish()
    assert found == PICTURES[:3]
    assert (splitter.garbage, splitter.truncated) == (4, 0)


def test_line_breaks_and_padding_between_pictures_are_no_garbage() -> None:
    splitter = JpegSplitter()
    assert splitter.feed(b"\r\n" + PICTURES[0] + b"\0\0\r\n" + PICTURES[1] + b"\n") == PICTURES[:2]
    splitter.finish()
    assert (splitter.garbage, splitter.truncated) == (0, 0)


@pytest.mark.parametrize("keep", [2, 3, 20, 400, -2, -1])
def test_a_picture_that_the_end_cuts_off_is_counted(keep: int) -> None:
    splitter = JpegSplitter()
    assert splitter.feed(PICTURES[0] + PICTURES[1][:keep]) == [PICTURES[0]]
    splitter.finish()
    assert (splitter.garbage, splitter.truncated) == (0, 1)


def test_a_picture_that_the_next_one_cuts_off_costs_only_itself() -> None:
    splitter = JpegSplitter()
    assert splitter.feed(PICTURES[0] + PICTURES[4][:-300] + PICTURES[2]) == [PICTURES[0], PICTURES[2]]
    assert splitter.truncated == 1


def test_any_damage_leaves_whole_pictures_behind_it() -> None:
    chance = random.Random(1)
    found_behind = 0
    for _ in range(50):
        damaged = bytearray(PICTURES[0])
        for _ in range(5):
            damaged[chance.randrange(2, len(damaged))] = chance.randrange(256)
        splitter = JpegSplitter()
        found = splitter.feed(bytes(damaged) + PICTURES[1] * 200)
        splitter.finish()
        found_behind += found[-1:] == [PICTURES[1]]
    assert found_behind == 50


def test_a_picture_without_end_does_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pcmoe_det.streaming.jpeg_splitter._LARGEST_PICTURE_BYTES", 10_000)
    splitter = JpegSplitter()
    header = PICTURES[0][: PICTURES[0].index(b"\xff\xda") + 14]
    splitter.feed(header)
    for _ in range(50):
        splitter.feed(b"\x11" * 1000)
    assert splitter.truncated == 1
    assert splitter.feed(PICTURES[1]) == [PICTURES[1]]
