"""Registers the package's models with mmdet; name it in a config's ``custom_imports``."""

from pcmoe_det.models.detector import MixedPrecisionRoIExtractor, MoEDetectorMixin, moe_detector
from pcmoe_det.models.swin_moe import SwinMoE

__all__ = ["MixedPrecisionRoIExtractor", "MoEDetectorMixin", "SwinMoE", "moe_detector"]
