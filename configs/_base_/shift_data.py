"""SHIFT as it is published: discrete images of the front camera.

Put your copy, or a link to it, at `data/shift`, or name it with --data-root.
"""

data_root = "data/shift"
long_side = 1280  # SHIFT's own size: its 1280x800 frames are not resized

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
_resize = dict(type="Resize", scale=(long_side, long_side), keep_ratio=True)

train_dataloader = dict(
    batch_size=2,
    num_workers=2,
    persistent_workers=True,
    sampler=dict(type="DefaultSampler", shuffle=True),
    dataset=dict(
        type="ShiftDataset",
        data_root=data_root,
        subset="discrete/images",
        split="train",
        view="front",
        filter_cfg=dict(filter_empty_gt=True),
        pipeline=[
            dict(type="LoadShiftImage"),
            dict(type="LoadAnnotations", with_bbox=True),
            _resize,
            dict(type="RandomFlip", prob=0.5),
            dict(type="PackDetInputs"),
        ],
    ),
)
val_dataloader = dict(
    batch_size=1,
    num_workers=2,
    persistent_workers=True,
    drop_last=False,
    sampler=dict(type="VideoShardSampler"),
    dataset=dict(
        type="ShiftDataset",
        data_root=data_root,
        subset="discrete/images",
        split="val",
        view="front",
        test_mode=True,
        pipeline=[
            dict(type="LoadShiftImage"),
            _resize,
            dict(type="PackDetInputs", meta_keys=frame_meta),
        ],
    ),
)
val_evaluator = dict(type="ShiftMetric")
test_dataloader = val_dataloader
test_evaluator = val_evaluator
