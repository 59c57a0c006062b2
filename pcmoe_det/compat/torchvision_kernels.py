"""torchvision's CUDA kernels for NMS and average RoIAlign, where torchvision can be imported.

Unmeasured and untested: this project is developed on machines without a GPU. Without torchvision the
vectorised operators serve CUDA tensors as well. CPU tensors never come here.
"""

from __future__ import annotations

import functools
import importlib
from typing import Any

import torch
from torch import Tensor

from pcmoe_det.compat.roi_geometry import RoiPooling

__all__ = ["cuda_kernels", "nms", "roi_align_backward", "roi_align_forward"]


@functools.cache
def _registered_operators() -> Any | None:
    try:
        importlib.import_module("torchvision")
        operators = torch.ops.torchvision
        # Looking the operators up fails where torchvision was built for another torch.
        _ = operators.nms, operators.roi_align, operators._roi_align_backward
    except (ImportError, AttributeError, RuntimeError):
        return None
    return operators


def cuda_kernels(tensor: Tensor) -> Any | None:
    """torchvision's operators if ``tensor`` lies on a CUDA device and torchvision works, else None."""
    return _registered_operators() if tensor.is_cuda else None


def nms(operators: Any, boxes: Tensor, scores: Tensor, *, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the kept boxes by falling score; boxes [N, 4] and scores [N] floating."""
    # torchvision knows no offset: moving the lower right corners adds it to every width and height.
    corner = boxes.new_tensor([0, 0, offset, offset])
    kept: Tensor = operators.nms(boxes + corner, scores, iou_threshold)
    return kept


def roi_align_forward(operators: Any, features: Tensor, rois: Tensor, *, pooling: RoiPooling) -> Tensor:
    """Pooled features [N, C, bins_y, bins_x] in the features' dtype; rois [N, 5] floating."""
    pooled: Tensor = operators.roi_align(
        features,
        rois.to(features.dtype),
        pooling.scale,
        pooling.bins_y,
        pooling.bins_x,
        pooling.sampling_ratio,
        pooling.aligned,
    )
    return pooled


def roi_align_backward(
    operators: Any, gradient: Tensor, rois: Tensor, *, shape: torch.Size, pooling: RoiPooling
) -> Tensor:
    """Gradient of the features, of ``shape`` [B, C, H, W], from that of the pooled features."""
    features: Tensor = operators._roi_align_backward(
        gradient,
        rois.to(gradient.dtype),
        pooling.scale,
        pooling.bins_y,
        pooling.bins_x,
        *shape,
        pooling.sampling_ratio,
        pooling.aligned,
    )
    return features
