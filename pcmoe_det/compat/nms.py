"""Greedy non-maximum suppression, with the decisions of mmcv's operator.

Every overlap that decides anything is computed in float32 in mmcv 2.1's order of operations,
``inter / (area_i + area_j - inter) > threshold``, so the kept boxes are the same to the last one. The
speed comes from not computing most of the others, in two ways that suit opposite inputs:

- *Sweep*. Two boxes overlap by more than t only if their extents along each axis do. Boxes sorted by
  their left (or upper) border need comparing only with those that begin within the next (1 - t) of
  their width. Good where boxes are spread out; the class offsets of ``batched_nms`` separate classes.
- *Blocks*. The best boxes are resolved among themselves, then suppress the rest, which is compacted.
  Good where many boxes lie on few objects, because most vanish in the first step.

Which one continues is decided after every block from the number of boxes that it removed. 5,000 boxes
spread over 1280 x 800 take about 10 ms on one core, 5,000 on 30 objects 2-9 ms, where mmcv's compiled
operator takes 33 ms.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from pcmoe_det.compat import torchvision_kernels

__all__ = ["nms"]

_FloatArray = npt.NDArray[np.floating[Any]]
_IndexArray = npt.NDArray[np.intp]
_BoolArray = npt.NDArray[np.bool_]

_BLOCK = 128
# A pair costs about four times as much in the sweep (gathered) as in a block (contiguous).
_SWEEP_COST = 4
_CHUNK_PAIRS = 1 << 15
# The sweep leaves out pairs by exact arithmetic; this margin covers the rounding of the float32 overlap.
_MARGIN = 1e-3
_TINY_AREA = 1e-30


def nms(boxes: Tensor, scores: Tensor, iou_threshold: float, offset: int) -> Tensor:
    """Indices of the boxes that no better box overlaps; the interface of ``mmcv._ext.nms``.

    Boxes with a coordinate that is not finite overlap nothing and stay, as in mmcv.

    Args:
        boxes: [N, 4] floating, x1 y1 x2 y2 in pixels; float64 is computed as such, all else in float32.
        scores: [N] floating. Equal scores keep the order of their indices.
        iou_threshold: a box is dropped if its overlap with a kept box is larger than this.
        offset: 0 or 1, added to widths and heights.

    Returns:
        [M] int64 on the boxes' device, by falling score.
    """
    if boxes.shape[0] == 0:
        return boxes.new_empty((0,), dtype=torch.long)
    dtype = torch.float64 if boxes.dtype == torch.float64 else torch.float32
    boxes, scores = boxes.detach(), scores.detach()
    kernels = torchvision_kernels.cuda_kernels(boxes)
    if kernels is not None:
        return torchvision_kernels.nms(
            kernels, boxes.to(dtype), scores.to(dtype), iou_threshold=iou_threshold, offset=offset
        )
    order = torch.sort(scores.to("cpu"), dim=0, descending=True, stable=True).indices
    table = np.ascontiguousarray(boxes.to("cpu", dtype).numpy()[order.numpy()].T)
    kind = table.dtype.type
    problem = _Problem(threshold=kind(iou_threshold), offset=kind(offset))
    # Infinite boxes give infinity minus infinity; such overlaps compare as false, which is meant.
    with np.errstate(invalid="ignore", divide="ignore", over="ignore", under="ignore"):
        kept = _suppress(table, problem)
    return order[torch.from_numpy(kept)].to(boxes.device)


class _Problem(NamedTuple):
    """Threshold and offset in the dtype of the boxes."""

    threshold: Any
    offset: Any


def _suppress(corners: _FloatArray, problem: _Problem) -> _BoolArray:
    """Which boxes stay; ``corners`` is [4, N], sorted by falling score."""
    width = corners[2] - corners[0] + problem.offset
    height = corners[3] - corners[1] + problem.offset
    boxes = np.concatenate((corners, (width * height)[None]))
    count = boxes.shape[1]
    kept = np.zeros(count, dtype=np.bool_)
    alive = np.arange(count)
    candidates, axis = np.inf, 0
    if _sweep_is_exact(boxes[4], width, height, problem):
        totals = [int(_window(boxes, axis, problem)[1].sum()) for axis in (0, 1)]
        axis = int(np.argmin(totals))
        candidates = totals[axis]
    if candidates * _SWEEP_COST <= count * min(count, _BLOCK):
        return _sweep(boxes, axis, problem)
    while alive.size:
        before = alive.size
        survivors = _resolve_block(boxes[:, :_BLOCK], problem)
        kept[alive[:_BLOCK][survivors]] = True
        stays = ~_suppressed_by(boxes[:, :_BLOCK][:, survivors], boxes[:, _BLOCK:], problem)
        alive = alive[_BLOCK:][stays]
        boxes = np.ascontiguousarray(boxes[:, _BLOCK:][:, stays])
        # Pairs left for blocks that remove as many boxes as this one, against pairs left for a sweep.
        block_pairs = int(survivors.sum()) * alive.size**2 / (2 * (before - alive.size))
        if candidates * (alive.size / count) ** 2 * _SWEEP_COST < block_pairs:
            kept[alive] = _sweep(boxes, axis, problem)
            break
    return kept


def _overlap_exceeds(first: _FloatArray, second: _FloatArray, problem: _Problem) -> _BoolArray:
    """Whether boxes overlap by more than the threshold; [5, ...] tables of corners and area, broadcast."""
    inter = np.minimum(first[2], second[2])
    other = np.maximum(first[0], second[0])
    inter -= other
    inter += problem.offset
    np.maximum(inter, 0, out=inter)
    height = np.minimum(first[3], second[3])
    np.maximum(first[1], second[1], out=other)
    height -= other
    height += problem.offset
    np.maximum(height, 0, out=height)
    inter *= height
    np.add(first[4], second[4], out=other)
    other -= inter
    np.divide(inter, other, out=inter)
    exceeds: _BoolArray = inter > problem.threshold
    return exceeds


def _resolve_block(block: _FloatArray, problem: _Problem) -> _BoolArray:
    exceeds = np.triu(_overlap_exceeds(block[:, :, None], block[:, None, :], problem), 1)
    survives = np.ones(block.shape[1], dtype=np.bool_)
    for index in np.flatnonzero(exceeds.any(axis=1)):
        if survives[index]:
            survives &= ~exceeds[index]
    return survives


def _suppressed_by(kept: _FloatArray, rest: _FloatArray, problem: _Problem) -> _BoolArray:
    suppressed = np.zeros(rest.shape[1], dtype=np.bool_)
    # 128 x 512 numbers stay in the second-level cache.
    for start in range(0, rest.shape[1], 512):
        part = rest[:, None, start : start + 512]
        suppressed[start : start + 512] = _overlap_exceeds(kept[:, :, None], part, problem).any(axis=0)
    return suppressed


def _sweep_is_exact(area: _FloatArray, width: _FloatArray, height: _FloatArray, problem: _Problem) -> bool:
    """Whether rounding is small against the sweep's margin for every box of positive size.

    It is not where areas underflow, and where the offset is added to a size that nearly cancels it.
    Thresholds near or below zero keep pairs that hardly or not touch.
    """
    positive = (width > 0) & (height > 0)
    least = np.minimum(width, height).min(where=positive, initial=np.inf)
    small = area.min(where=positive, initial=np.inf) < _TINY_AREA
    return bool(problem.threshold >= _MARGIN and not small and (problem.offset == 0 or least >= 0.5))


def _window(boxes: _FloatArray, axis: int, problem: _Problem) -> tuple[_IndexArray, _IndexArray]:
    """Boxes by their border along ``axis``, and how many of the next ones each may overlap."""
    order = np.argsort(boxes[axis], kind="stable")
    border = boxes[axis][order].astype(np.float64)
    extent = boxes[axis + 2][order].astype(np.float64) - border + float(problem.offset)
    reach = border + (1 - float(problem.threshold) * (1 - _MARGIN)) * extent
    counts = np.searchsorted(border, reach, side="right") - np.arange(1, order.size + 1)
    return order, np.maximum(counts, 0)


def _sweep(boxes: _FloatArray, axis: int, problem: _Problem) -> _BoolArray:
    """Which boxes stay, from all pairs within each other's window along ``axis``."""
    order, counts = _window(boxes, axis, problem)
    boxes = np.ascontiguousarray(boxes[:, order])
    across = 1 - axis
    ends = np.cumsum(counts)
    # Pair number k of all pairs joins box i with box k + shift[i].
    shift = np.arange(1, order.size + 1) - (ends - counts)
    better, worse = [], []
    low = 0
    while low < order.size:
        done = int(ends[low - 1]) if low else 0
        high = max(low + 1, int(np.searchsorted(ends, done + _CHUNK_PAIRS, side="right")))
        repeats = counts[low:high]
        second = np.repeat(shift[low:high], repeats) + np.arange(done, ends[high - 1])
        reach = np.repeat(boxes[across + 2, low:high], repeats)
        np.minimum(reach, boxes[across + 2].take(second, mode="clip"), out=reach)
        reach -= np.maximum(
            np.repeat(boxes[across, low:high], repeats), boxes[across].take(second, mode="clip")
        )
        reach += problem.offset
        meets = np.flatnonzero(reach > 0)
        first = np.repeat(np.arange(low, high), repeats).take(meets)
        second = second.take(meets)
        exceeds = _overlap_exceeds(
            boxes.take(first, axis=1, mode="clip"), boxes.take(second, axis=1, mode="clip"), problem
        )
        ranks = order.take(first[exceeds]), order.take(second[exceeds])
        better.append(np.minimum(*ranks))
        worse.append(np.maximum(*ranks))
        low = high
    return _resolve_pairs(np.concatenate(better), np.concatenate(worse), count=order.size)


def _resolve_pairs(better: _IndexArray, worse: _IndexArray, *, count: int) -> _BoolArray:
    """Which boxes stay, from all pairs of ranks that exclude each other."""
    kept = np.ones(count, dtype=np.bool_)
    # Vectorised rounds: what no box is better than stays, so what it overlaps goes, with its pairs.
    # Long chains of overlaps would need a round per link; the loop below costs 50 ns a pair.
    for _ in range(16):
        if better.size < 2000:
            break
        contested = np.zeros(count, dtype=np.bool_)
        contested[worse] = True
        certain = ~contested.take(better)
        kept[worse[certain]] = False
        open_pairs = ~certain & kept.take(better) & kept.take(worse)
        better, worse = better[open_pairs], worse[open_pairs]
    if better.size:
        order = np.argsort(better, kind="stable")
        flags = bytearray(kept.tobytes())
        for first, second in zip(better[order].tolist(), worse[order].tolist(), strict=True):
            if flags[first]:
                flags[second] = 0
        kept = np.frombuffer(flags, dtype=np.bool_)
    return kept
