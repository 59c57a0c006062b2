"""The original MoE: every expert in memory."""

from __future__ import annotations

from collections.abc import Sequence

from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.committee.policies.base import Policy, register_policy

__all__ = ["All"]


@register_policy
class All(Policy):
    """Every expert is resident; the budget is not used."""

    name = "all"
    summary = "every expert in memory (the original MoE; ignores the budget)"
    uses_budget = False

    def initial_residents(self, spec: MoELayerSpec, number: int) -> Sequence[int]:
        """All of them."""
        del number
        return range(spec.num_experts)
