"""The paper's detector with 8 experts in each of its four MoE layers, on SHIFT's 1280x800 frames."""

_base_ = ["./cascade_swin_t_static_shift_800x1280.py"]

model = dict(backbone=dict(num_experts=8))
