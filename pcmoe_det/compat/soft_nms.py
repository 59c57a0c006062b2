"""Soft-NMS on the CPU, equal to mmcv's operator up to the order of ties.

Bodla et al., "Soft-NMS - Improving Object Detection With One Line of Code", ICCV 2017, algorithm of
figure 2: the best remaining box is taken, and the scores of the others are lowered by a weight that
depends on their overlap with it, instead of being set to zero.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcmoe_det.errors import UsageError

__all__ = ["softnms"]

_FloatArray = npt.NDArray[np.floating[Any]]

NAIVE, LINEAR, GAUSSIAN = 0, 1, 2


def softnms(
    boxes: Tensor,
    scores: Tensor,
    dets: Tensor,
    iou_threshold: float,
    sigma: float,
    min_score: float,
    method: int,
    offset: int,
) -> Tensor:
    """Decay the scores of overlapping boxes; the interface of ``mmcv._ext.softnms``.

    An overlap that is not a number (two boxes of zero area at one place) decays nothing.

    Args:
        boxes: [N, 4] floating, x1 y1 x2 y2 in pixels.
        scores: [N] floating.
        dets: [N, 5] floating, **written in place**: box and decayed score of the boxes that stay, in
            the order in which they were taken; rows behind those are left alone.
        iou_threshold: overlap from which naive and linear decay begin.
        sigma: width of the Gaussian decay.
        min_score: boxes whose score falls below this are dropped.
        method: 0 naive (weight 0), 1 linear (weight 1 - IoU), 2 Gaussian (weight exp(-IoU^2 / sigma)).
        offset: 0 or 1, added to widths and heights.

    Returns:
        [M] int64 on the boxes' device: indices of the boxes that stay.

    Raises:
        UsageError: for a method other than 0, 1 and 2.
    """
    if method not in (NAIVE, LINEAR, GAUSSIAN):
        raise UsageError(f"soft-NMS method {method}; allowed are 0 (naive), 1 (linear) and 2 (gaussian)")
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    # Rows: x1, y1, x2, y2, score, area. One table, so that moving a box is one assignment.
    table = np.empty((6, boxes.shape[0]), dtype=np.float64 if dtype == torch.float64 else np.float32)
    table[:4] = boxes.detach().to("cpu", dtype).numpy().T
    table[4] = scores.detach().to("cpu", dtype).numpy()
    table[5] = (table[2] - table[0] + offset) * (table[3] - table[1] + offset)
    indices = np.arange(boxes.shape[0])
    kind = table.dtype.type
    limits = (kind(iou_threshold), kind(sigma), kind(min_score))
    with np.errstate(invalid="ignore", divide="ignore", over="ignore"):
        taken = _decay_in_order(table, indices, limits=limits, method=method, offset=kind(offset))
    dets[:taken] = torch.from_numpy(table[:5, :taken].T.copy()).to(dets.device, dets.dtype)
    return torch.from_numpy(indices[:taken].copy()).to(boxes.device)


def _decay_in_order(
    table: _FloatArray,
    indices: npt.NDArray[np.intp],
    *,
    limits: tuple[Any, Any, Any],
    method: int,
    offset: Any,
) -> int:
    """Sort and decay ``table`` and ``indices`` in place; returns how many boxes stay."""
    iou_threshold, sigma, min_score = limits
    count = table.shape[1]
    position = 0
    while position < count:
        best = position + int(np.argmax(table[4, position:count]))
        if best != position:
            table[:, [position, best]] = table[:, [best, position]]
            indices[[position, best]] = indices[[best, position]]
        x1, y1, x2, y2, _, area = table[:, position]
        position += 1
        rest = table[:, position:count]
        width = np.maximum(np.minimum(x2, rest[2]) - np.maximum(x1, rest[0]) + offset, 0)
        height = np.maximum(np.minimum(y2, rest[3]) - np.maximum(y1, rest[1]) + offset, 0)
        inter = width * height
        overlap = inter / (area + rest[5] - inter)
        overlap[np.isnan(overlap)] = 0
        if method == GAUSSIAN:
            rest[4] *= np.exp(-(overlap * overlap) / sigma)
        else:
            decayed = overlap >= iou_threshold
            rest[4, decayed] *= 0 if method == NAIVE else 1 - overlap[decayed]
        count = position + _drop_below(rest, indices[position:count], min_score=min_score)
    return count


def _drop_below(rest: _FloatArray, indices: npt.NDArray[np.intp], *, min_score: Any) -> int:
    """Move the columns with a sufficient score to the front; returns how many there are.

    The holes are filled from the back, as the compiled operator does, because that order decides
    which of two equal scores is taken first.
    """
    stays = ~(rest[4] < min_score)
    count = int(stays.sum())
    holes = np.flatnonzero(~stays[:count])
    movers = count + np.flatnonzero(stays[count:])[::-1]
    rest[:, holes] = rest[:, movers]
    indices[holes] = indices[movers]
    return count
