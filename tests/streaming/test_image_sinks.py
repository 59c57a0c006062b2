"""Crops and frames as pictures in a folder."""

from __future__ import annotations

import logging
from pathlib import Path

import cv2
import numpy as np
import pytest

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming.image_sinks import CropSink, FrameImageSink, check_image_folder
from pcmoe_det.structures import Detections, FrameResult
from tests.streaming.stand_ins import CLASS_NAMES, detections, frame, index_of


def _crops(folder: Path, **options) -> CropSink:
    return CropSink(folder, **{"class_names": CLASS_NAMES, "overwrite": False, **options})


def _frames(folder: Path, **options) -> FrameImageSink:
    return FrameImageSink(folder, **{"annotated": False, "overwrite": False, **options})


def _result(index: int, *rows) -> FrameResult:
    return FrameResult(frame=frame(index), detections=detections(*rows))


def _pictures(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.name != ".pcmoe-images")


def test_crops_are_named_after_frame_class_and_score(tmp_path: Path) -> None:
    folder = tmp_path / "a" / "crops"
    sink = _crops(folder)
    assert not folder.exists()  # nothing is made before there is a picture
    sink.write(_result(12, (1, 2, 30, 40, 0.914, 1), (0, 0, 9, 9, 0.911, 1), (5, 5, 9, 9, 0.5, 0)), None)
    sink.write(_result(1_234_567, (5, 5, 9, 9, 1.0, 5)), None)
    assert sink.close("complete") == [folder]
    assert _pictures(folder) == [
        "frame_000012_car_0.91-2.jpg",
        "frame_000012_car_0.91.jpg",
        "frame_000012_pedestrian_0.50.jpg",
        "frame_1234567_bicycle_1.00.jpg",
    ]


def test_tracks_and_odd_class_names(tmp_path: Path) -> None:
    sink = _crops(tmp_path, class_names=("a/b: c", "été"))
    found = Detections(
        boxes_xyxy=np.array([[0, 0, 5, 5]] * 2, np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        class_ids=np.array([0, 1]),
        track_ids=np.array([7, -1]),
    )
    sink.write(FrameResult(frame=frame(0), detections=found), None)
    assert _pictures(tmp_path) == ["frame_000000_a-b-c_0.90_id7.jpg", "frame_000000_été_0.80.jpg"]


@pytest.mark.parametrize(
    ("box", "shape"),
    [
        ((1, 2, 30, 40), (38, 29)),
        ((1.2, 2.8, 29.1, 39.5), (38, 29)),
        ((0, 0, 64, 48), (48, 64)),
        ((-5, -5, 100, 100), (48, 64)),
        ((10, 10, 10, 10), (1, 1)),
        ((64, 48, 64, 48), (1, 1)),
    ],
)
def test_a_crop_holds_every_pixel_that_the_box_touches(tmp_path: Path, box, shape) -> None:
    sink = _crops(tmp_path)
    sink.write(_result(3, (*box, 0.5, 1)), None)
    crop = cv2.imread(str(tmp_path / "frame_000003_car_0.50.jpg"))
    assert crop.shape[:2] == shape
    assert index_of(crop) == 3


def test_a_crop_comes_from_the_frame_and_not_from_the_drawn_picture(tmp_path: Path) -> None:
    sink = _crops(tmp_path)
    assert not sink.needs_picture
    sink.write(_result(3, (0, 0, 20, 20, 0.5, 1)), np.full((48, 64, 3), 255, np.uint8))
    assert index_of(cv2.imread(str(tmp_path / "frame_000003_car_0.50.jpg"))) == 3


@pytest.mark.parametrize(("annotated", "index"), [(False, 3), (True, 20)])
def test_frames_are_plain_or_annotated(tmp_path: Path, annotated: bool, index: int) -> None:
    sink = _frames(tmp_path, annotated=annotated)
    assert sink.needs_picture is annotated
    sink.write(_result(3), frame(20).image)
    assert sink.close("complete") == [tmp_path]
    assert _pictures(tmp_path) == ["frame_000003.jpg"]
    assert index_of(cv2.imread(str(tmp_path / "frame_000003.jpg"))) == index


def test_annotated_frames_need_the_picture(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="need the drawn picture"):
        _frames(tmp_path, annotated=True).write(_result(3), None)


def test_beyond_the_limit_pictures_are_counted(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    sink = _frames(tmp_path / "frames", annotated=True, max_images=2)
    with caplog.at_level(logging.WARNING, logger="pcmoe_det"):
        for index in range(5):
            sink.write(_result(index), frame(index).image if sink.needs_picture else None)
        assert sink.close("complete") == [tmp_path / "frames"]
    assert _pictures(tmp_path / "frames") == ["frame_000000.jpg", "frame_000001.jpg"]
    assert sink.left_out == 3
    assert "3 pictures were left out" in caplog.text

    crops = _crops(tmp_path / "crops", max_images=2)
    crops.write(_result(0, *[(0, 0, 5, 5, score, 1) for score in (0.9, 0.8, 0.7)]), None)
    crops.write(_result(1, (0, 0, 5, 5, 0.6, 1)), None)
    assert _pictures(tmp_path / "crops") == ["frame_000000_car_0.80.jpg", "frame_000000_car_0.90.jpg"]
    assert crops.left_out == 2


def test_a_stream_without_pictures_leaves_no_folder(tmp_path: Path) -> None:
    assert _crops(tmp_path / "crops").close("complete") == []
    assert list(tmp_path.iterdir()) == []


def test_an_earlier_run_is_replaced_as_a_whole_and_only_when_asked(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    first = _frames(folder)
    for index in range(3):
        first.write(_result(index), None)
    (folder / "notes.txt").write_text("mine")
    with pytest.raises(OutputError, match="holds pictures of an earlier run; use --overwrite"):
        _frames(folder)
    second = _frames(folder, overwrite=True)
    assert len(_pictures(folder)) == 4  # an early failure of the new run costs nothing
    second.write(_result(7), None)
    assert _pictures(folder) == ["frame_000007.jpg", "notes.txt"]


@pytest.mark.parametrize("overwrite", [False, True])
def test_folders_of_other_people_are_refused(tmp_path: Path, overwrite: bool) -> None:
    theirs = tmp_path / "frame_000001.jpg"
    theirs.write_bytes(b"holiday")
    with pytest.raises(OutputError, match="is not empty and its content is not from an earlier run"):
        _frames(tmp_path, overwrite=overwrite)
    assert theirs.read_bytes() == b"holiday"


def test_the_folder_of_the_source_is_refused(tmp_path: Path) -> None:
    folder = tmp_path / "frames"
    _frames(folder).write(_result(0), None)
    for source in (folder, folder / "frame_000000.jpg"):
        with pytest.raises(OutputError, match="where the source is"):
            check_image_folder(folder, overwrite=True, source=source)
    check_image_folder(folder, overwrite=True, source="rtsp://camera/1")


def test_the_check_leaves_nothing(tmp_path: Path) -> None:
    check_image_folder(tmp_path / "a" / "b", overwrite=False)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("file", "is not a folder"),
        ("file/crops", "cannot be written to .*Not a directory"),
        ("a\0b", "cannot be written to"),
    ],
)
def test_folders_that_cannot_be(tmp_path: Path, name: str, message: str) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OutputError, match=message):
        check_image_folder(tmp_path / name, overwrite=True)


def test_a_full_disk_keeps_whole_pictures_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sink = _frames(tmp_path / "frames")
    sink.write(_result(0), None)
    real = Path.write_bytes

    def full(path: Path, data: bytes) -> int:
        real(path, data[: len(data) // 2])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(
        OutputError, match=r"frame_000001\.jpg cannot be written: No space left on device; 1 pictures before"
    ):
        sink.write(_result(1), None)
    assert sink.close("failed") == [tmp_path / "frames"]
    assert _pictures(tmp_path / "frames") == ["frame_000000.jpg"]
