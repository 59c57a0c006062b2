"""Configurations of detectors so small that a test can build and run several."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from pcmoe_det.models.inference import build_model

CHANNELS = 16


def backbone(**options: Any) -> dict[str, Any]:
    settings = dict(
        type="SwinMoE",
        embed_dims=12,
        depths=(1, 1, 2, 1),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        num_experts=4,
        moe_blocks=((), (), (1,), (0,)),
        out_indices=(1, 2, 3),
        drop_path_rate=0.0,
    )
    return {**settings, **options}


_PREPROCESSOR = dict(
    type="DetDataPreprocessor",
    mean=[120.0, 115.0, 100.0],
    std=[58.0, 57.0, 57.0],
    bgr_to_rgb=True,
    pad_size_divisor=32,
)
_CODER = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0] * 4, target_stds=[0.1, 0.1, 0.2, 0.2])
_ASSIGNER = dict(
    type="MaxIoUAssigner", pos_iou_thr=0.5, neg_iou_thr=0.4, min_pos_iou=0.0, match_low_quality=True
)


def retina_net(**options: Any) -> dict[str, Any]:
    """A one-stage detector."""
    return dict(
        type="MoEDetector",
        detector="RetinaNet",
        data_preprocessor=_PREPROCESSOR,
        backbone=backbone(**options),
        neck=dict(type="FPN", in_channels=[24, 48, 96], out_channels=CHANNELS, num_outs=3),
        bbox_head=dict(
            type="RetinaHead",
            num_classes=6,
            in_channels=CHANNELS,
            stacked_convs=1,
            feat_channels=CHANNELS,
            anchor_generator=dict(
                type="AnchorGenerator",
                octave_base_scale=4,
                scales_per_octave=1,
                ratios=[0.5, 1.0, 2.0],
                strides=[8, 16, 32],
            ),
            bbox_coder=_CODER,
        ),
        train_cfg=dict(
            assigner=_ASSIGNER,
            sampler=dict(type="PseudoSampler"),
            allowed_border=-1,
            pos_weight=-1,
            debug=False,
        ),
        test_cfg=dict(
            nms_pre=100,
            min_bbox_size=0,
            score_thr=0.0,
            nms=dict(type="nms", iou_threshold=0.5),
            max_per_img=20,
        ),
    )


def cascade_rcnn(*, precision: str = "float32", **options: Any) -> dict[str, Any]:
    """A two-stage detector with three box heads."""
    head = dict(
        type="Shared2FCBBoxHead",
        in_channels=CHANNELS,
        fc_out_channels=CHANNELS,
        roi_feat_size=7,
        num_classes=6,
        reg_class_agnostic=True,
        bbox_coder=_CODER,
    )
    sampler = dict(type="RandomSampler", num=32, pos_fraction=0.25, add_gt_as_proposals=True)
    proposals = dict(nms_pre=60, max_per_img=40, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0)
    stage = dict(assigner=_ASSIGNER, sampler=sampler, pos_weight=-1, debug=False)
    return dict(
        type="MoEDetector",
        detector="CascadeRCNN",
        precision=precision,
        data_preprocessor=_PREPROCESSOR,
        backbone=backbone(**options),
        neck=dict(
            type="FPN",
            in_channels=[24, 48, 96],
            out_channels=CHANNELS,
            num_outs=4,
            norm_cfg=dict(type="BN"),
        ),
        rpn_head=dict(
            type="RPNHead",
            in_channels=CHANNELS,
            feat_channels=CHANNELS,
            anchor_generator=dict(
                type="AnchorGenerator", scales=[4.0], ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64]
            ),
            bbox_coder=_CODER,
        ),
        roi_head=dict(
            type="CascadeRoIHead",
            num_stages=3,
            stage_loss_weights=[1, 0.5, 0.25],
            bbox_roi_extractor=dict(
                type="MixedPrecisionRoIExtractor",
                roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
                out_channels=CHANNELS,
                featmap_strides=[8, 16, 32],
                finest_scale=40,
            ),
            bbox_head=[head] * 3,
        ),
        train_cfg=dict(
            rpn=dict(
                assigner=_ASSIGNER,
                sampler=dict(sampler, add_gt_as_proposals=False),
                allowed_border=-1,
                pos_weight=-1,
                debug=False,
            ),
            rpn_proposal=proposals,
            rcnn=[stage] * 3,
        ),
        test_cfg=dict(
            rpn=proposals,
            rcnn=dict(score_thr=0.0, nms=dict(type="nms", iou_threshold=0.5), max_per_img=20),
        ),
    )


def build(config: dict[str, Any], *, seed: int = 0) -> nn.Module:
    """A detector with random weights large enough that different inputs give different outputs."""
    torch.manual_seed(seed)
    model = build_model(config)
    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            torch.nn.init.normal_(parameter, std=0.5 / parameter[0].numel() ** 0.5 * 1.5)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.05)
    return model


def training_batch(*, images: int = 2, height: int = 64, width: int = 96) -> tuple[torch.Tensor, list[Any]]:
    """Normalised images and data samples with two boxes each."""
    from mmdet.structures import DetDataSample
    from mmengine.structures import InstanceData

    samples = []
    for _ in range(images):
        sample = DetDataSample(
            metainfo=dict(
                img_shape=(height, width),
                ori_shape=(height, width),
                batch_input_shape=(height, width),
                pad_shape=(height, width),
                scale_factor=(1.0, 1.0),
            )
        )
        boxes = torch.tensor([[5.0, 6.0, 40.0, 38.0], [50.0, 10.0, 70.0, 60.0]])
        sample.gt_instances = InstanceData(bboxes=boxes, labels=torch.tensor([1, 0]))
        sample.ignored_instances = InstanceData(bboxes=torch.zeros(0, 4), labels=torch.zeros(0).long())
        samples.append(sample)
    generator = torch.Generator().manual_seed(3)
    return torch.randn(images, 3, height, width, generator=generator), samples
