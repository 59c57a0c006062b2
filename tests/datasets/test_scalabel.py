"""Label files: what is read, what is refused and with which words, what is skipped and counted."""

from __future__ import annotations

import dataclasses
import json
import logging
import pickle
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from pcmoe_det.datasets.scalabel import ShiftFrame, ShiftLabel, apply_teacher_protocol, load_frames
from pcmoe_det.errors import DataError, UsageError
from pcmoe_det.structures import SHIFT_CLASSES
from tests.datasets.shift_files import encode_jpeg, make_frame, make_label, write_images, write_labels

ONE_FRAME = json.dumps(make_frame("a", 0))
CAR = make_label("car", (1.5, 2, 30, 20.25))


def test_reads_a_frame(tmp_path: Path) -> None:
    path = write_labels(
        tmp_path / "det_2d.json",
        [make_frame("a1", 3, [CAR, make_label("bicycle", (0, 0, 64, 40), source="teacher", label_id=9)])],
    )
    labels = load_frames(path)
    assert labels.image_size == (64, 40)
    assert labels.categories == SHIFT_CLASSES
    assert labels.warnings == {}
    assert labels.path == path
    assert labels.frames == (
        ShiftFrame(
            name="00000003_img_front.jpg",
            video_name="a1",
            frame_index=3,
            width=64,
            height=40,
            attributes={"timeofday_coarse": "night", "town": "04"},
            annotated_categories=None,
            labels=(
                ShiftLabel("7", "car", 1, (1.5, 2.0, 30.0, 20.25), "annotated", {"type": "vehicle.test"}),
                ShiftLabel("9", "bicycle", 5, (0.0, 0.0, 64.0, 40.0), "teacher", {"label_source": "teacher"}),
            ),
            has_annotated_labels=True,
        ),
    )
    assert labels.frames[0].member == "a1/00000003_img_front.jpg"


def test_sorts_frames_within_videos_in_order_of_appearance(tmp_path: Path) -> None:
    order = [("z", 20), ("a", 5), ("z", 3), ("a", 0), ("z", 100)]
    path = write_labels(tmp_path / "det_2d.json", [make_frame(video, index) for video, index in order])
    found = [(frame.video_name, frame.frame_index) for frame in load_frames(path).frames]
    assert found == [("z", 3), ("z", 20), ("z", 100), ("a", 0), ("a", 5)]


@pytest.mark.parametrize("labels", [None, []], ids=["null", "empty"])
def test_frames_without_labels(tmp_path: Path, labels: list[Any] | None) -> None:
    frames = [make_frame("a", 0, labels), make_frame("a", 1)]
    del frames[1]["labels"], frames[1]["attributes"]
    loaded = load_frames(write_labels(tmp_path / "det_2d.json", frames))
    assert [frame.labels for frame in loaded.frames] == [(), ()]
    assert not any(frame.has_annotated_labels for frame in loaded.frames)
    assert loaded.frames[1].attributes == {}


def test_a_frames_own_size_wins_over_the_config(tmp_path: Path) -> None:
    frames = [make_frame("a", 0, size={"width": 100.0, "height": 50}), make_frame("a", 1)]
    loaded = load_frames(write_labels(tmp_path / "det_2d.json", frames))
    assert [(frame.width, frame.height) for frame in loaded.frames] == [(100, 50), (64, 40)]


def test_a_size_that_no_one_gives_comes_from_the_image_header(tmp_path: Path) -> None:
    frames = [make_frame("a", 0), make_frame("a", 1, size={"width": 9, "height": 8})]
    path = write_labels(tmp_path / "det_2d.json", frames, config=None)
    # Only the frame that needs it has an image: the header is read for no other.
    write_images(tmp_path / "img.zip", {"a/00000000_img_front.jpg": encode_jpeg(0, width=30, height=21)})
    loaded = load_frames(path)
    assert [(frame.width, frame.height) for frame in loaded.frames] == [(30, 21), (9, 8)]
    assert loaded.image_size is None
    asked: list[str] = []
    loaded = load_frames(path, read_size=lambda member: asked.append(member) or (3, 2))  # type: ignore[func-returns-value]
    assert asked == ["a/00000000_img_front.jpg"]
    assert (loaded.frames[0].width, loaded.frames[0].height) == (3, 2)


def test_a_list_of_frames_is_scalabel_too(tmp_path: Path) -> None:
    path = tmp_path / "det_2d.json"
    path.write_text(json.dumps([make_frame("a", 0, size={"width": 9, "height": 8})]))
    assert len(load_frames(path).frames) == 1


@pytest.mark.parametrize(
    ("labels", "expected_boxes", "warnings"),
    [
        ([CAR, make_label("trailer", (1, 1, 9, 9))], 1, {"unknown_category": 1}),
        ([make_label("car", (-3, 5, 20, 20))], [(0, 5, 20, 20)], {"box_clipped": 1}),
        ([make_label("car", (50, 30, 70, 50))], [(50, 30, 64, 40)], {"box_clipped": 1}),
        ([make_label("car", (64, 5, 80, 20)), make_label("car", (1, -9, 5, 0))], 0, {"box_outside": 2}),
        ([make_label("car", (5, 5, 5, 20)), make_label("car", (9, 9, 5, 20))], 0, {"box_degenerate": 2}),
        ([{"id": "1", "category": "car", "attributes": {}, "box2d": None}, CAR], 1, {"label_without_box": 1}),
    ],
    ids=["unknown", "clip-left", "clip-corner", "outside", "degenerate", "no-box"],
)
def test_skips_and_counts(
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
    labels: list[Any],
    expected_boxes: int | list[tuple[float, ...]],
    warnings: dict[str, int],
) -> None:
    path = write_labels(tmp_path / "det_2d.json", [make_frame("vid", 4, labels)])
    with caplog.at_level(logging.WARNING):
        loaded = load_frames(path)
    boxes = [label.box_xyxy for label in loaded.frames[0].labels]
    assert boxes == expected_boxes if isinstance(expected_boxes, list) else len(boxes) == expected_boxes
    assert loaded.warnings == warnings
    (line,) = caplog.messages
    (kind,) = warnings
    assert f"{kind}: {warnings[kind]}" in line
    assert str(path) in line
    assert "vid/00000004_img_front.jpg" in line


def test_boxes_may_touch_the_border(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "det_2d.json", [make_frame("a", 0, [make_label("bus", (0, 0, 64, 40))])])
    assert load_frames(path).warnings == {}


def test_classes_not_asked_for_are_left_out_without_a_warning(tmp_path: Path) -> None:
    frames = [make_frame("a", 0, [CAR, make_label("person", (1, 1, 5, 5)), make_label("bus", (2, 2, 9, 9))])]
    loaded = load_frames(write_labels(tmp_path / "det_2d.json", frames), classes=("bus", "person"))
    assert [(label.category, label.class_id) for label in loaded.frames[0].labels] == [
        ("person", 1),
        ("bus", 0),
    ]
    assert loaded.warnings == {}


@pytest.mark.parametrize(
    ("listed", "expected", "num_unknown"),
    [("car, pedestrian", ("car", "pedestrian"), 0), ("", (), 0), ("car,cars", ("car", "cars"), 1)],
)
def test_annotated_categories(
    tmp_path: Path, listed: str, expected: tuple[str, ...], num_unknown: int
) -> None:
    frame = make_frame("a", 0, attributes={"annotated_categories": listed})
    loaded = load_frames(write_labels(tmp_path / "det_2d.json", [frame]))
    assert loaded.frames[0].annotated_categories == expected
    assert loaded.warnings.get("unknown_annotated_category", 0) == num_unknown


def test_attributes_become_text_and_true_is_not_one(tmp_path: Path) -> None:
    frames = [
        make_frame("a", index, attributes={"value": value})
        for index, value in enumerate(["1", 1, True, 1.0, None, ["x"], {"y": 2}])
    ]
    loaded = load_frames(write_labels(tmp_path / "det_2d.json", frames))
    texts = [frame.attributes["value"] for frame in loaded.frames]
    assert texts == ["1", "1", "true", "1.0", "null", '["x"]', '{"y": 2}']


def _with(**members: Any) -> list[Any]:
    return [make_frame("v", 0), make_frame("v", 1, **members)]


def _with_label(**members: Any) -> list[Any]:
    return [make_frame("v", 0), make_frame("v", 1, [CAR, {**CAR, **members}])]


def _with_box(*box: Any) -> list[Any]:
    return [make_frame("v", 0), make_frame("v", 1, [make_label("car", box)])]


@pytest.mark.parametrize(
    ("frames", "words"),
    [
        (_with_box(float("nan"), 1, 5, 5), ["x1 = nan", "label 0", "finite"]),
        (_with_box(1, 1, float("inf"), 5), ["x2 = inf"]),
        (_with_box(1, "2", 5, 5), ["y1 = '2'"]),
        (_with_box(1, 2, 5, None), ["y2 = None"]),
        (_with_box(1, 2, True, 5), ["x2 = True"]),
        (_with_box(1, 2, 10**400, 5), ["x2 = 1000", "finite"]),
        (_with_label(box2d=[1, 2, 3, 4]), ["label 1", "box2d", "list"]),
        (_with_label(category=["car"]), ["label 1", "category"]),
        (_with_label(attributes={"label_source": "robot"}), ["'robot'", "annotated", "teacher"]),
        (_with_label(attributes="x"), ["attributes", "str"]),
        ([make_frame("v", 0), make_frame("v", 1, ["car"])], ["label 0", "str"]),
        (_with(labels={"a": 1}), ["'labels'", "dict"]),
        (_with(frameIndex=-1), ["frameIndex -1", "0 or more"]),
        (_with(frameIndex=1.5), ["frameIndex 1.5"]),
        (_with(frameIndex=True), ["frameIndex True"]),
        (_with(size={"width": 0, "height": 5}), ["size", "'width': 0"]),
        (_with(size={"width": 5.5, "height": 5}), ["size", "5.5"]),
        (_with(size=[5, 5]), ["size", "[5, 5]"]),
        (_with(name="../../etc/passwd"), ["name '../../etc/passwd'", "outside"]),
        (_with(videoName="/etc"), ["videoName '/etc'", "outside"]),
        (_with(name="00000000_img_front.jpg"), ["same videoName and name", "frame 0"]),
        (_with(frameIndex=0), ["same videoName and frameIndex (0)", "frame 0"]),
        ([make_frame("v", 0), "x"], ["not an object but str"]),
        (_with(name=None), ["no usable 'name' (None)"]),
        (_with(videoName=""), ["no usable 'videoName'"]),
    ],
)  # fmt: skip
def test_refuses_a_frame_and_names_it(tmp_path: Path, frames: list[Any], words: list[str]) -> None:
    path = write_labels(tmp_path / "det_2d.json", frames)
    with pytest.raises(DataError) as caught:
        load_frames(path)
    message = str(caught.value)
    assert "\n" not in message
    for word in [str(path), "frame 1", *words]:
        assert word in message


def test_names_a_refused_frame_by_video_and_name(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"frame 1 \(v/00000001_img_front\.jpg\)"):
        load_frames(write_labels(tmp_path / "det_2d.json", _with_box(float("nan"), 1, 5, 5)))


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "not a Scalabel file"),
        ("hello", "not a Scalabel file"),
        ('"frames"', "not a Scalabel file"),
        ('{"images": [], "annotations": []}', "no list 'frames' (its members: annotations, images)"),
        ("{}", "no list 'frames' (its members: none)"),
        ('{"frames": {"0": 1}}', "'frames' is not a list"),
        ('{"frames": []}', "list of frames is empty"),
        ("[]", "list of frames is empty"),
        ('{"frames": [{"name": "x"', "not valid JSON at line 1 column 25, in frame 0 of the list"),
        ('{"frames": [\n{"a" 2}]}', "not valid JSON at line 2 column 6, in frame 0 of the list"),
        (f'{{"frames": [\n{ONE_FRAME} 2]}}', "in frame 0 of the list (expected ',' or ']')"),
        (f'{{"frames": [{ONE_FRAME},]}}', "in frame 1 of the list"),
        (f'{{"frames": [{ONE_FRAME}], }}', "not valid JSON"),
        (f'{{"frames": [{ONE_FRAME}], 3: 4}}', "expected a quoted name"),
        (f'{{"frames": [{ONE_FRAME}], "co\nnfig": 4}}', "not valid JSON at line 1"),
        (f'{{"frames": [{ONE_FRAME}]}} {{}}', "expected the end of the file"),
        (f"[{ONE_FRAME}] []", "expected the end of the file"),
        ('{"frames": [],', "not valid JSON"),
        ('{"frames": [] "config": 1}', "not valid JSON"),
        ('{"frames": [' + "[" * 100_000, "in frame 0 of the list"),
        ('{"frames": [' + "1" * 10_000 + "]}", "in frame 0 of the list"),
    ],
)
def test_refuses_what_is_not_scalabel(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "det_2d.json"
    path.write_text(text)
    with pytest.raises(DataError) as caught:
        load_frames(path)
    assert str(caught.value).startswith(str(path))
    assert words in str(caught.value)


def test_every_truncation_is_noticed(tmp_path: Path) -> None:
    whole = write_labels(tmp_path / "whole.json", [make_frame("v", 0, [CAR]), make_frame("v", 1)]).read_text()
    path = tmp_path / "det_2d.json"
    for length in range(len(whole)):
        path.write_text(whole[:length])
        with pytest.raises(DataError, match=r"not valid JSON|not a Scalabel file"):
            load_frames(path)


@pytest.mark.parametrize(
    "config", ["x", {"imageSize": {"width": "64", "height": 40}}], ids=["text", "bad-size"]
)
def test_refuses_a_bad_config(tmp_path: Path, config: Any) -> None:
    with pytest.raises(DataError, match="config"):
        load_frames(write_labels(tmp_path / "det_2d.json", [make_frame("a", 0)], config=config))


def test_refuses_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such label file"):
        load_frames(tmp_path / "det_2d.json")
    with pytest.raises(DataError, match="cannot be read"):
        load_frames(tmp_path)
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(DataError, match="cannot be read"):
        load_frames(tmp_path / "binary.json")


def test_a_byte_order_mark_does_not_matter(tmp_path: Path) -> None:
    path = write_labels(tmp_path / "det_2d.json", [make_frame("a", 0)])
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes())
    assert len(load_frames(path).frames) == 1


def _teacher_frame(sources: list[str], **changes: Any) -> ShiftFrame:
    labels = tuple(
        ShiftLabel(str(index), "car", 1, (0.0, 0.0, 9.0, 9.0), source, {})  # type: ignore[arg-type]
        for index, source in enumerate(sources)
    )
    return dataclasses.replace(ShiftFrame("n", "v", 0, 10, 10, {}, None, labels), **changes)


@pytest.mark.parametrize(
    ("mode", "sources", "truth", "ignored"),
    [
        ("truth", ["teacher", "annotated"], "01", ""),
        ("truth", ["teacher"], "0", ""),
        ("ignore", ["teacher", "annotated", "teacher"], "1", "02"),
        ("ignore", ["teacher"], "", "0"),
        ("auto", ["teacher", "annotated", "teacher"], "1", "02"),
        ("auto", ["teacher", "teacher"], "01", ""),
        ("auto", [], "", ""),
    ],
)
def test_teacher_protocol(mode: Any, sources: list[str], truth: str, ignored: str) -> None:
    found_truth, found_ignored = apply_teacher_protocol(_teacher_frame(sources), mode)
    assert "".join(label.label_id for label in found_truth) == truth
    assert "".join(label.label_id for label in found_ignored) == ignored


def test_teacher_labels_are_ignored_beside_annotated_labels_of_other_classes(tmp_path: Path) -> None:
    frames = [make_frame("a", 0, [CAR, make_label("bus", (1, 1, 9, 9), source="teacher")])]
    frame = load_frames(write_labels(tmp_path / "det_2d.json", frames), classes=("bus",)).frames[0]
    truth, ignored = apply_teacher_protocol(frame, "auto")
    assert truth == ()
    assert [label.category for label in ignored] == ["bus"]


def test_teacher_protocol_refuses_other_modes() -> None:
    with pytest.raises(UsageError, match=r"'maybe'.*ignore, truth, auto"):
        apply_teacher_protocol(_teacher_frame([]), "maybe")  # type: ignore[arg-type]


def test_records_can_be_sent_to_other_processes(tmp_path: Path) -> None:
    labels = load_frames(write_labels(tmp_path / "det_2d.json", [make_frame("a", 0, [CAR])]))
    assert pickle.loads(pickle.dumps(labels)) == labels


def test_needs_neither_torch_nor_mmdet() -> None:
    code = (
        "import sys, pcmoe_det.datasets, pcmoe_det.datasets.scalabel, pcmoe_det.datasets.archives;"
        "print([name for name in ('torch', 'mmdet', 'mmengine', 'mmcv', 'cv2') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_genuine_shift_labels(shared_data: Path) -> None:
    front = load_frames(shared_data / "shift_sample/discrete/images/val/front/det_2d.json")
    (frame,) = front.frames
    assert (frame.member, frame.frame_index) == ("007b-4e72/00000100_img_front.jpg", 100)
    assert (frame.width, frame.height) == (1280, 800)
    assert frame.attributes["weather_coarse"] == "rainy"
    assert [(label.label_id, label.box_xyxy) for label in frame.labels] == [
        ("9591", (609.0, 394.0, 623.0, 444.0)),
        ("9583", (715.0, 394.0, 725.0, 426.0)),
    ]
    assert front.warnings == {}
    left = load_frames(shared_data / "shift_sample/discrete/images/val/left_90/det_2d.json")
    assert left.frames[0].name == "00000100_img_left_90.jpg"


@pytest.mark.parametrize("part", ["images/train", "images/val", "videos/train", "videos/val"])
def test_street_labels_agree_with_the_raw_json(shared_data: Path, part: str) -> None:
    path = shared_data / "street/discrete" / part / "front/det_2d.json"
    raw_frames = json.loads(path.read_text())["frames"]
    loaded = load_frames(path)
    assert loaded.warnings == {}
    raw_by_member = {f"{raw['videoName']}/{raw['name']}": raw for raw in raw_frames}
    assert {frame.member for frame in loaded.frames} == set(raw_by_member)
    for frame in loaded.frames:
        raw = raw_by_member[frame.member]
        assert {"width": frame.width, "height": frame.height} == raw["size"]
        assert frame.annotated_categories == tuple(raw["attributes"]["annotated_categories"].split(","))
        assert [
            dict(zip(("x1", "y1", "x2", "y2"), label.box_xyxy, strict=True)) for label in frame.labels
        ] == [label["box2d"] for label in raw["labels"]]
        assert [label.source for label in frame.labels] == [
            label["attributes"]["label_source"] for label in raw["labels"]
        ]
        assert [SHIFT_CLASSES[label.class_id] for label in frame.labels] == [
            label["category"] for label in raw["labels"]
        ]
