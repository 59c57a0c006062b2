"""Twelve epochs with two steps down, as mmdet's 1x schedule, with the optimiser that Swin is trained with.

The rate is for 16 images a step: 8 processes of 2.
"""

_base_ = ["./runtime.py"]

train_cfg = dict(type="EpochBasedTrainLoop", max_epochs=12, val_interval=1)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
_plain = dict(decay_mult=0.0)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=1e-4, betas=(0.9, 0.999), weight_decay=0.05),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        custom_keys={"position_bias": _plain, "gate": _plain},
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.001, by_epoch=False, begin=0, end=1000),
    dict(type="MultiStepLR", by_epoch=True, begin=0, end=12, milestones=[8, 11], gamma=0.1),
]
log_processor = dict(type="LogProcessor", window_size=50, by_epoch=True)
default_hooks = dict(checkpoint=dict(type="CheckpointHook", by_epoch=True, interval=1, max_keep_ckpts=3))
