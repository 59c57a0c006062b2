"""Baseline: a random committee that never changes."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.committee.policies.base import Policy, register_policy

__all__ = ["RandomKeep"]


@register_policy
class RandomKeep(Policy):
    """Experts drawn once with ``seed``."""

    name = "random_keep"
    summary = "experts drawn at random once (baseline)"

    def initial_residents(self, spec: MoELayerSpec, number: int) -> Sequence[int]:
        """Drawn without replacement, independently per layer."""
        generator = np.random.default_rng((self.seed, spec.index))
        return sorted(generator.choice(spec.num_experts, size=number, replace=False).tolist())
