"""PC-MoE's parameter committee: the experts that matter to the video now."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import ClassVar, get_args

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.committee.importance import ImportanceKind
from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.committee.policies.base import Policy, Swap, heaviest, register_policy
from pcmoe_det.errors import UsageError

__all__ = ["ParameterCommittee"]


@register_policy
class ParameterCommittee(Policy):
    """Keeps the most important experts and follows the video (SwapMoE, arXiv 2308.15030, section 4).

    Args:
        importance: ``eq1`` (the paper's) or ``counts`` (tokens per expert), or the controls
            ``magnitude`` and ``random``.
        margin: A challenger replaces an incumbent when its importance is more than ``1 + margin``
            times the incumbent's; keeps two nearly equal experts from taking turns.
        seed: Of the control ``random``.

    Raises:
        UsageError: Names the option and what it may be.
    """

    name = "pcmoe"
    summary = "the most important experts for the video now, swapped in the background"
    adapts: ClassVar[bool] = True

    def __init__(self, *, importance: ImportanceKind = "eq1", margin: float = 0.1, seed: int = 0) -> None:
        super().__init__(seed=seed)
        if importance not in get_args(ImportanceKind):
            allowed = ", ".join(get_args(ImportanceKind))
            raise UsageError(f"the policy's importance is {importance!r}; choose one of {allowed}")
        if not isinstance(margin, (int, float)) or not 0 <= margin < math.inf:
            raise UsageError(f"the policy's margin is {margin!r}; it must be a number from 0")
        self.importance = importance
        self.margin = margin

    def initial_residents(self, spec: MoELayerSpec, number: int) -> Sequence[int]:
        """The heaviest: before the first frame nothing else is known."""
        return heaviest(spec, number)

    def wanted_swaps(
        self, layer: int, importance: NDArray[np.float64], residents: Sequence[int]
    ) -> list[Swap]:
        """Pair the best challengers with the weakest incumbents while each pair is worth a swap."""
        inside = sorted(residents, key=lambda expert: (importance[expert], expert))
        outside = sorted(
            set(range(len(importance))) - set(residents), key=lambda expert: (-importance[expert], expert)
        )
        swaps = []
        for incoming, outgoing in zip(outside, inside, strict=False):
            if not importance[incoming] > (1.0 + self.margin) * importance[outgoing]:
                break
            swaps.append(Swap(layer, incoming=incoming, outgoing=outgoing))
        return swaps
