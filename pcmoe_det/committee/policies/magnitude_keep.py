"""Baseline: the heaviest experts, whatever the video shows."""

from __future__ import annotations

from collections.abc import Sequence

from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.committee.policies.base import Policy, heaviest, register_policy

__all__ = ["MagnitudeKeep"]


@register_policy
class MagnitudeKeep(Policy):
    """Experts with the largest Frobenius norm."""

    name = "magnitude_keep"
    summary = "the experts with the largest weights (baseline)"

    def initial_residents(self, spec: MoELayerSpec, number: int) -> Sequence[int]:
        """By norm; ties by index."""
        return heaviest(spec, number)
