"""The small detector with 8 experts in each of its four MoE layers."""

_base_ = ["./cascade_swin_moe_small_static.py"]

model = dict(
    backbone=dict(num_experts=8, committee_probability=0.2, locality_weight=0.1, balance_weight=0.05)
)
