"""Decoding images of a store."""

from __future__ import annotations

import logging
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcmoe_det.datasets.loading import LoadShiftImage, decode_image
from pcmoe_det.errors import ConfigError, DataError
from tests.datasets.shift_files import colour_of, encode_jpeg, write_images

MEMBER = "v/00000000_img_front.jpg"


def results_for(path: Path, **changes: Any) -> dict[str, Any]:
    return {"archive_path": str(path), "archive_member": MEMBER, "width": 64, "height": 40, **changes}


def test_loads_bgr(tmp_path: Path) -> None:
    write_images(tmp_path / "img.zip", {MEMBER: encode_jpeg(5)})
    loaded = LoadShiftImage()(results_for(tmp_path / "img.zip"))
    assert loaded is not None
    assert loaded["img"].dtype == np.uint8
    assert loaded["img"].shape == (40, 64, 3)
    assert loaded["img_shape"] == loaded["ori_shape"] == (40, 64)
    assert np.abs(loaded["img"].astype(int) - colour_of(5)).max() <= 4
    as_float = LoadShiftImage(to_float32=True)(results_for(tmp_path / "img.zip"))
    assert as_float is not None
    assert as_float["img"].dtype == np.float32


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (encode_jpeg(0)[:-50], "cut short"),
        (b"", "not a readable image"),
        (b"no image at all", "not a readable image"),
        (b"\x89PNG\r\n\x1a\n" + bytes(50), "not a readable image"),
        (encode_jpeg(0, width=32), "32x40 but its labels are for 64x40"),
    ],
    ids=["cut", "empty", "text", "png", "other-size"],
)
def test_refuses_bad_images(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes, words: str
) -> None:
    write_images(tmp_path / "img.tar", {MEMBER: data})
    results = results_for(tmp_path / "img.tar")
    with pytest.raises(DataError) as caught:
        LoadShiftImage()(results)
    assert str(caught.value).startswith(f"{tmp_path / 'img.tar'}:{MEMBER}: ")
    assert words in str(caught.value)
    skipping = LoadShiftImage(broken_images="skip")
    with caplog.at_level(logging.WARNING):
        assert skipping(dict(results)) is None
        assert skipping(dict(results)) is None
    assert skipping.num_skipped == 2
    assert "(2 in this process so far)" in caplog.messages[-1]
    assert MEMBER in caplog.messages[-1]


def test_refuses_a_missing_member(tmp_path: Path) -> None:
    write_images(tmp_path / "img", {"v/other.jpg": encode_jpeg(0)})
    with pytest.raises(DataError, match=MEMBER):
        LoadShiftImage()(results_for(tmp_path / "img"))


def test_switches_between_stores_and_survives_pickling(tmp_path: Path) -> None:
    load = LoadShiftImage()
    for code in range(3):
        write_images(tmp_path / f"{code}.zip", {MEMBER: encode_jpeg(code)})
    for code in (0, 1, 0, 2):
        copy = pickle.loads(pickle.dumps(load))
        for transform in (load, copy):
            loaded = transform(results_for(tmp_path / f"{code}.zip"))
            assert loaded is not None
            assert abs(int(loaded["img"][20, 20, 0]) - colour_of(code)[0]) <= 4
    assert len(pickle.dumps(load)) < 1000


def test_grey_images_get_three_channels() -> None:
    import cv2

    data = bytes(cv2.imencode(".png", np.full((3, 4), 77, np.uint8))[1])
    assert decode_image(data, where="x").tolist() == np.full((3, 4, 3), 77).tolist()


def test_refuses_an_unknown_choice() -> None:
    with pytest.raises(ConfigError, match=r"'maybe'.*error, skip"):
        LoadShiftImage(broken_images="maybe")  # type: ignore[arg-type]
    assert repr(LoadShiftImage()) == "LoadShiftImage(broken_images='error', to_float32=False)"
