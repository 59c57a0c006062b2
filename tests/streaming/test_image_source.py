"""Still pictures: one file, folders and patterns."""

from __future__ import annotations

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from PIL import Image

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming.image_source import ImageSource, natural_key
from pcmoe_det.streaming.source_factory import open_source
from tests.streaming.stand_ins import grey_of, index_of


def _write(path: Path, index: int = 0) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((12, 20, 3), grey_of(index), np.uint8)).save(path)
    return path


def _image(path: Path) -> np.ndarray:
    return next(iter(ImageSource(path))).image


def test_a_folder_is_read_in_natural_order(tmp_path: Path) -> None:
    names = ["1.png", "2.JPG", "frame10.png", "frame9.jpeg", "10.bmp"]
    for index, name in enumerate(names):
        _write(tmp_path / name, index)
    _write(tmp_path / ".hidden.png")
    _write(tmp_path / "below" / "deep.png")
    (tmp_path / "notes.txt").write_text("no picture")
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    source = open_source(str(tmp_path))
    assert isinstance(source, ImageSource)
    frames = list(source)
    assert [index_of(frame.image) for frame in frames] == [0, 1, 4, 3, 2]
    assert [frame.frame_index for frame in frames] == [0, 1, 2, 3, 4]
    assert {frame.pts_seconds for frame in frames} == {None}
    assert (source.frame_count, source.frame_rate, source.is_live, source.faults) == (5, None, False, {})
    assert source.source_id == str(tmp_path)


def test_the_clock_of_a_picture_starts_when_it_is_asked_for(tmp_path: Path) -> None:
    for index in (0, 1):
        _write(tmp_path / f"{index}.png", index)
    now = [10.0]
    source = ImageSource(tmp_path, clock=lambda: now[0])
    now[0] = 25.0  # a model was loaded meanwhile
    assert [frame.captured_at_seconds for frame in source] == [25.0, 25.0]


def test_a_pattern_is_read_in_natural_order(tmp_path: Path) -> None:
    for index in (0, 2, 10, 1):
        _write(tmp_path / f"a{index}" / f"x{index}.png", index)
        _write(tmp_path / f"a{index}" / f"y{index}.png", 20)
    frames = list(open_source(str(tmp_path / "a*" / "x*.png")))
    assert [index_of(frame.image) for frame in frames] == [0, 1, 2, 10]
    assert len(list(open_source(str(tmp_path / "**" / "*.png")))) == 8


def test_a_name_with_pattern_characters_is_the_file_of_that_name(tmp_path: Path) -> None:
    _write(tmp_path / "a[1].png", 7)
    _write(tmp_path / "a1.png", 3)
    source = open_source(str(tmp_path / "a[1].png"))
    assert [index_of(frame.image) for frame in source] == [7]


def test_numbers_in_names_sort_as_numbers() -> None:
    names = ["b2", "b10", "B1", "a", "10", "9", "2.5", "2.10"]
    assert sorted(names, key=natural_key) == ["2.5", "2.10", "9", "10", "a", "B1", "b2", "b10"]
    assert sorted(["x01", "x1", "x001"], key=natural_key) == ["x001", "x01", "x1"]  # no two are equal


def test_an_unreadable_picture_is_counted_named_and_skipped(tmp_path: Path, caplog) -> None:
    for index in range(5):
        _write(tmp_path / f"{index}.png", index)
    whole = (tmp_path / "1.png").read_bytes()
    (tmp_path / "1.png").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "3.png").write_bytes(b"")
    source = ImageSource(tmp_path)
    frames = list(source)
    assert [(frame.frame_index, index_of(frame.image)) for frame in frames] == [(0, 0), (2, 2), (4, 4)]
    assert source.faults == {"unreadable": 2}
    assert [name in caplog.text for name in ("1.png", "3.png", "2.png")] == [True, True, False]


def test_many_unreadable_pictures_do_not_flood_the_log(tmp_path: Path, caplog) -> None:
    _write(tmp_path / "0.png")
    for index in range(1, 100):
        (tmp_path / f"{index}.png").write_bytes(b"damaged")
    source = ImageSource(tmp_path)
    assert len(list(source)) == 1
    assert source.faults == {"unreadable": 99}
    assert len(caplog.records) < 10
    assert "99 pictures" in caplog.records[-1].message


def test_a_vanished_picture_is_unreadable(tmp_path: Path) -> None:
    for index in range(3):
        _write(tmp_path / f"{index}.png", index)
    source = ImageSource(tmp_path)
    (tmp_path / "1.png").unlink()
    assert [frame.frame_index for frame in source] == [0, 2]
    assert source.faults == {"unreadable": 1}


@pytest.mark.parametrize(
    ("make", "location", "message"),
    [
        (lambda path: None, "", "holds no pictures"),
        (lambda path: (path / "a.mp4").touch(), "", "holds no pictures"),
        (lambda path: None, "*.png", "nothing matches"),
        (lambda path: (path / "a.mp4").touch(), "*.mp4", "no picture matches"),
        (lambda path: (path / "a.png").touch(), "a.png", "a.png cannot be read as a picture: not a picture"),
        (lambda path: [(path / f"{n}.png").touch() for n in "ab"], "", "none of the 2 pictures"),
    ],
)
def test_no_picture_is_an_error(tmp_path: Path, make, location: str, message: str) -> None:
    make(tmp_path)
    with pytest.raises(SourceError, match=message) as caught:
        open_source(str(tmp_path / location))
    assert "\n" not in str(caught.value)


def test_interrupt_ends_the_iteration(tmp_path: Path) -> None:
    for index in range(5):
        _write(tmp_path / f"{index}.png", index)
    source = ImageSource(tmp_path)
    frames = iter(source)
    next(frames)
    source.interrupt()
    assert list(frames) == []


@pytest.mark.parametrize("orientation", range(1, 9))
def test_exif_rotation_is_applied_as_opencv_does(tmp_path: Path, orientation: int) -> None:
    picture = np.zeros((16, 24, 3), np.uint8)
    picture[:8, :8] = (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / "turned.jpg"
    Image.fromarray(picture).save(path, exif=exif, quality=100, subsampling=0)
    truth = cv2.imread(str(path))
    image = _image(path)
    assert image.shape == truth.shape == ((16, 24, 3) if orientation < 5 else (24, 16, 3))
    assert np.abs(image.astype(int) - truth).max() <= 4


@pytest.mark.parametrize("suffix", [".png", ".tif", ".pgm"])
def test_16_bit_grey_is_scaled(tmp_path: Path, suffix: str) -> None:
    ramp = np.arange(0, 65536, 257 * 5, dtype=np.uint16).reshape(1, -1)
    cv2.imwrite(str(tmp_path / f"ramp{suffix}"), ramp)
    image = _image(tmp_path / f"ramp{suffix}")
    assert image.shape == (*ramp.shape, 3)
    assert (image == (np.arange(0, 256, 5))[None, :, None]).all()


def test_16_bit_colour_is_scaled(tmp_path: Path) -> None:
    cv2.imwrite(str(tmp_path / "c.png"), np.full((3, 4, 3), (257 * 10, 257 * 20, 257 * 30), np.uint16))
    assert (_image(tmp_path / "c.png") == (10, 20, 30)).all()


def test_8_bit_grey_palette_and_single_bit(tmp_path: Path) -> None:
    grey = Image.fromarray(np.full((3, 4), 77, np.uint8))
    grey.save(tmp_path / "grey.png")
    assert (_image(tmp_path / "grey.png") == 77).all()
    Image.fromarray(np.full((3, 4, 3), (1, 2, 200), np.uint8)).quantize(4).save(tmp_path / "palette.png")
    assert np.abs(_image(tmp_path / "palette.png").astype(int) - (200, 2, 1)).max() <= 8
    Image.fromarray(np.array([[True, False]])).save(tmp_path / "bit.png")
    assert _image(tmp_path / "bit.png")[0, :, 0].tolist() == [255, 0]


def test_what_is_transparent_lies_on_black(tmp_path: Path) -> None:
    picture = np.full((1, 3, 4), 200, np.uint8)
    picture[0, :, 3] = (255, 128, 0)
    Image.fromarray(picture, "RGBA").save(tmp_path / "alpha.png")
    assert np.abs(_image(tmp_path / "alpha.png")[0, :, 0].astype(int) - (200, 100, 0)).max() <= 1
    Image.fromarray(picture[:, :, 2:]).convert("LA").save(tmp_path / "grey.png")
    assert _image(tmp_path / "grey.png").shape == (1, 3, 3)


def test_cmyk_becomes_bgr(tmp_path: Path) -> None:
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "red.jpg", quality=100)
    assert np.abs(_image(tmp_path / "red.jpg").astype(int) - (0, 0, 255)).max() <= 12


def test_one_pixel_and_48_million(tmp_path: Path) -> None:
    Image.new("RGB", (1, 1), (3, 2, 1)).save(tmp_path / "one.png")
    assert _image(tmp_path / "one.png").tolist() == [[[1, 2, 3]]]
    Image.new("L", (8000, 6000), 9).save(tmp_path / "large.png")
    image = _image(tmp_path / "large.png")
    assert image.shape == (6000, 8000, 3)
    assert (image[::500, ::500] == 9).all()


@pytest.mark.filterwarnings("ignore:Image size")
@pytest.mark.parametrize("size", [(16385, 1), (1, 20000), (12000, 12000)])
def test_too_large_a_picture_is_refused_before_it_is_decoded(tmp_path: Path, size: tuple[int, int]) -> None:
    path = tmp_path / "bomb.png"
    Image.new("1", size).save(path)
    with pytest.raises(SourceError, match=f"{size[0]} x {size[1]} pixels; at most 16384 a side"):
        open_source(str(path))


def test_floating_point_pictures_are_refused_with_a_reason(tmp_path: Path) -> None:
    Image.fromarray(np.zeros((4, 4), np.float32)).save(tmp_path / "f.tif")
    with pytest.raises(SourceError, match="no agreed brightness"):
        open_source(str(tmp_path / "f.tif"))


@pytest.mark.timeout(60)
@pytest.mark.filterwarnings("ignore::UserWarning:PIL")
@pytest.mark.parametrize("suffix", [".png", ".jpg", ".bmp", ".tif", ".webp"])
def test_random_damage_is_a_picture_or_one_sentence(tmp_path: Path, suffix: str) -> None:
    chance = np.random.default_rng(7)
    path = tmp_path / f"picture{suffix}"
    Image.fromarray(chance.integers(0, 255, (30, 40, 3), np.uint8)).save(path)
    whole = np.frombuffer(path.read_bytes(), np.uint8)
    refused = 0
    for _ in range(60):
        damaged = whole[: chance.integers(1, len(whole) + 1)].copy()
        damaged[chance.integers(0, len(damaged), 4)] = chance.integers(0, 256, 4)
        path.write_bytes(damaged.tobytes())
        try:
            assert len(list(ImageSource(path))) == 1
        except SourceError:  # anything else fails the test
            refused += 1
    assert refused > 10
