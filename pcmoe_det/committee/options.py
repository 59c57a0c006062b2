"""How a committee behaves; the defaults are what users get."""

from __future__ import annotations

from dataclasses import dataclass
from typing import get_args

from pcmoe_det.committee.miss_handling import MissHandling
from pcmoe_det.errors import UsageError
from pcmoe_det.models.stand_ins import DEFAULT_STAND_IN_WEIGHT, StandInWeight

__all__ = ["CommitteeOptions"]


@dataclass(frozen=True)
class CommitteeOptions:
    """Settings of a committee.

    Attributes:
        on_miss: What happens to a token whose expert is absent, for all layers or one per layer; None
            is the policy's own choice.
        rerank_bound: See ``handle_misses``.
        stand_in_weight: Gate weight of an expert that stands in for an absent one.
        update_period: Frames between updates of the committee.
        max_swaps_per_frame: Most loads started after one frame.
        synchronous: Load between frames instead of in the background. Deterministic, for evaluation.
        smoothing: Weight of the past in the importance of a stream.
        scene_cut: See ``ImportanceTracker``.
    """

    on_miss: MissHandling | tuple[MissHandling, ...] | None = None
    rerank_bound: float = 0.3
    stand_in_weight: StandInWeight = DEFAULT_STAND_IN_WEIGHT
    update_period: int = 1
    max_swaps_per_frame: int = 2
    synchronous: bool = False
    smoothing: float = 0.8
    scene_cut: float = 0.6

    def __post_init__(self) -> None:
        handlings = self.on_miss if isinstance(self.on_miss, tuple) else (self.on_miss,)
        for handling in handlings:
            if handling is not None and handling not in get_args(MissHandling):
                raise UsageError(
                    f"unknown miss handling {handling!r}; choose {', '.join(get_args(MissHandling))}"
                )
        if self.stand_in_weight not in get_args(StandInWeight):
            allowed = ", ".join(get_args(StandInWeight))
            raise UsageError(f"unknown stand-in weight {self.stand_in_weight!r}; choose {allowed}")
        for name, value in (("rerank_bound", self.rerank_bound), ("scene_cut", self.scene_cut)):
            if not 0 <= value <= 1:
                raise UsageError(f"{name} is {value}; it must be between 0 and 1")
        if not 0 <= self.smoothing < 1:
            raise UsageError(f"smoothing is {self.smoothing}; it must be from 0 to below 1")
        for name, number in (
            ("update_period", self.update_period),
            ("max_swaps_per_frame", self.max_swaps_per_frame),
        ):
            if number < 1:
                raise UsageError(f"{name} is {number}; it must be 1 or more")
