"""Baseline: exact results, paid for by loading on every miss."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.committee.miss_handling import MissHandling
from pcmoe_det.committee.policies.base import Policy, register_policy

__all__ = ["OnDemand"]


@register_policy
class OnDemand(Policy):
    """The slots are an LRU cache; a missing expert is loaded before its layer goes on."""

    name = "on_demand"
    summary = "LRU cache of experts; misses are loaded at once (exact, slow)"
    loads_on_miss: ClassVar[bool] = True
    default_on_miss: ClassVar[MissHandling] = "load"

    def initial_residents(self, spec: MoELayerSpec, number: int) -> Sequence[int]:
        """None: the cache fills itself."""
        del spec, number
        return ()
