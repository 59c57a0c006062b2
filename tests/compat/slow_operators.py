"""The operators' definitions written as plain loops, one box at a time: the tests' independent truth."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[np.floating]


def _overlap(first: Array, second: Array, offset: int) -> np.floating:
    kind = first.dtype.type
    off = kind(offset)
    width = max(kind(0), min(first[2], second[2]) - max(first[0], second[0]) + off)
    height = max(kind(0), min(first[3], second[3]) - max(first[1], second[1]) + off)
    inter = width * height
    area = (first[2] - first[0] + off) * (first[3] - first[1] + off)
    other = (second[2] - second[0] + off) * (second[3] - second[1] + off)
    with np.errstate(all="ignore"):
        return inter / (area + other - inter)


def slow_nms(boxes: Array, scores: Array, threshold: float, offset: int = 0) -> list[int]:
    """Kept indices; float32 arithmetic, one pair at a time."""
    limit = boxes.dtype.type(threshold)
    kept: list[int] = []
    with np.errstate(all="ignore"):
        for index in np.argsort(-scores, kind="stable").tolist():
            if not any(_overlap(boxes[other], boxes[index], offset) > limit for other in kept):
                kept.append(index)
    return kept


def slow_soft_nms(
    boxes: Array,
    scores: Array,
    method: int,
    *,
    threshold: float = 0.3,
    sigma: float = 0.5,
    least: float = 1e-3,
) -> list[tuple[int, float]]:
    """(index, decayed score) in the order of taking; the lowest index wins among equal scores."""
    left = {index: float(score) for index, score in enumerate(scores)}
    taken = []
    while left:
        best = max(left, key=lambda index: (left[index], -index))
        taken.append((best, left.pop(best)))
        for index in list(left):
            overlap = float(_overlap(boxes[best], boxes[index], 0))
            if method == 2:
                left[index] *= math.exp(-(overlap**2) / sigma)
            elif overlap >= threshold:
                left[index] *= 0 if method == 0 else 1 - overlap
            if left[index] < least:
                del left[index]
    return taken


def _bilinear(plane: Array, y: float, x: float) -> float:
    height, width = plane.shape
    if y < -1 or y > height or x < -1 or x > width:
        return 0.0
    y, x = min(max(y, 0.0), height - 1.0), min(max(x, 0.0), width - 1.0)
    top, left = int(y), int(x)
    bottom, right = min(top + 1, height - 1), min(left + 1, width - 1)
    dy, dx = y - top, x - left
    upper = plane[top, left] * (1 - dx) + plane[top, right] * dx
    lower = plane[bottom, left] * (1 - dx) + plane[bottom, right] * dx
    return float(upper * (1 - dy) + lower * dy)


def slow_roi_align(
    features: Array,
    rois: Array,
    size: tuple[int, int],
    scale: float,
    sampling_ratio: int,
    mode: Literal["avg", "max"],
    aligned: bool,
) -> Array:
    """Pooled features [N, C, *size] in float64; boxes must have samples."""
    out = np.zeros((len(rois), features.shape[1], *size))
    shift = 0.5 if aligned else 0.0
    for box, (image, *corners) in enumerate(rois.tolist()):
        x1, y1, x2, y2 = (corner * scale - shift for corner in corners)
        width, height = x2 - x1, y2 - y1
        if not aligned:
            width, height = max(width, 1.0), max(height, 1.0)
        bin_h, bin_w = height / size[0], width / size[1]
        grid_h, grid_w = sampling_ratio or math.ceil(bin_h), sampling_ratio or math.ceil(bin_w)
        for channel, row, column in np.ndindex(out.shape[1:]):
            samples = [
                _bilinear(
                    features[int(image), channel],
                    y1 + (row + (i + 0.5) / grid_h) * bin_h,
                    x1 + (column + (j + 0.5) / grid_w) * bin_w,
                )
                for i in range(grid_h)
                for j in range(grid_w)
            ]
            out[box, channel, row, column] = max(samples) if mode == "max" else sum(samples) / len(samples)
    return out
