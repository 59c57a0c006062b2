"""RoIAlign behind the interface of ``mmcv._ext``, for any floating dtype and any device.

He et al., "Mask R-CNN", ICCV 2017, section 3. Average pooling is in ``roi_average``, maximum pooling in
``roi_maximum``; where the samples lie is in ``roi_geometry``. On CUDA torchvision's kernel serves
average pooling when torchvision can be imported (unmeasured).
"""

from __future__ import annotations

import torch
from torch import Tensor

from pcmoe_det.compat import torchvision_kernels
from pcmoe_det.compat.roi_average import average_backward, average_forward
from pcmoe_det.compat.roi_geometry import RoiPooling, locate_rois
from pcmoe_det.compat.roi_maximum import maximum_backward, maximum_forward
from pcmoe_det.errors import UsageError

__all__ = ["roi_align_backward", "roi_align_forward"]

_MAXIMUM, _AVERAGE = 0, 1


def roi_align_forward(
    input: Tensor,
    rois: Tensor,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Pool the features inside each box into a grid of bins.

    The result for one box does not depend on the other boxes or images of the call. Boxes that are
    not finite, and boxes of size zero with ``sampling_ratio`` 0, give zeros.

    Args:
        input: [B, C, H, W] floating, the features. Channels-last strides save a copy.
        rois: [N, 5] floating: batch index, x1, y1, x2, y2 in image pixels.
        output: [N, C, aligned_height, aligned_width] zeros in the features' dtype, **filled in place**.
        argmax_y: like ``output`` for maximum pooling, **filled in place** for the backward pass (which
            sample was the largest, see ``maximum_forward``); not used otherwise.
        argmax_x: the same along x.
        aligned_height: rows of the output.
        aligned_width: columns of the output.
        spatial_scale: feature map pixels per image pixel.
        sampling_ratio: samples per bin and axis; 0 takes one per feature map pixel.
        pool_mode: 0 maximum, 1 average.
        aligned: pixel centres at half coordinates (True), or mmcv's legacy mode.

    Raises:
        UsageError: if a batch index does not exist, the output has no bins or the mode is unknown.
    """
    _check_mode(pool_mode)
    pooling = RoiPooling(aligned_height, aligned_width, spatial_scale, sampling_ratio, aligned)
    if output.numel() == 0 or input.numel() == 0:
        return
    with torch.no_grad():
        kernels = torchvision_kernels.cuda_kernels(input) if pool_mode == _AVERAGE else None
        if kernels is not None:
            output.copy_(torchvision_kernels.roi_align_forward(kernels, input, rois, pooling=pooling))
            return
        spans = locate_rois(rois, pooling=pooling, batch=input.shape[0], dtype=_geometry_dtype(input))
        if pool_mode == _AVERAGE:
            average_forward(input, spans, output, pooling=pooling)
        else:
            maximum_forward(input, spans, output, argmax_y, argmax_x, pooling=pooling)


def roi_align_backward(
    grad_output: Tensor,
    rois: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    grad_input: Tensor,
    aligned_height: int,
    aligned_width: int,
    spatial_scale: float,
    sampling_ratio: int,
    pool_mode: int,
    aligned: bool,
) -> None:
    """Gradient of the features; boxes get none, as in mmcv.

    Args:
        grad_output: [N, C, aligned_height, aligned_width] floating, gradient of the output.
        rois: as in the forward pass.
        argmax_y: as the forward pass filled it.
        argmax_x: as the forward pass filled it.
        grad_input: [B, C, H, W] zeros in the gradient's dtype, **filled in place**.
        aligned_height: as in the forward pass, and so are the arguments that follow.
        aligned_width: columns of the output.
        spatial_scale: feature map pixels per image pixel.
        sampling_ratio: samples per bin and axis; 0 takes one per feature map pixel.
        pool_mode: 0 maximum, 1 average.
        aligned: pixel centres at half coordinates (True), or mmcv's legacy mode.

    Raises:
        UsageError: as in the forward pass.
    """
    _check_mode(pool_mode)
    pooling = RoiPooling(aligned_height, aligned_width, spatial_scale, sampling_ratio, aligned)
    if grad_output.numel() == 0 or grad_input.numel() == 0:
        return
    with torch.no_grad():
        kernels = torchvision_kernels.cuda_kernels(grad_output) if pool_mode == _AVERAGE else None
        if kernels is not None:
            grad_input += torchvision_kernels.roi_align_backward(
                kernels, grad_output, rois, shape=grad_input.shape, pooling=pooling
            )
            return
        dtype = _geometry_dtype(grad_input)
        spans = locate_rois(rois, pooling=pooling, batch=grad_input.shape[0], dtype=dtype)
        if pool_mode == _AVERAGE:
            average_backward(grad_output, spans, grad_input, pooling=pooling)
        else:
            maximum_backward(grad_output, spans, argmax_y, argmax_x, grad_input, pooling=pooling)


def _geometry_dtype(features: Tensor) -> torch.dtype:
    return torch.float64 if features.dtype == torch.float64 else torch.float32


def _check_mode(pool_mode: int) -> None:
    if pool_mode not in (_MAXIMUM, _AVERAGE):
        raise UsageError(f"RoIAlign pool mode {pool_mode}; allowed are 0 (maximum) and 1 (average)")
