"""A detector and data small enough to train in a test: four iterations take seconds."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from tests.datasets.shift_files import make_frame, make_label, member_of, write_images, write_labels

PROJECT = Path(__file__).resolve().parents[2]
CANVAS = (64, 96)
"""Height and width of a training image."""

_CONFIG = """
_base_ = [{bases}]

long_side = 96
model = dict(
    precision="{precision}",
    backbone=dict(
        embed_dims=12,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        num_experts={num_experts},
        moe_blocks=((), (), (1,), (0,)),
        stem="patch",
    ),
    neck=dict(in_channels=[24, 48, 96], out_channels=16),
    rpn_head=dict(in_channels=16, feat_channels=16),
    roi_head=dict(
        bbox_roi_extractor=dict(out_channels=16),
        bbox_head=[
            dict(
                type="Shared2FCBBoxHead",
                in_channels=16,
                fc_out_channels=16,
                roi_feat_size=7,
                num_classes=6,
                reg_class_agnostic=True,
                bbox_coder=dict(
                    type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]
                ),
                loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
                loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
            )
        ]
        * 3,
    ),
    test_cfg=dict(rpn=dict(max_per_img=40), rcnn=dict(max_per_img=20)),
)
_resize = dict(type="Resize", scale=(96, 96), keep_ratio=True)
_meta = (
    "img_id", "img_path", "ori_shape", "img_shape", "scale_factor", "video_name", "frame_index",
    "frame_name", "attributes", "annotated_categories", "instances",
)
train_dataloader = dict(
    batch_size=2,
    num_workers=0,
    persistent_workers=False,
    dataset=dict(
        _delete_=True,
        type="ShiftDataset",
        data_root={data_root!r},
        split="train",
        pipeline=[
            dict(type="LoadShiftImage"),
            dict(type="LoadAnnotations", with_bbox=True),
            _resize,
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ],
    ),
)
data_root = {data_root!r}
_test = dict(
    data_root={data_root!r},
    pipeline=[dict(type="LoadShiftImage"), _resize, dict(type="PackDetInputs", meta_keys=_meta)],
)
val_dataloader = dict(num_workers=0, persistent_workers=False, dataset=_test)
test_dataloader = dict(num_workers=0, persistent_workers=False, dataset=_test)
max_iters = 4
train_cfg = dict(max_iters=4, val_interval=2)
param_scheduler = [dict(type="LinearLR", start_factor=0.1, by_epoch=False, begin=0, end=2)]
custom_hooks = [
    dict(type="EMAHook", ema_type="ExpMomentumEMA", momentum=0.2, update_buffers=True, priority=49)
]
default_hooks = dict(logger=dict(interval=1), checkpoint=dict(interval=2))
"""


def write_config(
    folder: Path, data_root: Path, *, num_experts: int = 4, precision: str = "bfloat16", extra: str = ""
) -> Path:
    """Write a tiny detector's config on top of the shipped ``configs/_base_``."""
    names = ("cascade_small", "street_data", "schedule_small", "runtime")
    bases = ", ".join(repr(str(PROJECT / "configs" / "_base_" / f"{name}.py")) for name in names)
    path = folder / f"tiny_{num_experts}e.py"
    text = _CONFIG.format(bases=bases, data_root=str(data_root), num_experts=num_experts, precision=precision)
    path.write_text(text + extra)
    return path


def make_images(count: int, *, seed: int = 0) -> list[np.ndarray]:
    """Smooth noise with some rectangles, in two sizes."""
    generator = np.random.default_rng(seed)
    images = []
    for index in range(count):
        height, width = CANVAS if index % 2 else (60, 80)
        small = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
        image = cv2.resize(small, (width, height), interpolation=cv2.INTER_CUBIC)
        for _ in range(3):
            x, y = int(generator.integers(0, width - 30)), int(generator.integers(0, height - 30))
            colour = tuple(int(value) for value in generator.integers(0, 255, 3))
            cv2.rectangle(image, (x, y), (x + 24, y + 18), colour, -1)
        images.append(image)
    return images


def write_split(
    root: Path,
    split: str,
    videos: Mapping[str, int],
    *,
    labels: Sequence[Sequence[Mapping[str, Any]]] | None = None,
    seed: int = 0,
) -> list[np.ndarray]:
    """Write ``<root>/discrete/images/<split>/front`` and return the images as they were before JPEG.

    Args:
        root: The data root.
        split: Such as ``train``.
        videos: Frames by video name.
        labels: Of each frame; by default a car and a pedestrian in every one.
        seed: Of the images.
    """
    images = make_images(sum(videos.values()), seed=seed)
    frames = []
    encoded: dict[str, bytes] = {}
    names = [(video, index) for video, count in videos.items() for index in range(count)]
    for number, ((video, index), image) in enumerate(zip(names, images, strict=True)):
        height, width = image.shape[:2]
        boxes = [make_label("car", (4, 5, 40, 30)), make_label("pedestrian", (50, 10, 62, 44))]
        frame = make_frame(
            video,
            index,
            list(boxes if labels is None else labels[number]),
            size={"width": width, "height": height},
            attributes={"timeofday_coarse": ("daytime", "night")[number % 2]},
        )
        frames.append(frame)
        encoded[member_of(frame)] = bytes(cv2.imencode(".png", image)[1])
    folder = root / "discrete" / "images" / split / "front"
    write_labels(folder / "det_2d.json", frames)
    write_images(folder / "img.zip", encoded)
    return images


def write_street(root: Path) -> Path:
    """A data root with a ``train`` and a ``val`` split."""
    write_split(root, "train", {"a": 4, "b": 2}, seed=1)
    write_split(root, "val", {"c": 3, "d": 1, "e": 2}, seed=2)
    return root


def read_json(path: Path) -> dict[str, Any]:
    content: dict[str, Any] = json.loads(path.read_text())
    return content
