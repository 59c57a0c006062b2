"""Tiny detectors with random weights, and what an independent reader finds in a packed folder."""

from __future__ import annotations

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from pcmoe_det.models.inference import build_model
from pcmoe_det.models.moe import MoELayer
from pcmoe_det.models.weights_file import WeightsInfo, save_weights

CLASSES = ("pedestrian", "car")
LAYERS = ("backbone.stages.2.blocks.1.mlp", "backbone.stages.3.blocks.1.mlp")


def tiny_config(*, embed_dims: int = 8, num_experts: int = 3, fc_channels: int = 16) -> dict[str, Any]:
    """A Cascade R-CNN with MoE layers of two sizes and batch normalisation in stem and neck."""
    head = dict(
        type="Shared2FCBBoxHead",
        in_channels=16,
        fc_out_channels=fc_channels,
        roi_feat_size=7,
        num_classes=len(CLASSES),
        reg_class_agnostic=True,
        bbox_coder=dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2]),
    )
    return dict(
        type="MoEDetector",
        detector="CascadeRCNN",
        precision="bfloat16",
        data_preprocessor=dict(
            type="DetDataPreprocessor", mean=[120.0] * 3, std=[58.0] * 3, bgr_to_rgb=True, pad_size_divisor=32
        ),
        backbone=dict(
            type="SwinMoE",
            embed_dims=embed_dims,
            depths=[1, 1, 2, 2],
            num_heads=[1, 1, 2, 4],
            window_size=4,
            num_experts=num_experts,
            moe_blocks=[[], [], [1], [1]],
            moe_init_std=0.3,
            stem="conv",
            out_indices=[1, 2, 3],
        ),
        neck=dict(
            type="FPN",
            in_channels=[embed_dims * 2**stage for stage in (1, 2, 3)],
            out_channels=16,
            num_outs=4,
            norm_cfg=dict(type="BN"),
        ),
        rpn_head=dict(
            type="RPNHead",
            in_channels=16,
            feat_channels=16,
            anchor_generator=dict(
                type="AnchorGenerator", scales=[3.0], ratios=[1.0], strides=[8, 16, 32, 64]
            ),
            bbox_coder=dict(type="DeltaXYWHBBoxCoder"),
        ),
        roi_head=dict(
            type="CascadeRoIHead",
            num_stages=2,
            stage_loss_weights=[1, 0.5],
            bbox_roi_extractor=dict(
                type="MixedPrecisionRoIExtractor",
                roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
                out_channels=16,
                featmap_strides=[8, 16, 32],
            ),
            bbox_head=[head, head],
        ),
        train_cfg=None,
        test_cfg=dict(
            rpn=dict(nms_pre=50, max_per_img=30, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
            rcnn=dict(score_thr=0.01, nms=dict(type="nms", iou_threshold=0.5), max_per_img=20),
        ),
    )


def tiny_info(**sizes: int) -> WeightsInfo:
    return WeightsInfo(model=tiny_config(**sizes), class_names=CLASSES, long_side=96)


def random_detector(info: WeightsInfo, *, seed: int = 0) -> nn.Module:
    """Weights far from a fresh model's: sharp gates, expert biases, statistics of batch normalisation."""
    torch.manual_seed(seed)
    model = build_model(info.model)
    for module in model.modules():
        if isinstance(module, MoELayer):
            nn.init.normal_(module.gate.weight, std=1.0)  # type: ignore[arg-type]
            nn.init.normal_(module.experts.fc1_bias, std=0.5)
            nn.init.normal_(module.experts.fc2_bias, std=0.5)
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean)  # type: ignore[arg-type]
            nn.init.uniform_(module.running_var, 0.5, 2.0)  # type: ignore[arg-type]
            nn.init.normal_(module.weight, mean=1.0, std=0.2)
    return model


def save_tiny(
    path: Path, *, seed: int = 0, dtype: torch.dtype | None = None, **sizes: int
) -> dict[str, torch.Tensor]:
    """Write the weights of a tiny detector; returns them as they are in the file."""
    info = tiny_info(**sizes)
    state = random_detector(info, seed=seed).state_dict()
    save_weights(path, state, info, dtype=dtype)
    return {
        name: value.to(dtype) if dtype is not None and value.is_floating_point() else value
        for name, value in state.items()
    }


def pictures(count: int = 2, *, seed: int = 0) -> list[NDArray[np.uint8]]:
    """``[64, 96, 3]`` uint8 noise."""
    generator = np.random.default_rng(seed)
    return [generator.integers(0, 256, (64, 96, 3), dtype=np.uint8) for _ in range(count)]


def record_positions(folder: Path) -> dict[str, tuple[int, int]]:
    """First byte in the file and size of each record, by the name in the safetensors header."""
    with (folder / "experts.safetensors").open("rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
    header.pop("__metadata__", None)
    return {
        name: (8 + length + entry["data_offsets"][0], entry["data_offsets"][1] - entry["data_offsets"][0])
        for name, entry in header.items()
    }


def flip_bit(path: Path, position: int, bit: int = 3) -> None:
    """Change one bit of a file in place."""
    with path.open("r+b") as file:
        file.seek(position)
        value = file.read(1)[0]
        file.seek(position)
        file.write(bytes([value ^ (1 << bit)]))


def page_aligned(num_bytes: int) -> torch.Tensor:
    """``[num_bytes]`` uint8 that starts at a page, as a slot does."""
    memory = torch.zeros(num_bytes + 4096, dtype=torch.uint8)
    start = -memory.data_ptr() % 4096
    return memory[start : start + num_bytes]
