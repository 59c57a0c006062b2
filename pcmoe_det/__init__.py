"""Streaming video detection with Mixture-of-Experts models inside a memory budget.

Importing this package is cheap: it loads neither torch nor mmdet. It only makes sure that a later
``import mmcv.ops`` finds the operators that mmdet's detectors need (see ``pcmoe_det.compat``).
"""

from pcmoe_det.compat import register_mmcv_operators

__version__ = "0.1.0"

__all__ = ["__version__"]

register_mmcv_operators()
