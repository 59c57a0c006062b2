"""When experts are exchanged: updates are due now and then, and spread over frames."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Sequence
from itertools import zip_longest

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.committee.layers import ExpertKey
from pcmoe_det.committee.policies.base import Policy, Swap
from pcmoe_det.committee.residency import Residency

__all__ = ["LONGEST_RETRY_FRAMES", "SwapScheduler"]

LONGEST_RETRY_FRAMES = 256
"""A load that failed is tried again after 1, 2, 4, ... frames, but no later than this."""


class SwapScheduler:
    """Decides which experts to load after a frame.

    Every ``update_period`` frames after a reset, and at a scene cut, the policy is asked about each layer;
    what it wants is carried out one layer after the other, at most ``max_swaps_per_frame`` a frame. Layers
    that hold fewer experts than their quota (after a failed load, or after the budget grew) are filled first.

    Args:
        policy: Asked what to swap.
        residency: What is resident.
        quotas: Resident experts per layer.
        update_period: Frames between updates.
        max_swaps_per_frame: Most loads started after one frame.
    """

    def __init__(
        self,
        policy: Policy,
        residency: Residency,
        *,
        quotas: Sequence[int],
        update_period: int,
        max_swaps_per_frame: int,
    ) -> None:
        self.policy = policy
        self.residency = residency
        self.quotas = tuple(quotas)
        self.update_period = update_period
        self.max_swaps_per_frame = max_swaps_per_frame
        self._pending: deque[Swap] = deque()
        self._first_layer = 0
        self._first_frame: int | None = None
        self._retry_at: dict[ExpertKey, int] = {}
        self._failures: dict[ExpertKey, int] = {}

    def reset(self) -> None:
        """Forget what is pending and what failed; updates are counted from the next frame on."""
        self._pending.clear()
        self._retry_at.clear()
        self._failures.clear()
        self._first_layer = 0
        self._first_frame = None

    def failed(self, key: ExpertKey, frame: int) -> None:
        """A load failed: do not try it again at once."""
        failures = self._failures[key] = self._failures.get(key, 0) + 1
        self._retry_at[key] = frame + min(2 ** (failures - 1), LONGEST_RETRY_FRAMES)

    def succeeded(self, key: ExpertKey) -> None:
        """A load succeeded: its failures are forgotten."""
        self._failures.pop(key, None)
        self._retry_at.pop(key, None)

    def plan(
        self,
        frame: int,
        *,
        scene_cut: bool,
        importance: Callable[[int], NDArray[np.float64]],
        in_flight: Sequence[tuple[ExpertKey, int | None]],
    ) -> list[Swap]:
        """Swaps to start now.

        Args:
            frame: Number of the frame just run.
            scene_cut: Whether it looked like one.
            importance: ``[num_experts]`` of a layer.
            in_flight: Loads under way: the expert, and the one that leaves for it.
        """
        coming = {key for key, _ in in_flight}
        leaving = {ExpertKey(key.layer, out) for key, out in in_flight if out is not None}
        if self._first_frame is None:
            self._first_frame = frame
        due = (frame - self._first_frame) % self.update_period == 0
        if self.policy.adapts and (scene_cut or due):
            self._pending = deque(self._update(importance))
        chosen: list[Swap] = []
        for swap in (*self._fills(frame, importance, coming), *self._pending):
            if len(chosen) == self.max_swaps_per_frame:
                break
            incoming = ExpertKey(swap.layer, swap.incoming)
            if self.residency.is_resident(incoming) or incoming in coming:
                continue
            if self._retry_at.get(incoming, 0) > frame:
                continue
            if swap.outgoing is not None:
                outgoing = ExpertKey(swap.layer, swap.outgoing)
                if not self.residency.is_resident(outgoing) or outgoing in leaving:
                    continue
                leaving.add(outgoing)
            coming.add(incoming)
            chosen.append(swap)
        return chosen

    def started(self, swap: Swap) -> None:
        """A swap of ``plan`` is under way; those that are not stay pending."""
        if swap in self._pending:
            self._pending.remove(swap)
            self._first_layer = (swap.layer + 1) % len(self.quotas)

    def _update(self, importance: Callable[[int], NDArray[np.float64]]) -> list[Swap]:
        """What the policy wants now: of each layer in turn one swap, beginning after the last one served.

        Always beginning with the first layer would starve the last ones where every frame brings new wishes.
        """
        number = len(self.quotas)
        by_layer = [
            self.policy.wanted_swaps(layer, importance(layer), self.residency.residents(layer))
            for layer in (*range(self._first_layer, number), *range(self._first_layer))
        ]
        return [swap for swaps in zip_longest(*by_layer) for swap in swaps if swap is not None]

    def _fills(
        self, frame: int, importance: Callable[[int], NDArray[np.float64]], coming: set[ExpertKey]
    ) -> list[Swap]:
        fills: list[Swap] = []
        if self.policy.loads_on_miss:
            return []
        for layer, quota in enumerate(self.quotas):
            residents = self.residency.residents(layer)
            missing = quota - len(residents) - sum(key.layer == layer for key in coming)
            if missing <= 0:
                continue
            spec = self.residency.specs[layer]
            wanted = list(self.policy.initial_residents(spec, quota))
            if self.policy.adapts:
                values = importance(layer)
                wanted = sorted(range(spec.num_experts), key=lambda expert: (-values[expert], expert))
            # One that cannot be read now must not keep the place from the next best.
            absent = [
                expert
                for expert in wanted
                if expert not in residents
                and ExpertKey(layer, expert) not in coming
                and self._retry_at.get(ExpertKey(layer, expert), 0) <= frame
            ]
            fills.extend(Swap(layer, incoming=expert, outgoing=None) for expert in absent[:missing])
        return fills
