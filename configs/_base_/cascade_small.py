"""The small detector: 256x416 video on two CPU cores. Static; `num_experts` makes it an MoE."""

num_classes = 6
channels = 96

_box_head = dict(
    type="Shared2FCBBoxHead",
    in_channels=channels,
    fc_out_channels=256,
    roi_feat_size=7,
    num_classes=num_classes,
    reg_class_agnostic=True,
    loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=False, loss_weight=1.0),
    loss_bbox=dict(type="SmoothL1Loss", beta=1.0, loss_weight=1.0),
)


def _stage_head(stds):
    coder = dict(type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=stds)
    return dict(_box_head, bbox_coder=coder)


def _stage_train(iou):
    return dict(
        assigner=dict(
            type="MaxIoUAssigner",
            pos_iou_thr=iou,
            neg_iou_thr=iou,
            min_pos_iou=iou,
            match_low_quality=False,
            ignore_iof_thr=0.5,
        ),
        sampler=dict(
            type="RandomSampler", num=128, pos_fraction=0.25, neg_pos_ub=-1, add_gt_as_proposals=True
        ),
        pos_weight=-1,
        debug=False,
    )


model = dict(
    type="MoEDetector",
    detector="CascadeRCNN",
    precision="bfloat16",
    data_preprocessor=dict(
        type="DetDataPreprocessor",
        mean=[123.675, 116.28, 103.53],
        std=[58.395, 57.12, 57.375],
        bgr_to_rgb=True,
        pad_size_divisor=32,
    ),
    backbone=dict(
        type="SwinMoE",
        embed_dims=48,
        depths=(2, 2, 6, 2),
        num_heads=(3, 6, 12, 24),
        window_size=8,
        num_experts=0,
        # Of training with experts: an image is to find what it needs in half of them, all are to be used.
        balance_weight=0.15,
        locality_weight=0.1,
        committee_probability=0.2,
        stem="conv",
        drop_path_rate=0.05,
        out_indices=(1, 2, 3),
    ),
    # Stride 4 is left out: its lateral, output and RPN convolutions cost as much as the backbone.
    neck=dict(
        type="FPN",
        in_channels=[96, 192, 384],
        out_channels=channels,
        num_outs=5,
        norm_cfg=dict(type="BN"),
    ),
    rpn_head=dict(
        type="RPNHead",
        in_channels=channels,
        feat_channels=channels,
        anchor_generator=dict(
            type="AnchorGenerator", scales=[2.0, 2.83], ratios=[0.5, 1.0, 2.0], strides=[8, 16, 32, 64, 128]
        ),
        bbox_coder=dict(
            type="DeltaXYWHBBoxCoder", target_means=[0.0, 0.0, 0.0, 0.0], target_stds=[1.0, 1.0, 1.0, 1.0]
        ),
        loss_cls=dict(type="CrossEntropyLoss", use_sigmoid=True, loss_weight=1.0),
        loss_bbox=dict(type="SmoothL1Loss", beta=1.0 / 9.0, loss_weight=1.0),
    ),
    roi_head=dict(
        type="CascadeRoIHead",
        num_stages=3,
        stage_loss_weights=[1, 0.5, 0.25],
        bbox_roi_extractor=dict(
            type="MixedPrecisionRoIExtractor",
            roi_layer=dict(type="RoIAlign", output_size=7, sampling_ratio=2),
            out_channels=channels,
            featmap_strides=[8, 16, 32],
            finest_scale=40,
        ),
        bbox_head=[
            _stage_head([0.1, 0.1, 0.2, 0.2]),
            _stage_head([0.05, 0.05, 0.1, 0.1]),
            _stage_head([0.033, 0.033, 0.067, 0.067]),
        ],
    ),
    train_cfg=dict(
        rpn=dict(
            assigner=dict(
                type="MaxIoUAssigner",
                pos_iou_thr=0.7,
                neg_iou_thr=0.3,
                min_pos_iou=0.3,
                match_low_quality=True,
                ignore_iof_thr=0.5,
            ),
            sampler=dict(
                type="RandomSampler", num=256, pos_fraction=0.5, neg_pos_ub=-1, add_gt_as_proposals=False
            ),
            allowed_border=0,
            pos_weight=-1,
            debug=False,
        ),
        rpn_proposal=dict(
            nms_pre=300, max_per_img=300, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0
        ),
        rcnn=[_stage_train(0.5), _stage_train(0.6), _stage_train(0.7)],
    ),
    test_cfg=dict(
        rpn=dict(nms_pre=300, max_per_img=200, nms=dict(type="nms", iou_threshold=0.7), min_bbox_size=0),
        rcnn=dict(score_thr=0.02, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100),
    ),
)
