"""Average precision from matches: COCO's 101-point interpolation, for one or many weightings of frames.

A resample of frames with replacement is the same detections with whole-number weights: a frame drawn twice
counts twice. In the sorted list of detections only the cumulative sums change, so a thousand resamples need
neither matching nor sorting again. (Copies of a detection stay neighbours; that can matter only where
detections of different frames have exactly the same score, whose order is arbitrary anyway.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.evaluation.matching import IOU_THRESHOLDS, ClassMatches, MatchTable

__all__ = ["RECALL_POINTS", "AveragePrecisions", "average_precision", "mean_over_classes", "score_table"]

RECALL_POINTS: NDArray[np.float64] = np.linspace(0.0, 1.0, 101)
"""COCO's recalls at which the interpolated precision is averaged."""

_MANY_WEIGHTINGS = 128


@dataclass(frozen=True, slots=True, eq=False)
class AveragePrecisions:
    """Average precision of every class at every IoU threshold, in points (0-100).

    Attributes:
        points: ``[classes, thresholds]`` float64; NaN for a class without any counted label.
        num_boxes: ``[classes]`` int64, counted labels.
    """

    points: NDArray[np.float64]
    num_boxes: NDArray[np.int64]

    @property
    def mAP50(self) -> float:
        """Mean over the classes that have labels, at IoU 0.5; NaN where none has."""
        return float(mean_over_classes(self.points[:, 0]))

    @property
    def mAP(self) -> float:
        """Mean over the IoU thresholds 0.5 to 0.95 and the classes that have labels; NaN where none has."""
        return float(mean_over_classes(self.points.mean(axis=1)))


def score_table(table: MatchTable) -> AveragePrecisions:
    """Average precisions over all frames of the table."""
    once = np.ones((1, len(table)), np.int64)
    thresholds = range(len(IOU_THRESHOLDS))
    return AveragePrecisions(
        points=np.array(
            [average_precision(matches, once, thresholds=thresholds)[0] for matches in table.classes]
        ),
        num_boxes=np.array([matches.truth_counts.sum() for matches in table.classes]),
    )


def average_precision(
    matches: ClassMatches, weights: NDArray[np.int64], *, thresholds: Sequence[int]
) -> NDArray[np.float64]:
    """Average precision of one class for several weightings of the frames.

    Args:
        matches: Of the class.
        weights: ``[weightings, frames]`` int64, how many times each frame counts.
        thresholds: Positions in ``IOU_THRESHOLDS``.

    Returns:
        ``[weightings, len(thresholds)]`` in points; NaN where the weighted frames have no label of the class.
    """
    truth_counts = weights @ matches.truth_counts
    by_frame = np.ascontiguousarray(weights.T, dtype=np.int32)
    result = np.zeros((len(weights), len(thresholds)))
    for column, threshold in enumerate(thresholds):
        counted = ~matches.ignored[threshold]
        hit_positions = np.flatnonzero(matches.hits[threshold][counted])
        if len(hit_positions):
            frames = matches.frames[counted][: hit_positions[-1] + 1]
            found, hits = _cumulative_counts(by_frame, frames, hit_positions)
            for row in range(len(weights)):
                result[row, column] = _interpolated(found[row], hits[row], int(truth_counts[row]))
    result[truth_counts == 0] = np.nan
    return result


def _cumulative_counts(
    by_frame: NDArray[np.int32], frames: NDArray[np.int64], hit_positions: NDArray[np.int64]
) -> tuple[NDArray[np.int32], NDArray[np.int32]]:
    """Detections, and hits among them, down to and including each hit.

    The precision-recall curve is needed at hits only: between two of them recall stands still and
    precision falls, so neither the interpolated precision nor the first point of a recall lies there.

    Args:
        by_frame: ``[all frames, weightings]``.
        frames: ``[detections]``, the frame of each, best detection first, the last one a hit.
        hit_positions: ``[hits]``, ascending positions in ``frames``.

    Returns:
        Two arrays ``[weightings, hits]``.
    """
    num_weightings, num_hits = by_frame.shape[1], len(hit_positions)
    if num_weightings < _MANY_WEIGHTINGS:
        found = np.cumsum(by_frame[frames], axis=0, dtype=np.int32)[hit_positions]
        hits = np.cumsum(by_frame[frames[hit_positions]], axis=0, dtype=np.int32)
        return np.ascontiguousarray(found.T), np.ascontiguousarray(hits.T)
    # One vector over all weightings per detection: the sums over the first axis above write every detection
    # to memory. 25,000 detections, 4,500 hits: 136 ms against 850 ms for 1,000 weightings, even at about 130.
    counts = np.empty((2, num_hits, num_weightings), np.int32)
    running = np.zeros((2, num_weightings), np.int32)
    begin = 0
    for hit, position in enumerate(hit_positions.tolist()):
        for frame in frames[begin : position + 1].tolist():
            running[0] += by_frame[frame]
        running[1] += by_frame[frames[position]]
        counts[:, hit] = running
        begin = position + 1
    return np.ascontiguousarray(counts[0].T), np.ascontiguousarray(counts[1].T)


def _interpolated(found: NDArray[np.int32], hits: NDArray[np.int32], truth_count: int) -> float:
    """AP in points from the counts of one weighting, ``[hits]``."""
    precision = hits / (found + np.spacing(1.0))
    envelope = np.maximum.accumulate(precision[::-1])[::-1]
    reached = np.searchsorted(hits / max(truth_count, 1), RECALL_POINTS)
    reached = reached[reached < len(envelope)]  # recalls that are never reached have precision 0
    return float(100.0 * envelope[reached].sum() / len(RECALL_POINTS))


def mean_over_classes(points: NDArray[np.float64]) -> NDArray[np.float64]:
    """Mean over the first axis that leaves NaN out; NaN where there is nothing else."""
    present = ~np.isnan(points)
    count = present.sum(axis=0)
    total = np.where(present, points, 0.0).sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)
