"""The small detector without experts: the dense twin of the MoE ones."""

_base_ = [
    "../_base_/cascade_small.py",
    "../_base_/street_data.py",
    "../_base_/schedule_small.py",
    "../_base_/runtime.py",
]
