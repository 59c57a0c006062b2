"""How far a result, or the difference of two results on the same frames, could be chance.

Frames (or whole videos) are drawn with replacement as many times as there are; both results are computed
on the same draw, so that what makes a draw easy or hard for both cancels out. The interval is the
percentile interval of the resampled values (Efron and Tibshirani, *An Introduction to the Bootstrap*,
chapter 13).

Neighbouring frames of a video resemble each other: over frames the interval is then too narrow, over
whole videos it is honest but needs a good number of them. ``Interval.units`` says how many there were.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import DataError, UsageError
from pcmoe_det.evaluation.matching import IOU_THRESHOLDS, MatchTable
from pcmoe_det.evaluation.mean_average_precision import average_precision, mean_over_classes

__all__ = ["Interval", "Quantity", "Unit", "bootstrap_difference", "bootstrap_interval"]

Quantity = Literal["mAP50", "mAP"]
Unit = Literal["frame", "video"]

# Resamples are computed in batches of so many counted labels (temporary arrays of up to 64 MB).
_BATCH_LABELS = 8_000_000


@dataclass(frozen=True, slots=True)
class Interval:
    """A value in points and its bootstrap interval.

    Attributes:
        value: On all frames as they are.
        low: Lower end of the interval.
        high: Upper end of the interval.
        level: Share of resamples inside, 0.95 by default.
        quantity: What was computed.
        unit: What was drawn.
        units: How many of them there are.
        resamples: How many draws.
        seed: Of the draws.
    """

    value: float
    low: float
    high: float
    level: float
    quantity: Quantity
    unit: Unit
    units: int
    resamples: int
    seed: int

    def to_json_dict(self) -> dict[str, float | int | str]:
        """The fields by name."""
        return {name: getattr(self, name) for name in self.__slots__}


def bootstrap_interval(
    table: MatchTable,
    *,
    quantity: Quantity = "mAP50",
    unit: Unit = "frame",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of one result.

    Raises:
        DataError: No class has labels, or there are fewer than two units.
        UsageError: An argument outside its choices.
    """
    draws = _draws(table, unit=unit, resamples=resamples, seed=seed)
    values = np.concatenate([_evaluate(table, weights, quantity) for weights in draws])
    return _interval(values, level=level, quantity=quantity, unit=unit, units=_count(table, unit), seed=seed)


def bootstrap_difference(
    table: MatchTable,
    baseline: MatchTable,
    *,
    quantity: Quantity = "mAP50",
    unit: Unit = "frame",
    resamples: int = 1000,
    seed: int = 0,
    level: float = 0.95,
) -> Interval:
    """The interval of ``table`` minus ``baseline``: negative where ``table`` is worse.

    Args:
        table: One result.
        baseline: Another result on the same frames, in the same order, with the same labels.
        quantity: ``mAP50`` or ``mAP`` (ten thresholds, so ten times the work).
        unit: Draw frames, or whole videos.
        resamples: How many draws.
        seed: Of the draws; the same seed gives the same interval.
        level: Share of the resamples that the interval holds.

    Raises:
        DataError: The two are not of the same frames and labels, no class has labels, or there are fewer
            than two units.
        UsageError: An argument outside its choices.
    """
    _check_paired(table, baseline)
    draws = _draws(table, unit=unit, resamples=resamples, seed=seed)
    values = np.concatenate(
        [_evaluate(table, weights, quantity) - _evaluate(baseline, weights, quantity) for weights in draws]
    )
    return _interval(values, level=level, quantity=quantity, unit=unit, units=_count(table, unit), seed=seed)


def _evaluate(table: MatchTable, weights: NDArray[np.int64], quantity: Quantity) -> NDArray[np.float64]:
    """``[weightings]`` in points."""
    if quantity not in get_args(Quantity):
        raise UsageError(f"quantity is {quantity!r}; choose one of {', '.join(get_args(Quantity))}")
    thresholds = range(len(IOU_THRESHOLDS)) if quantity == "mAP" else range(1)
    points = [
        average_precision(matches, weights, thresholds=thresholds).mean(axis=1) for matches in table.classes
    ]
    return mean_over_classes(np.array(points))


def _draws(table: MatchTable, *, unit: Unit, resamples: int, seed: int) -> Iterator[NDArray[np.int64]]:
    """Batches of ``[weightings, frames]``: the frames as they are first, then the resamples."""
    if unit not in get_args(Unit):
        raise UsageError(f"unit is {unit!r}; choose one of {', '.join(get_args(Unit))}")
    if resamples < 1:
        raise UsageError(f"resamples is {resamples}; at least 1 is needed, 1000 for a 95 % interval")
    units = _count(table, unit)
    if units < 2:
        raise DataError(
            f"a bootstrap over {unit}s needs at least two of them, not {units}"
            + ("; draw frames instead (unit 'frame')" if unit == "video" and len(table) > 1 else "")
        )
    unit_of_frame = np.arange(len(table))
    if unit == "video":
        unit_of_frame = np.unique(table.videos, return_inverse=True)[1]
    generator = np.random.default_rng(seed)
    most_labels = max((int(matches.truth_counts.sum()) for matches in table.classes), default=0)
    batch = max(1, _BATCH_LABELS // max(most_labels, len(table), 1))
    yield np.ones((1, len(table)), np.int64)
    for start in range(0, resamples, batch):
        count = min(batch, resamples - start)
        drawn = generator.multinomial(units, np.full(units, 1.0 / units), size=count)
        yield drawn[:, unit_of_frame]


def _count(table: MatchTable, unit: Unit) -> int:
    return len(table) if unit == "frame" else len(set(table.videos))


def _interval(
    values: NDArray[np.float64], *, level: float, quantity: Quantity, unit: Unit, units: int, seed: int
) -> Interval:
    """From the value on all frames, which comes first, and those of the resamples."""
    if not 0.0 < level < 1.0:
        raise UsageError(f"level is {level}; it is a share between 0 and 1, such as 0.95")
    if np.isnan(values[0]):
        raise DataError(
            "no class has a counted label in these frames, so there is no mAP; "
            "check the labels, and whether teacher labels should be truth"
        )
    # A draw may miss every label where there are very few; it says nothing about the detector.
    drawn = values[1:][~np.isnan(values[1:])]
    low, high = (
        np.quantile(drawn, [(1 - level) / 2, (1 + level) / 2]) if len(drawn) else (values[0], values[0])
    )
    return Interval(
        value=float(values[0]),
        low=float(low),
        high=float(high),
        level=level,
        quantity=quantity,
        unit=unit,
        units=units,
        resamples=len(values) - 1,
        seed=seed,
    )


def _check_paired(table: MatchTable, baseline: MatchTable) -> None:
    if table.class_names != baseline.class_names:
        raise DataError(
            f"the two results have different classes: {table.class_names} and {baseline.class_names}"
        )
    if table.frame_ids != baseline.frame_ids:
        pairs = zip(table.frame_ids, baseline.frame_ids, strict=False)
        where = next((f"{a} and {b}" for a, b in pairs if a != b), "one of them has more")
        raise DataError(
            f"the two results are not of the same frames in the same order: {len(table)} and {len(baseline)} "
            f"frames, first difference: {where}; evaluate both on the same data"
        )
    for name, ours, theirs in zip(table.class_names, table.classes, baseline.classes, strict=True):
        different = np.flatnonzero(ours.truth_counts != theirs.truth_counts)
        if len(different):
            first = int(different[0])
            raise DataError(
                f"the two results do not have the same labels: frame {table.frame_ids[first]} has "
                f"{ours.truth_counts[first]} and {theirs.truth_counts[first]} counted labels of {name}; "
                "evaluate both with the same label file and teacher_labels"
            )
