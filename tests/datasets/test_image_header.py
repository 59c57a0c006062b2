"""Sizes from headers, compared with what OpenCV decodes, and JPEGs that are cut short."""

from __future__ import annotations

import cv2
import numpy as np
import pytest

from pcmoe_det.datasets.image_header import image_size_from_header, is_jpeg_cut_short
from tests.datasets.shift_files import encode_jpeg

NOISE = np.random.default_rng(0).integers(0, 255, (37, 51, 3), dtype=np.uint8)


@pytest.mark.parametrize(
    ("suffix", "options"),
    [
        (".jpg", []),
        (".jpg", [cv2.IMWRITE_JPEG_PROGRESSIVE, 1]),
        (".jpg", [cv2.IMWRITE_JPEG_RST_INTERVAL, 1]),
        (".png", []),
    ],
    ids=["baseline", "progressive", "restart", "png"],
)
def test_size_of_whole_and_cut_images(suffix: str, options: list[int]) -> None:
    data = bytes(cv2.imencode(suffix, NOISE, options)[1])
    assert image_size_from_header(data) == (51, 37)
    assert not is_jpeg_cut_short(data)
    for length in range(len(data) - 1):
        assert image_size_from_header(data[:length]) in (None, (51, 37))
        assert is_jpeg_cut_short(data[:length]) == (suffix == ".jpg" and length >= 2)


def test_a_thumbnail_is_not_taken_for_the_image() -> None:
    thumbnail = encode_jpeg(1, width=16, height=8)
    data = encode_jpeg(2)
    segment = b"\xff\xe1" + (len(thumbnail) + 8).to_bytes(2, "big") + b"Exif\0\0" + thumbnail
    with_thumbnail = data[:2] + segment + data[2:]
    assert image_size_from_header(with_thumbnail) == (64, 40)
    assert not is_jpeg_cut_short(with_thumbnail)
    assert is_jpeg_cut_short(with_thumbnail[:-20])  # the thumbnail's end marker does not count


def test_fill_bytes_and_trailing_bytes() -> None:
    data = encode_jpeg(2)
    assert image_size_from_header(data[:2] + b"\xff\xff\xff" + data[2:]) == (64, 40)
    assert not is_jpeg_cut_short(data + bytes(100))


@pytest.mark.parametrize(
    "data",
    [b"", b"\xff\xd8", b"\xff\xd8\xff", b"\xff\xd8xx" * 9, b"GIF89a" * 9, b"\x89PNG\r\n\x1a\n" + bytes(30)],
)
def test_neither_jpeg_nor_png(data: bytes) -> None:
    assert image_size_from_header(data) is None
