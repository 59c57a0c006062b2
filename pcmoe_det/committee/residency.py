"""Which experts are in which slots, inside a budget. One generation of this map serves a whole frame."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.slots import ExpertWeights, SlotPool

__all__ = ["Residency"]


class Residency:
    """Slot maps of all layers and the memory behind them.

    Changed only by the thread that runs the model, between frames (a cache that loads on a miss: between
    two experts of a layer). Every mapped byte counts against the budget: residents, slots that are
    being filled, and idle ones.

    Args:
        specs: Every MoE layer, in order.
        budget_bytes: Most bytes mapped at once.
        device: Where the experts run.
    """

    def __init__(self, specs: Sequence[MoELayerSpec], *, budget_bytes: int, device: torch.device) -> None:
        self.specs = tuple(specs)
        self.budget_bytes = budget_bytes
        self.generation = 0
        self._slots: list[dict[int, int]] = [{} for _ in specs]
        self._masks = [torch.zeros(spec.num_experts, dtype=torch.bool, device=device) for spec in specs]
        counts: dict[object, int] = {}
        for spec in specs:
            counts[spec.layout] = counts.get(spec.layout, 0) + spec.num_experts
        # Address space for every expert, resident or on its way in, and one read for a single use; memory
        # only for what is used.
        self._pools = {
            spec.layout: SlotPool(spec.layout, max_slots=counts[spec.layout] + 1, device=device)
            for spec in specs
        }

    def pool(self, layer: int) -> SlotPool:
        """The pool that serves a layer (shared by layers of the same layout)."""
        return self._pools[self.specs[layer].layout]

    @property
    def mapped_bytes(self) -> int:
        """Memory of all slots, whatever they are used for."""
        return sum(pool.mapped_bytes for pool in self._pools.values())

    def take_slot(self, layer: int, *, keep_free_bytes: int = 0) -> int | None:
        """A slot to load into, or None where the budget has no room for one now.

        Idle slots of other layouts are given up for it.

        Args:
            layer: Whose expert is to be loaded.
            keep_free_bytes: Budget that must be left over afterwards (idle slots count as left over).
        """
        pool = self.pool(layer)
        needed = pool.layout.record_bytes
        idle_bytes = sum(other.idle_bytes for other in self._pools.values())
        if self.mapped_bytes - idle_bytes + needed + keep_free_bytes > self.budget_bytes:
            return None
        if not pool.has_idle:
            others = [other for other in self._pools.values() if other is not pool]
            while self.mapped_bytes + needed > self.budget_bytes:
                if not any(other.unmap_idle() for other in others):
                    return None
        return pool.take()

    def give_back_slot(self, layer: int, slot: int) -> None:
        """A slot is no longer used. Memory beyond the budget returns to the system at once."""
        self.pool(layer).give_back(slot)
        while self.mapped_bytes > self.budget_bytes:
            if not any(pool.unmap_idle() for pool in self._pools.values()):
                return

    def release_idle(self) -> None:
        """Return the memory of all idle slots to the system."""
        for pool in self._pools.values():
            while pool.unmap_idle():
                pass

    def weights(self, layer: int, expert: int) -> ExpertWeights | None:
        """Weights of an expert, None while it is not resident."""
        slot = self._slots[layer].get(expert)
        return None if slot is None else self.pool(layer).weights(slot)

    def is_resident(self, key: ExpertKey) -> bool:
        """Whether an expert can be used now."""
        return key.expert in self._slots[key.layer]

    def residents(self, layer: int) -> tuple[int, ...]:
        """Resident experts of a layer, ascending."""
        return tuple(sorted(self._slots[layer]))

    def mask(self, layer: int) -> torch.Tensor:
        """``[num_experts]`` bool on the device; True where resident. Not to be written to."""
        return self._masks[layer]

    def is_complete(self, layer: int) -> bool:
        """Whether every expert of the layer is resident."""
        return len(self._slots[layer]) == self.specs[layer].num_experts

    def put(self, key: ExpertKey, slot: int) -> None:
        """Make an expert resident in a filled slot."""
        self._slots[key.layer][key.expert] = slot
        self._masks[key.layer][key.expert] = True
        self.generation += 1

    def evict(self, key: ExpertKey) -> None:
        """Make an expert non-resident and give its slot back."""
        slot = self._slots[key.layer].pop(key.expert)
        self._masks[key.layer][key.expert] = False
        self.generation += 1
        self.give_back_slot(key.layer, slot)
