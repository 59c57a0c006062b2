"""RoIAlign with maximum pooling: each output is the largest of its bin's bilinear samples.

Few detectors use it, so it is plain: one pass over the samples of a bin, vectorised over boxes, bins
and channels.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pcmoe_det.compat.roi_bags import bilinear_taps
from pcmoe_det.compat.roi_geometry import AxisSpans, FloatArray, RoiPooling, RoiSpans, sample_points

__all__ = ["maximum_backward", "maximum_forward"]

# mmcv's smallest maximum: a bin whose samples all lie below it yields this value.
_LEAST = -10000.0
_BOXES_AT_ONCE = 256


def maximum_forward(
    features: Tensor,
    spans: RoiSpans,
    output: Tensor,
    argmax_y: Tensor,
    argmax_x: Tensor,
    *,
    pooling: RoiPooling,
) -> None:
    """Fill ``output`` and the argmax tensors in place; boxes without samples keep what they have.

    Args:
        features: [B, C, H, W] floating.
        spans: the boxes on the feature map.
        output: [N, C, bins_y, bins_x] in the features' dtype.
        argmax_y: like ``output``; the number of the largest sample along y within its bin, or -1 where
            no sample was above -10,000. mmcv stores coordinates here, which bfloat16 would round to
            another pixel; only ``maximum_backward`` reads them.
        argmax_x: the same along x.
        pooling: settings of the layer.
    """
    _, _, height, width = features.shape
    table = features.permute(0, 2, 3, 1).contiguous().flatten(0, 2)
    key = spans.y.grid * (int(spans.x.grid.max(initial=0)) + 1) + spans.x.grid
    for value in np.unique(key[spans.y.grid > 0]):
        members = np.flatnonzero(key == value)
        for start in range(0, members.size, _BOXES_AT_ONCE):
            boxes = members[start : start + _BOXES_AT_ONCE]
            first_pixel = spans.image[boxes] * (height * width)
            along_y = _sample_taps(spans.y.take(boxes), bins=pooling.bins_y, size=height)
            along_x = _sample_taps(spans.x.take(boxes), bins=pooling.bins_x, size=width)
            found = _largest(table, first_pixel, along_y, along_x, width=width)
            where = torch.from_numpy(boxes).to(features.device)
            shape = (boxes.size, pooling.bins_y, pooling.bins_x, -1)
            for into, result in zip((output, argmax_y, argmax_x), found, strict=True):
                into[where] = result.view(shape).permute(0, 3, 1, 2).to(into.dtype)


def _sample_taps(spans: AxisSpans, *, bins: int, size: int) -> tuple[npt.NDArray[np.int64], FloatArray]:
    """Pixels and weights of every sample: two arrays [N, bins, grid, 2]."""
    lower, fraction, inside = bilinear_taps(sample_points(spans, bins=bins), size=size)
    pixel = np.stack((lower, np.minimum(lower + 1, size - 1)), axis=-1).astype(np.int64)
    return pixel, np.stack((1 - fraction, fraction), axis=-1) * inside[..., None]


def _largest(
    table: Tensor,
    first_pixel: npt.NDArray[np.integer],
    along_y: tuple[npt.NDArray[np.int64], FloatArray],
    along_x: tuple[npt.NDArray[np.int64], FloatArray],
    *,
    width: int,
) -> tuple[Tensor, Tensor, Tensor]:
    """Largest sample of every bin and its numbers along y and x, each [N * bins_y * bins_x, C]."""
    (pixel_y, weight_y), (pixel_x, weight_x) = along_y, along_x
    bag_count = pixel_y.shape[0] * pixel_y.shape[1] * pixel_x.shape[1]
    best = table.new_full((bag_count, table.shape[1]), _LEAST)
    best_y = table.new_full(best.shape, -1)
    best_x = best_y.clone()
    line = first_pixel[:, None, None, None] + pixel_y * width
    for y in range(pixel_y.shape[2]):
        for x in range(pixel_x.shape[2]):
            pixel = line[:, :, None, y, :, None] + pixel_x[:, None, :, x, None, :]
            weight = weight_y[:, :, None, y, :, None] * weight_x[:, None, :, x, None, :]
            value = F.embedding_bag(
                torch.from_numpy(pixel.reshape(bag_count, 4)).to(table.device),
                table,
                mode="sum",
                per_sample_weights=torch.from_numpy(weight.reshape(bag_count, 4)).to(table),
            )
            larger = value > best
            best = torch.where(larger, value, best)
            best_y.masked_fill_(larger, y)
            best_x.masked_fill_(larger, x)
    return best, best_y, best_x


def maximum_backward(
    gradient: Tensor,
    spans: RoiSpans,
    argmax_y: Tensor,
    argmax_x: Tensor,
    target: Tensor,
    *,
    pooling: RoiPooling,
) -> None:
    """Add the gradient of the features to ``target`` [B, C, H, W] in place.

    Args:
        gradient: [N, C, bins_y, bins_x] floating, of the output.
        spans: the boxes on the feature map.
        argmax_y: as ``maximum_forward`` left it.
        argmax_x: as ``maximum_forward`` left it.
        target: in the gradient's dtype.
        pooling: settings of the layer.
    """
    _, channels, height, width = target.shape
    dtype = torch.float64 if gradient.dtype == torch.float64 else torch.float32
    total = torch.zeros(target.numel(), dtype=dtype, device=target.device)
    channel = torch.arange(channels, device=target.device)
    for start in range(0, gradient.shape[0], _BOXES_AT_ONCE):
        part = slice(start, start + _BOXES_AT_ONCE)
        found = (argmax_y[part] >= 0) & (argmax_x[part] >= 0)
        box, plane, bin_y, bin_x = found.nonzero(as_tuple=True)
        numbers = np.arange(start, min(start + _BOXES_AT_ONCE, gradient.shape[0]))
        sample_y, sample_x = argmax_y[part][found].long(), argmax_x[part][found].long()
        pixel_y, weight_y = _chosen_taps(
            spans.y.take(numbers), (box, bin_y, sample_y), pooling.bins_y, height
        )
        pixel_x, weight_x = _chosen_taps(spans.x.take(numbers), (box, bin_x, sample_x), pooling.bins_x, width)
        image = torch.from_numpy(spans.image[numbers]).to(target.device)[box]
        corner = (image * channels + channel[plane]) * height
        pixel = (corner[:, None, None] + pixel_y[:, :, None]) * width + pixel_x[:, None, :]
        share = gradient[part][found].to(dtype)[:, None, None] * weight_y[:, :, None] * weight_x[:, None, :]
        total.index_add_(0, pixel.flatten(), share.flatten().to(dtype))
    target += total.view(target.shape).to(target.dtype)


def _chosen_taps(
    spans: AxisSpans, chosen: tuple[Tensor, Tensor, Tensor], bins: int, size: int
) -> tuple[Tensor, Tensor]:
    """Pixels and weights [K, 2] of samples given as (box, bin, number) index tensors [K]."""
    pixel, weight = _sample_taps(spans, bins=bins, size=size)
    device = chosen[0].device
    return torch.from_numpy(pixel).to(device)[chosen], torch.from_numpy(weight).to(device)[chosen]
