"""The Swin-MoE backbone and what an mmdet detector around it needs.

Import ``pcmoe_det.models.registry`` to register everything with mmdet; importing this package alone
loads nothing.
"""
