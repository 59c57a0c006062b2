"""RoIAlign with average pooling: products of a sparse matrix with the features, and of its transpose.

The matrix has a row per output bin and a column per pixel (``roi_bags``). Both products are calls of
``embedding_bag``: forward its table is the features with the channels last, and a bag is one output
bin; backward the table is the gradient of the output, and a bag is one pixel.

Weights are computed in float32 (float64 for float64 features) and take the features' dtype for the
product, which accumulates in float32. A half-precision weight is off by at most 2^-9 (bfloat16), no
more than the rounding of the output itself.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor

from pcmoe_det.compat.roi_bags import RoiBags, iterate_bags
from pcmoe_det.compat.roi_geometry import FloatArray, IntArray, RoiPooling, RoiSpans

__all__ = ["average_backward", "average_forward"]

# Buffers above 32 MB come from fresh pages on every call with glibc, which costs more than filling them
# (a 62 MB feature map: 40 ms instead of 16 for the transposition). Work is cut to stay below.
_BUFFER_BYTES = 24 << 20
_FORWARD_TAPS = 1 << 18
# One image of 512 boxes in training has about 400,000 taps and is never cut.
_BACKWARD_TAPS = 1 << 22


def average_forward(features: Tensor, spans: RoiSpans, output: Tensor, *, pooling: RoiPooling) -> None:
    """Fill ``output`` [N, C, bins_y, bins_x] in place; boxes without samples keep what they have.

    Args:
        features: [B, C, H, W] floating; with channels-last strides no copy is made.
        spans: the boxes on the feature map.
        output: in the features' dtype.
        pooling: settings of the layer.
    """
    _, _, height, width = features.shape
    channels_last = features.permute(0, 2, 3, 1)
    copied_bytes = 0 if channels_last.is_contiguous() else features.numel() * features.element_size()
    for channels in _channel_slices(features.shape[1], copied_bytes):
        table = channels_last[..., channels].contiguous().flatten(0, 2)
        pieces = iterate_bags(spans, pooling=pooling, height=height, width=width, max_taps=_FORWARD_TAPS)
        for bags in pieces:
            pooled = F.embedding_bag(
                _tensor(bags.pixel, table),
                table,
                _tensor(bags.starts[:-1].astype(np.int32), table),
                mode="sum",
                per_sample_weights=_tensor(bags.weight, table).to(table.dtype),
            )
            pooled = pooled.view(bags.boxes.size, pooling.bins_y, pooling.bins_x, -1)
            output[_tensor(bags.boxes, table), channels] = pooled.permute(0, 3, 1, 2)


def average_backward(gradient: Tensor, spans: RoiSpans, target: Tensor, *, pooling: RoiPooling) -> None:
    """Add the gradient of the features to ``target`` in place.

    Args:
        gradient: [N, C, bins_y, bins_x] floating, of the output.
        spans: the boxes on the feature map.
        target: [B, C, H, W] in the gradient's dtype.
        pooling: settings of the layer.
    """
    _, channel_count, height, width = target.shape
    pieces = iterate_bags(
        spans, pooling=pooling, height=height, width=width, max_taps=_BACKWARD_TAPS, by_image=True
    )
    for bags in pieces:
        image = int(spans.image[bags.boxes[0]])
        by_bin, numbers = _channels_last_view(gradient, bags.boxes)
        bins, weight, starts = _transpose(
            bags, numbers=numbers, first_pixel=image * height * width, pixels=height * width
        )
        indices, offsets = _tensor(bins, gradient), _tensor(starts, gradient)
        weights = _tensor(weight, gradient).to(gradient.dtype)
        row_bytes = max(by_bin.shape[0] * by_bin.shape[1], height * width) * gradient.element_size()
        for channels in _channel_slices(channel_count, row_bytes * channel_count):
            table = by_bin[:, :, channels].contiguous().flatten(0, 1)
            summed = F.embedding_bag(indices, table, offsets, mode="sum", per_sample_weights=weights)
            target[image, channels] += summed.t().view(-1, height, width)


def _channels_last_view(gradient: Tensor, boxes: IntArray) -> tuple[Tensor, IntArray]:
    """A view [M, bins, C] of the gradient that has all of ``boxes``, and their numbers in it.

    Boxes usually come sorted by image, so those of one image are a slice; a copy is made otherwise.
    """
    first, last = int(boxes.min()), int(boxes.max())
    by_bin = gradient.flatten(2).transpose(1, 2)
    if last - first < 2 * boxes.size:
        return by_bin[first : last + 1], boxes - first
    return by_bin.index_select(0, _tensor(boxes, gradient)), np.arange(boxes.size)


def _transpose(
    bags: RoiBags, *, numbers: IntArray, first_pixel: int, pixels: int
) -> tuple[npt.NDArray[np.int32], FloatArray, npt.NDArray[np.int32]]:
    """The entries of ``bags`` ordered by pixel: bin and weight of each, and where each pixel begins.

    ``numbers`` are the boxes' numbers in the table that the bins refer to.
    """
    pixel = bags.pixel - np.int32(first_pixel)
    # numpy sorts 16-bit integers by radix, eight times faster than 32-bit ones.
    keys = pixel.astype(np.uint16) if pixels <= 1 << 16 else pixel
    order = np.argsort(keys, kind="stable")
    taps = np.diff(bags.starts)
    per_box = np.arange(taps.size // numbers.size, dtype=np.int32)
    bin_numbers = numbers.astype(np.int32)[:, None] * np.int32(per_box.size) + per_box
    bins = np.repeat(bin_numbers.ravel(), taps)
    starts = np.zeros(pixels, dtype=np.int32)
    starts[1:] = np.cumsum(np.bincount(pixel, minlength=pixels))[:-1]
    return bins.take(order), bags.weight.take(order), starts


def _channel_slices(channels: int, table_bytes: int) -> Iterator[slice]:
    """Equal slices of the channels, in multiples of 16, that keep a table within the buffer limit."""
    parts = -(-table_bytes // _BUFFER_BYTES)
    step = max(16, -(-channels // max(1, parts) // 16) * 16)
    for start in range(0, channels, step):
        yield slice(start, min(channels, start + step))


def _tensor(array: npt.NDArray[np.generic], like: Tensor) -> Tensor:
    return torch.from_numpy(array).to(like.device)
