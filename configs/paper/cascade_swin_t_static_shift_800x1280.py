"""The paper's detector without experts, on SHIFT's 1280x800 frames: the dense twin of the MoE ones."""

_base_ = [
    "../_base_/cascade_swin_t.py",
    "../_base_/shift_data.py",
    "../_base_/schedule_1x.py",
]
