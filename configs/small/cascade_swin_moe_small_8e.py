"""The small detector with 8 experts in each of its four MoE layers."""

_base_ = ["./cascade_swin_moe_small_static.py"]

model = dict(backbone=dict(num_experts=8))
