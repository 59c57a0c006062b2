"""Stills and clips of a SHIFT-layout data root, mixed with generated frames, strongly augmented."""

data_root = "data/street"
generated_root = "data/generated"
long_side = 416  # test images keep their aspect ratio; a 16:9 frame becomes 256x416 after padding
train_long_side = 320
train_canvas = (192, 320)  # height, width

frame_meta = (
    "img_id",
    "img_path",
    "ori_shape",
    "img_shape",
    "scale_factor",
    "flip",
    "flip_direction",
    "video_name",
    "frame_index",
    "frame_name",
    "attributes",
    "annotated_categories",
    "instances",
)

_load = [dict(type="LoadShiftImage"), dict(type="LoadAnnotations", with_bbox=True)]


def _train_split(root, subset):
    return dict(
        type="ShiftDataset",
        data_root=root,
        subset=subset,
        split="train",
        teacher_labels="truth",
        filter_cfg=dict(filter_empty_gt=False),
        pipeline=_load,
    )


train_dataloader = dict(
    batch_size=8,
    num_workers=1,
    persistent_workers=True,
    sampler=dict(type="InfiniteSampler", shuffle=True),
    dataset=dict(
        type="MultiImageMixDataset",
        dataset=dict(
            type="ConcatDataset",
            datasets=[
                dict(type="RepeatDataset", times=3, dataset=_train_split(data_root, "discrete/images")),
                dict(type="RepeatDataset", times=2, dataset=_train_split(data_root, "discrete/videos")),
                _train_split(generated_root, "discrete/videos"),
            ],
        ),
        pipeline=[
            dict(
                type="Mosaic",
                img_scale=(train_long_side, train_canvas[0]),
                center_ratio_range=(0.7, 1.3),
                prob=0.4,
            ),
            dict(
                type="RandomResize",
                scale=(train_long_side, train_long_side),
                ratio_range=(0.7, 1.5),
                keep_ratio=True,
            ),
            dict(type="RandomCrop", crop_size=train_canvas, crop_type="absolute", allow_negative_crop=True),
            dict(type="FilterAnnotations", min_gt_bbox_wh=(3, 3), keep_empty=False),
            dict(type="RandomFlip", prob=0.5),
            dict(type="PhotoMetricDistortion"),
            dict(type="PackDetInputs"),
        ],
    ),
)

_test_pipeline = [
    dict(type="LoadShiftImage"),
    dict(type="Resize", scale=(long_side, long_side), keep_ratio=True),
    dict(type="PackDetInputs", meta_keys=frame_meta),
]

val_dataloader = dict(
    batch_size=1,
    num_workers=1,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="VideoShardSampler"),
    dataset=dict(
        type="ShiftDataset",
        data_root=data_root,
        subset="discrete/images",
        split="val",
        teacher_labels="auto",
        test_mode=True,
        pipeline=_test_pipeline,
    ),
)
val_evaluator = dict(type="ShiftMetric")
test_dataloader = val_dataloader
test_evaluator = val_evaluator
