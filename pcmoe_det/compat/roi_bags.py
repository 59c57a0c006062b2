"""RoIAlign's average pooling as a sparse matrix: one row per output bin, one column per pixel.

An output bin is a weighted sum of feature map pixels, and because the samples of a bin form a grid its
weights are the outer product of weights along y and along x. Where samples lie at most one pixel apart
neighbouring samples share pixels: g samples touch g + 1 pixels instead of 2 g, which halves the work
along each axis. A row of the matrix is one bag of ``torch.nn.functional.embedding_bag``, which reads
each pixel's channels as one contiguous piece.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from pcmoe_det.compat.roi_geometry import AxisSpans, FloatArray, IntArray, RoiPooling, RoiSpans, sample_points

__all__ = ["AxisTaps", "RoiBags", "bilinear_taps", "iterate_bags"]


class AxisTaps(NamedTuple):
    """Pixels and weights along one axis.

    Attributes:
        pixel: [N, bins, K] int32; entries from a box's own count on are padding.
        weight: [N, bins, K] floating, 0 in the padding.
    """

    pixel: npt.NDArray[np.int32]
    weight: FloatArray


class RoiBags(NamedTuple):
    """The rows of the matrix that belong to some boxes; bags are ordered by box, y bin, x bin.

    Attributes:
        boxes: [M] int64, the boxes' indices.
        pixel: [T] int32, ``image * height * width + y * width + x``.
        weight: [T] floating.
        starts: [M * bins_y * bins_x + 1] int64, where each bag begins; the last entry is T.
    """

    boxes: IntArray
    pixel: npt.NDArray[np.int32]
    weight: FloatArray
    starts: IntArray


def bilinear_taps(points: FloatArray, *, size: int) -> tuple[FloatArray, FloatArray, npt.NDArray[np.bool_]]:
    """Lower pixel, fraction towards the next, and whether the sample counts at all.

    A sample counts up to one pixel outside the map and is then moved onto its border; further out it
    is zero. At the last pixel the fraction is 0.
    """
    inside = (points >= -1) & (points <= size)
    points = np.clip(points, 0, size - 1)
    lower = np.floor(points)
    return lower, points - lower, inside


def _tap_counts(spans: AxisSpans, *, bins: int, size: int) -> tuple[IntArray, npt.NDArray[np.bool_]]:
    """Taps per bin of each box, and whether they are one run of neighbouring pixels."""
    close = spans.length / spans.length.dtype.type(bins) <= spans.grid
    counts = np.where(close, spans.grid + 1, 2 * spans.grid)
    return np.minimum(counts, size), close | (counts >= size)


def _axis_taps(spans: AxisSpans, *, bins: int, size: int) -> AxisTaps:
    counts, is_run = _tap_counts(spans, bins=bins, size=size)
    widest = int(counts.max())
    points = sample_points(spans, bins=bins)
    lower, fraction, inside = bilinear_taps(points, size=size)
    sample = np.arange(points.shape[2])
    grid = spans.grid[:, None, None]
    lower = lower.astype(np.int64)
    first = np.minimum(lower[:, :, :1], (size - counts)[:, None, None])
    slot = np.where(is_run[:, None, None], lower - first, 2 * sample)
    last_slot = (counts - 1)[:, None, None]
    slot = np.minimum(slot, last_slot)
    share = (inside & (sample < grid)) / grid
    row = np.arange(points.shape[0] * bins).reshape(-1, bins, 1) * widest
    total = points.shape[0] * bins * widest
    weight = np.bincount((row + slot).ravel(), ((1 - fraction) * share).ravel(), total)
    above = row + np.minimum(slot + 1, last_slot)
    weight += np.bincount(above.ravel(), (fraction * share).ravel(), total)
    pixel = np.minimum(first + np.arange(widest), size - 1)
    if not is_run.all():
        pairs = np.stack((lower, np.minimum(lower + 1, size - 1)), axis=-1)
        pairs = pairs.reshape(*lower.shape[:2], -1)[:, :, :widest]
        pixel = np.where(is_run[:, None, None], pixel, pairs)
    return AxisTaps(
        pixel.astype(np.int32), weight.reshape(-1, bins, widest).astype(spans.start.dtype, copy=False)
    )


def iterate_bags(
    spans: RoiSpans,
    *,
    pooling: RoiPooling,
    height: int,
    width: int,
    max_taps: int,
    by_image: bool = False,
) -> Iterator[RoiBags]:
    """Yield the bags of all boxes that have samples, in pieces of about ``max_taps`` entries.

    Boxes are sorted by their number of taps, so that equal ones are built in one vectorised step. The
    weights of a box depend on that box alone, not on which others are in the call.

    Args:
        spans: the boxes.
        pooling: settings of the layer.
        height: of the feature map in pixels.
        width: of the feature map in pixels.
        max_taps: memory bound; one box may exceed it.
        by_image: no piece contains boxes of two images.
    """
    boxes = np.flatnonzero(spans.y.grid)
    taps_y, _ = _tap_counts(spans.y, bins=pooling.bins_y, size=height)
    taps_x, _ = _tap_counts(spans.x, bins=pooling.bins_x, size=width)
    # Tables are padded to the largest grid of a piece: boxes with huge grids get pieces of their own.
    size_class = np.maximum(spans.y.grid, spans.x.grid) // 64
    keys = [taps_x[boxes], taps_y[boxes], size_class[boxes]]
    if by_image:
        keys.append(spans.image[boxes])
    boxes = boxes[np.lexsort(keys)]
    work = np.cumsum(taps_y[boxes] * taps_x[boxes]) * (pooling.bins_y * pooling.bins_x)
    piece = work // max_taps
    breaks = (np.diff(piece) > 0) | (np.diff(size_class[boxes]) != 0)
    if by_image:
        breaks |= np.diff(spans.image[boxes]) != 0
    for chosen in np.split(boxes, np.flatnonzero(breaks) + 1):
        if chosen.size:
            counts = taps_y[chosen], taps_x[chosen]
            yield _build(spans, chosen, counts, pooling=pooling, height=height, width=width)


def _build(
    spans: RoiSpans,
    boxes: IntArray,
    counts: tuple[IntArray, IntArray],
    *,
    pooling: RoiPooling,
    height: int,
    width: int,
) -> RoiBags:
    taps_y, taps_x = counts
    along_y = _axis_taps(spans.y.take(boxes), bins=pooling.bins_y, size=height)
    along_x = _axis_taps(spans.x.take(boxes), bins=pooling.bins_x, size=width)
    line = (spans.image[boxes] * height).astype(np.int32)[:, None, None] + along_y.pixel
    line *= np.int32(width)
    bins = pooling.bins_y * pooling.bins_x
    per_bag = taps_y * taps_x
    starts = np.zeros(boxes.size * bins + 1, dtype=np.int64)
    np.cumsum(np.repeat(per_bag, bins), out=starts[1:])
    pixel = np.empty(starts[-1], dtype=np.int32)
    weight = np.empty(starts[-1], dtype=along_y.weight.dtype)
    edges = np.flatnonzero((np.diff(taps_y) != 0) | (np.diff(taps_x) != 0)) + 1
    for low, high in zip([0, *edges.tolist()], [*edges.tolist(), boxes.size], strict=True):
        ky, kx = int(taps_y[low]), int(taps_x[low])
        shape = (high - low, pooling.bins_y, pooling.bins_x, ky * kx)
        part = slice(int(starts[low * bins]), int(starts[high * bins]))
        # Both factors are spread over the ky * kx taps first: the innermost loop of the product over
        # bins then runs over ky * kx contiguous numbers and not over kx.
        np.add(
            np.repeat(line[low:high, :, :ky], kx, axis=2)[:, :, None],
            np.tile(along_x.pixel[low:high, :, :kx], (1, 1, ky))[:, None],
            out=pixel[part].reshape(shape),
        )
        np.multiply(
            np.repeat(along_y.weight[low:high, :, :ky], kx, axis=2)[:, :, None],
            np.tile(along_x.weight[low:high, :, :kx], (1, 1, ky))[:, None],
            out=weight[part].reshape(shape),
        )
    return RoiBags(boxes, pixel, weight, starts)
