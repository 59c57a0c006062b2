"""The mmdet data set: layout, order, protocols, filters, errors, and mmengine's machinery around it."""

from __future__ import annotations

import logging
import pickle
from itertools import pairwise
from pathlib import Path
from typing import Any

import mmdet.datasets.transforms  # noqa: F401  (registers PackDetInputs and others)
import numpy as np
import pytest
import torch
from mmdet.registry import DATASETS
from mmengine.dataset import ConcatDataset, pseudo_collate
from mmengine.registry import DefaultScope
from torch.utils.data import DataLoader

from pcmoe_det.datasets.scalabel import load_frames
from pcmoe_det.datasets.shift import FRAME_META_KEYS, ShiftDataset, VideoShardSampler
from pcmoe_det.errors import ConfigError, DataError
from pcmoe_det.structures import SHIFT_CLASSES
from tests.datasets.shift_files import WriteView, colour_of, encode_jpeg, make_frame, make_label, member_of

PIPELINE = [
    dict(type="LoadShiftImage"),
    dict(type="mmdet.LoadAnnotations", with_bbox=True),
    dict(type="mmdet.Resize", scale=(128, 80), keep_ratio=True),
    dict(type="mmdet.PackDetInputs", meta_keys=FRAME_META_KEYS),
]
CAR = make_label("car", (2, 4, 20, 30))
BUS_OF_TEACHER = make_label("bus", (30, 4, 60, 30), source="teacher")
TRUCK_OF_TEACHER = make_label("truck", (0, 0, 64, 40), source="teacher")
FRAMES = [
    make_frame("zebra", 10, [CAR, BUS_OF_TEACHER]),
    make_frame("zebra", 0, []),
    make_frame("ant", 0, [TRUCK_OF_TEACHER], attributes={"timeofday_coarse": "dawn"}),
]
SORTED_CODES = [1, 0, 2]


@pytest.fixture(autouse=True)
def _mmdet_scope() -> Any:
    with DefaultScope.overwrite_default_scope("mmdet"):
        yield


@pytest.mark.parametrize(
    "store", ["img.zip", "img.tar", "img", "img_decompressed.zip", "img_decompressed.tar", "."]
)
def test_whole_pipeline_from_every_store(write_view: WriteView, store: str) -> None:
    root = write_view(FRAMES, store=store)
    dataset = DATASETS.build(
        dict(type="ShiftDataset", data_root=str(root), pipeline=PIPELINE, teacher_labels="auto")
    )
    assert len(dataset) == 3
    assert dataset.metainfo["classes"] == SHIFT_CLASSES
    for index, code in enumerate(SORTED_CODES):
        packed = dataset[index]
        sample = packed["data_samples"]
        assert packed["inputs"].shape == (3, 80, 128)
        assert (
            np.abs(packed["inputs"].numpy().astype(int) - np.reshape(colour_of(code), (3, 1, 1))).max() <= 4
        )
        assert sample.img_id == index
        assert sample.ori_shape == (40, 64)
        assert sample.img_path.endswith(f":{member_of(FRAMES[code])}")
        assert (sample.video_name, sample.frame_index) == (
            FRAMES[code]["videoName"],
            FRAMES[code]["frameIndex"],
        )
        assert sample.attributes == FRAMES[code]["attributes"]
        assert sample.annotated_categories is None
    annotated, teacher_only = dataset[1]["data_samples"], dataset[2]["data_samples"]
    assert annotated.gt_instances.bboxes.tensor.tolist() == [[4, 8, 40, 60]]
    assert annotated.gt_instances.labels.tolist() == [1]
    assert annotated.ignored_instances.labels.tolist() == [3]
    assert teacher_only.gt_instances.labels.tolist() == [2]
    assert len(dataset[0]["data_samples"].gt_instances) == 0


def test_data_info(write_view: WriteView) -> None:
    root = write_view(FRAMES)
    dataset = ShiftDataset(str(root), teacher_labels="ignore")
    info = dataset.get_data_info(1)
    instances = info.pop("instances")
    assert info == {
        "img_path": "img.zip:zebra/00000010_img_front.jpg",
        "archive_path": str(root / "discrete/images/val/front/img.zip"),
        "archive_member": "zebra/00000010_img_front.jpg",
        "img_id": 1,
        "height": 40,
        "width": 64,
        "video_name": "zebra",
        "frame_index": 10,
        "frame_name": "00000010_img_front.jpg",
        "attributes": {"timeofday_coarse": "night", "town": "04"},
        "annotated_categories": None,
        "sample_idx": 1,
    }
    assert instances == [
        dict(bbox=(2, 4, 20, 30), bbox_label=1, ignore_flag=0, label_id="7", label_source="annotated"),
        dict(bbox=(30, 4, 60, 30), bbox_label=3, ignore_flag=1, label_id="7", label_source="teacher"),
    ]
    assert dataset.get_cat_ids(1) == [1, 3]
    frames = load_frames(dataset.labels_path).frames
    assert [frame.video_name for frame in frames] == ["zebra", "zebra", "ant"]
    assert dataset.load_labels().frames == frames


@pytest.mark.parametrize(
    ("mode", "flags"),
    [("truth", [[], [0, 0], [0]]), ("ignore", [[], [0, 1], [1]]), ("auto", [[], [0, 1], [0]])],
)
def test_teacher_labels(write_view: WriteView, mode: Any, flags: list[list[int]]) -> None:
    dataset = ShiftDataset(str(write_view(FRAMES)), teacher_labels=mode)
    found = [[box["ignore_flag"] for box in dataset.get_data_info(index)["instances"]] for index in range(3)]
    assert found == flags


def test_sizes_that_no_one_gives(write_view: WriteView) -> None:
    images = {member_of(frame): encode_jpeg(code, width=50 + code) for code, frame in enumerate(FRAMES)}
    dataset = ShiftDataset(str(write_view(FRAMES, images=images, config=None)), pipeline=PIPELINE)
    assert [dataset.get_data_info(index)["width"] for index in range(3)] == [51, 50, 52]
    assert dataset[2]["data_samples"].ori_shape == (40, 52)
    assert dataset.warnings == {"box_clipped": 2}  # boxes to x = 60 and 64


def test_other_classes(write_view: WriteView) -> None:
    dataset = ShiftDataset(
        str(write_view(FRAMES)), metainfo=dict(classes=("truck", "car")), teacher_labels="truth"
    )
    assert [dataset.get_cat_ids(index) for index in range(3)] == [[], [1], [0]]


def test_filters(write_view: WriteView) -> None:
    root = str(write_view(FRAMES))

    def kept(filter_cfg: dict[str, Any], **options: Any) -> list[int]:
        dataset = ShiftDataset(root, filter_cfg=filter_cfg, **options)
        return [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))]

    assert kept({}) == [0, 1, 2]
    assert kept(dict(filter_empty_gt=True)) == [1, 2]
    assert kept(dict(filter_empty_gt=True), teacher_labels="ignore") == [1]
    assert kept(dict(filter_empty_gt=True), test_mode=True) == [0, 1, 2]
    assert kept(dict(videos=["ant"])) == [2]
    assert kept(dict(videos=["ant"]), test_mode=True) == [2]
    assert kept(dict(attributes=dict(timeofday_coarse=["night", "dusk"]))) == [0, 1]
    assert kept(dict(attributes=dict(timeofday_coarse="dawn")), test_mode=True) == [2]
    assert kept(dict(min_size=40)) == [0, 1, 2]
    assert kept({}, indices=[2, 0]) == [2, 0]
    with pytest.raises(DataError, match=r"min_size.*leaves none of the 3 frames"):
        kept(dict(min_size=41))
    with pytest.raises(ConfigError, match=r"unknown keys minsize.*filter_empty_gt, min_size"):
        kept(dict(minsize=3))


def test_missing_images(write_view: WriteView, caplog: pytest.LogCaptureFixture) -> None:
    root = str(write_view(FRAMES, images={member_of(FRAMES[0]): encode_jpeg(0)}))
    with pytest.raises(DataError) as caught:
        ShiftDataset(root)
    for word in (
        "img.zip",
        "'ant/00000000_img_front.jpg'",
        "2 of 3 frames",
        "det_2d.json",
        "missing_images='skip'",
    ):
        assert word in str(caught.value)
    with caplog.at_level(logging.WARNING):
        dataset = ShiftDataset(root, missing_images="skip")
    assert [dataset.get_data_info(index)["img_id"] for index in range(len(dataset))] == [1]
    assert dataset.warnings == {"missing_image": 2}
    assert "skipped 2 frames without an image" in caplog.text


def test_an_archive_without_any_of_the_images_is_an_error_even_when_skipping(write_view: WriteView) -> None:
    root = str(write_view(FRAMES, images={"img/zebra/x.jpg": encode_jpeg(0)}))
    with pytest.raises(DataError, match=r"3 of 3 frames"):
        ShiftDataset(root, missing_images="skip")


def test_wrong_places_say_what_exists(write_view: WriteView) -> None:
    root = write_view(FRAMES, split="train")
    for options in (
        dict(split="val"),
        dict(split="train", view="left_90"),
        dict(split="train", subset="discrete/videos"),
    ):
        with pytest.raises(DataError, match=r"no such label file.*holds: discrete/images/train/front$"):
            ShiftDataset(str(root), **options)  # type: ignore[arg-type]
    with pytest.raises(DataError, match="no such data root"):
        ShiftDataset(str(root / "none"))
    (root / "empty").mkdir()
    with pytest.raises(DataError, match=r"no det_2d\.json in any <subset>/<split>/<view>"):
        ShiftDataset(str(root / "empty"))


def test_a_damaged_archive_and_a_bad_frame(write_view: WriteView) -> None:
    root = write_view(FRAMES)
    archive = root / "discrete/images/val/front/img.zip"
    archive.write_bytes(archive.read_bytes()[:-40])
    with pytest.raises(DataError, match=r"img\.zip: not a readable zip"):
        ShiftDataset(str(root))
    bad = make_frame("zebra", 3, [make_label("car", (float("nan"), 0, 1, 1))])
    with pytest.raises(DataError, match=r"det_2d\.json: frame 0 \(zebra/00000003_img_front\.jpg\)"):
        ShiftDataset(str(write_view([bad])))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (dict(teacher_labels="no"), "teacher_labels 'no'.*ignore, truth, auto"),
        (dict(missing_images="x"), "error, skip"),
    ],
)
def test_refuses_unknown_choices(write_view: WriteView, options: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        ShiftDataset(str(write_view(FRAMES)), **options)


def test_warnings_of_the_label_file(write_view: WriteView) -> None:
    frames = [make_frame("a", 0, [make_label("trailer", (1, 1, 5, 5)), make_label("car", (-5, 1, 5, 5))])]
    dataset = ShiftDataset(str(write_view(frames)))
    assert dataset.warnings == {"unknown_category": 1, "box_clipped": 1}
    assert dataset.get_data_info(0)["instances"][0]["bbox"] == (0, 1, 5, 5)


def test_images_and_label_file_by_name(write_view: WriteView) -> None:
    root = write_view(FRAMES)
    write_view(FRAMES, store="img_decompressed.zip", images={})
    folder = root / "discrete/images/val/front"
    (folder / "det_2d.json").rename(folder / "other.json")
    dataset = ShiftDataset(str(root), images="img.zip", label_file="other.json", pipeline=PIPELINE)
    assert dataset[0]["data_samples"].img_path == "img.zip:zebra/00000000_img_front.jpg"


def test_lazy_unserialized_and_pickled(write_view: WriteView) -> None:
    root = str(write_view(FRAMES))
    lazy = ShiftDataset(root, lazy_init=True, serialize_data=False, pipeline=PIPELINE)
    lazy.full_init()
    copy = pickle.loads(pickle.dumps(ShiftDataset(root, pipeline=PIPELINE)))
    for index in range(3):
        assert torch.equal(lazy[index]["inputs"], copy[index]["inputs"])
        assert lazy.get_data_info(index) == copy.get_data_info(index)


def test_broken_images_are_replaced_in_training(write_view: WriteView) -> None:
    images = {member_of(frame): encode_jpeg(code) for code, frame in enumerate(FRAMES)}
    images[member_of(FRAMES[0])] = images[member_of(FRAMES[0])][:-30]
    root = str(write_view(FRAMES, images=images))
    with pytest.raises(DataError, match=r"img\.zip:zebra/00000010_img_front\.jpg: the JPEG is cut short"):
        ShiftDataset(root, pipeline=PIPELINE)[1]
    skipping = ShiftDataset(root, pipeline=[dict(type="LoadShiftImage", broken_images="skip"), *PIPELINE[1:]])
    assert skipping[1]["data_samples"].img_id in (0, 2)


@pytest.mark.timeout(60)
@pytest.mark.parametrize("store", ["img.zip", "img.tar"])
def test_loader_workers_with_the_video_sampler(write_view: WriteView, store: str) -> None:
    frames = [make_frame(f"v{code % 3}", code) for code in range(24)]
    dataset = ShiftDataset(str(write_view(frames, store=store)), pipeline=PIPELINE, test_mode=True)
    joined = ConcatDataset([dataset])
    loader = DataLoader(
        joined, batch_size=2, sampler=VideoShardSampler(joined), num_workers=2, collate_fn=pseudo_collate
    )
    seen = []
    for batch in loader:
        for image, sample in zip(batch["inputs"], batch["data_samples"], strict=True):
            assert np.abs(image[:, 40, 40].numpy().astype(int) - colour_of(sample.frame_index)).max() <= 4
            seen.append(sample.img_id)
    assert seen == list(range(24))


@pytest.mark.parametrize("view", ["front", "left_90"])
def test_genuine_shift(shared_data: Path, view: str) -> None:
    dataset = ShiftDataset(str(shared_data / "shift_sample"), view=view, pipeline=PIPELINE)
    (packed,) = [dataset[index] for index in range(len(dataset))]
    assert packed["inputs"].shape == (3, 80, 128)
    sample = packed["data_samples"]
    assert sample.img_path == f"img.zip:007b-4e72/00000100_img_{view}.jpg"
    assert sample.ori_shape == (800, 1280)
    assert sample.attributes["view"] == view
    assert sample.gt_instances.labels.tolist() == ([0, 0] if view == "front" else [])


@pytest.mark.parametrize(
    ("subset", "split", "num_frames"),
    [("images", "train", 3254), ("images", "val", 623), ("videos", "train", 824), ("videos", "val", 639)],
)
def test_street(shared_data: Path, subset: str, split: str, num_frames: int) -> None:
    dataset = ShiftDataset(
        str(shared_data / "street"),
        subset=f"discrete/{subset}",
        split=split,
        pipeline=PIPELINE,
        teacher_labels="auto",
    )
    assert len(dataset) == num_frames
    assert dataset.warnings == {}
    for index in range(0, num_frames, 50):  # a size other than the labels' would be an error
        sample = dataset[index]["data_samples"]
        assert sample.img_id == index
        assert len(sample.gt_instances) + len(sample.ignored_instances) == len(dataset.get_cat_ids(index))
    if subset == "videos":
        infos = [dataset.get_data_info(index) for index in range(num_frames)]
        for before, after in pairwise(infos):
            if before["video_name"] == after["video_name"]:
                assert after["frame_index"] > before["frame_index"]
        assert all(not box["ignore_flag"] for info in infos for box in info["instances"])
