max_iters = 8000
train_cfg = dict(type="IterBasedTrainLoop", max_iters=max_iters, val_interval=2000)
val_cfg = dict(type="ValLoop")
test_cfg = dict(type="TestLoop")
_plain = dict(decay_mult=0.0)
# The residual stream of the later stages grows to several times what a layer writes into it, and with
# Adam's steps, which do not depend on a layer's scale, its blocks then stop to matter: after 64,800 images
# all FFNs of stages 3 and 4 could be left out for a point. What writes into these streams learns faster.
_faster = {}
for _stage, _blocks, _factor in ((2, 6, 4.0), (3, 2, 6.0)):
    _faster[f"stages.{_stage - 1}.downsample.reduction"] = dict(lr_mult=_factor)
    for _block in range(_blocks):
        for _layer in ("attn.proj", "mlp.fc2", "mlp.experts.fc2_weight"):
            _faster[f"stages.{_stage}.blocks.{_block}.{_layer}"] = dict(lr_mult=_factor)
optim_wrapper = dict(
    type="OptimWrapper",
    optimizer=dict(type="AdamW", lr=5e-4, betas=(0.9, 0.999), weight_decay=0.05, fused=True),
    clip_grad=dict(max_norm=10.0),
    paramwise_cfg=dict(
        norm_decay_mult=0.0,
        bias_decay_mult=0.0,
        # The experts' biases are rows of one tensor each, which mmengine does not know for biases.
        custom_keys={
            **_faster,
            "position_bias": _plain,
            "gate": _plain,
            "fc1_bias": _plain,
            "fc2_bias": _plain,
        },
    ),
)
param_scheduler = [
    dict(type="LinearLR", start_factor=0.01, by_epoch=False, begin=0, end=300),
    dict(
        type="CosineAnnealingLR",
        by_epoch=False,
        begin=300,
        end=max_iters,
        T_max=max_iters - 300,
        eta_min=1e-5,
    ),
]
custom_hooks = [
    # gamma: the mean forgets its start within a few times as many steps.
    dict(
        type="EMAHook",
        ema_type="ExpMomentumEMA",
        momentum=0.002,
        gamma=300,
        update_buffers=True,
        priority=49,
    ),
]
