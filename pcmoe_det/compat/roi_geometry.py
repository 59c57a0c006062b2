"""Where RoIAlign samples: from boxes in pixels to sample points on the feature map.

The arithmetic is float32 (float64 for float64 features) whatever the dtype of features and boxes, in
the order in which mmcv 2.1 does it, so that the number of samples and the side of a pixel border on
which a sample falls are the same.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcmoe_det.errors import UsageError

__all__ = ["AxisSpans", "FloatArray", "IntArray", "RoiPooling", "RoiSpans", "locate_rois", "sample_points"]

FloatArray = npt.NDArray[np.floating[Any]]
IntArray = npt.NDArray[np.integer[Any]]

# A box of 4,096 samples in one bin is thousands of times larger than any feature map; without a limit
# one absurd box would allocate all memory.
_MAX_GRID = 4096


@dataclass(frozen=True)
class RoiPooling:
    """The settings of one RoIAlign layer.

    Attributes:
        bins_y: rows of the output.
        bins_x: columns of the output.
        scale: feature map pixels per image pixel.
        sampling_ratio: samples per bin and axis; 0 takes one per feature map pixel.
        aligned: pixel centres lie at half coordinates; False is mmcv's legacy mode.
    """

    bins_y: int
    bins_x: int
    scale: float
    sampling_ratio: int
    aligned: bool

    def __post_init__(self) -> None:
        if self.bins_y < 1 or self.bins_x < 1:
            raise UsageError(
                f"RoIAlign output of {self.bins_y} x {self.bins_x} bins; both must be at least 1"
            )


class AxisSpans(NamedTuple):
    """Boxes along one axis of the feature map, in feature map pixels; all arrays are [N].

    Attributes:
        start: where the first bin begins.
        length: of all bins together, not negative.
        grid: int64, samples per bin; 0 for a box that is not finite or has nothing to sample.
    """

    start: FloatArray
    length: FloatArray
    grid: IntArray

    def take(self, chosen: IntArray) -> AxisSpans:
        """The spans of some boxes, in the order of ``chosen``."""
        return AxisSpans(self.start[chosen], self.length[chosen], self.grid[chosen])


class RoiSpans(NamedTuple):
    """Boxes on the feature map. ``image`` is [N] int64, the index in the batch."""

    image: IntArray
    y: AxisSpans
    x: AxisSpans


def locate_rois(rois: Tensor, *, pooling: RoiPooling, batch: int, dtype: torch.dtype) -> RoiSpans:
    """Project boxes onto the feature map.

    A box of negative size counts as one of size zero, and a box that is not finite as empty; mmcv's
    operators refuse the first and read arbitrary memory for the second.

    Args:
        rois: [N, 5] floating: batch index, x1, y1, x2, y2 in pixels.
        pooling: settings of the layer.
        batch: number of images in the feature tensor.
        dtype: float32 or float64, the precision of the coordinates.

    Raises:
        UsageError: if a batch index is not in 0 .. batch - 1.
    """
    table = rois.detach().to("cpu", dtype).numpy()
    image = np.nan_to_num(table[:, 0], nan=-1.0, posinf=-1.0, neginf=-1.0).astype(np.int64)
    if image.size and (image.min() < 0 or image.max() >= batch):
        wrong = table[(image < 0) | (image >= batch)][0, 0]
        raise UsageError(f"RoIAlign batch index {wrong:g}; allowed are 0 to {batch - 1}")
    kind = table.dtype.type
    with np.errstate(invalid="ignore", over="ignore"):
        corners = table[:, 1:] * kind(pooling.scale)
        if pooling.aligned:
            corners -= kind(0.5)
        finite = np.isfinite(corners).all(axis=1)
        corners[~finite] = 0
        lengths = np.maximum(corners[:, 2:] - corners[:, :2], kind(0 if pooling.aligned else 1))
        finite &= np.isfinite(lengths).all(axis=1)
    lengths[~finite] = 0
    grids = _grids(lengths, finite, pooling=pooling)
    spans = [AxisSpans(corners[:, axis].copy(), lengths[:, axis].copy(), grids[axis]) for axis in (0, 1)]
    return RoiSpans(image, y=spans[1], x=spans[0])


def _grids(
    lengths: FloatArray, finite: npt.NDArray[np.bool_], *, pooling: RoiPooling
) -> tuple[IntArray, IntArray]:
    """Samples per bin along x and y; both 0 where a box has no sample at all."""
    if pooling.sampling_ratio > 0:
        grid = np.where(finite, min(pooling.sampling_ratio, _MAX_GRID), 0)
        return grid, grid
    bins = np.array([pooling.bins_x, pooling.bins_y], dtype=lengths.dtype)
    grids = np.minimum(np.ceil(lengths / bins), _MAX_GRID).astype(np.int64)
    grids[(grids == 0).any(axis=1)] = 0
    return grids[:, 0].copy(), grids[:, 1].copy()


def sample_points(spans: AxisSpans, *, bins: int) -> FloatArray:
    """Coordinates of all samples, [N, bins, largest grid], in feature map pixels.

    Sample s of bin p lies at ``start + p * bin + (s + 0.5) * bin / grid`` (He et al., "Mask R-CNN",
    ICCV 2017, section 3, with evenly spaced samples). Entries from a box's own grid on are padding.
    """
    kind = spans.start.dtype.type
    size = (spans.length / kind(bins))[:, None, None]
    grid = np.maximum(spans.grid, 1)[:, None, None].astype(kind)
    bin_number = np.arange(bins, dtype=kind)[None, :, None]
    sample = np.arange(max(1, int(spans.grid.max(initial=1))), dtype=kind) + kind(0.5)
    points: FloatArray = (spans.start[:, None, None] + bin_number * size) + sample * size / grid
    return points
