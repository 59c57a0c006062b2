"""The parameter committee: a few important experts in memory instead of all.

PC-MoE / SwapMoE (arXiv 2308.15030) for any detector with our MoE layers. This object ties the parts
together; each has a file of its own: slots and residency (memory), store and loading (disk), importance
and policies (which experts), scheduler (when), miss handling (what an absent expert's tokens do).
"""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcmoe_det.committee.accounting import Accounting
from pcmoe_det.committee.budget import divide_budget
from pcmoe_det.committee.importance import ImportanceTracker, frame_importance
from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.loading import BackgroundLoader, ImmediateLoader, Load, Loader
from pcmoe_det.committee.miss_handling import MissHandling, handle_misses
from pcmoe_det.committee.options import CommitteeOptions
from pcmoe_det.committee.patching import patch, restore
from pcmoe_det.committee.policies.base import Policy, Swap
from pcmoe_det.committee.residency import Residency
from pcmoe_det.committee.scheduler import SwapScheduler
from pcmoe_det.committee.slots import ExpertWeights
from pcmoe_det.committee.store import ExpertStore
from pcmoe_det.committee.trace import FrameTrace, TraceWriter
from pcmoe_det.errors import UsageError
from pcmoe_det.models.gates import Gate, Routing

__all__ = ["FRAME_COUNTS", "Committee"]

FRAME_COUNTS = ("hit_tokens", "miss_tokens", "swaps", "bytes_read")
"""What ``Committee.frame_report`` says of each frame, beside the resident bytes."""


class Committee:
    """Experts of one detector under a budget.

    One thread runs the model and calls everything here. Frames are bounded by the patched backbone: what
    changes, changes before its forward pass, and stays until the next.

    Args:
        store: Where experts are read from.
        policy: Which experts are resident.
        budget_bytes: Most bytes of experts in memory: residents, the room to load into, and idle slots.
        options: See ``CommitteeOptions``.
        device: Where the experts run.
        top_k: Experts per token of the gates; the fewest residents of a layer.
        trace: Receives each frame's routing, if wanted.

    Raises:
        UsageError: The budget is too small; names the smallest that can be.
    """

    def __init__(
        self,
        store: ExpertStore,
        *,
        policy: Policy,
        budget_bytes: int,
        options: CommitteeOptions | None = None,
        device: torch.device | None = None,
        top_k: int = 1,
        trace: TraceWriter | None = None,
    ) -> None:
        self.store = store
        self.policy = policy
        self.options = options or CommitteeOptions()
        self.specs: tuple[MoELayerSpec, ...] = tuple(store.layers)
        self.total_bytes = sum(spec.expert_bytes for spec in self.specs)
        self.top_k = top_k
        self.quotas = self._quotas(budget_bytes)
        if not policy.uses_budget:
            budget_bytes = self.total_bytes
        self.on_miss = self._on_miss_by_layer()
        self.residency = Residency(
            self.specs, budget_bytes=budget_bytes, device=device or torch.device("cpu")
        )
        self.accounting = Accounting(self.specs)
        self._scheduler = SwapScheduler(
            policy,
            self.residency,
            quotas=self.quotas,
            update_period=self.options.update_period,
            max_swaps_per_frame=self.options.max_swaps_per_frame,
        )
        self._loader: Loader = ImmediateLoader(store) if self.options.synchronous else BackgroundLoader(store)
        self._in_flight: list[tuple[ExpertKey, int | None]] = []
        self._streams: dict[str, ImportanceTracker] = {}
        self._stream = ""
        self._frame = 0
        self._filled = False
        self._lru: OrderedDict[ExpertKey, None] = OrderedDict()
        self._frame_importance: list[NDArray[np.float64]] = []
        self._trace = trace
        self._frame_trace: FrameTrace | None = None
        self.frame_report: dict[str, int] = {}
        self._before = self.accounting.totals()

    # -- construction ---------------------------------------------------------------------------

    def _quotas(self, budget_bytes: int) -> tuple[int, ...]:
        """Residents per layer; an adapting policy keeps room for the largest record to load into."""
        if not self.policy.uses_budget or budget_bytes >= self.total_bytes:
            return tuple(spec.num_experts for spec in self.specs)
        if self.policy.loads_on_miss:
            self._check_cache(budget_bytes)
            return (0,) * len(self.specs)
        reserve = max(spec.layout.record_bytes for spec in self.specs) if self.policy.adapts else 0
        return divide_budget(self.specs, budget_bytes, reserve_bytes=reserve, least=self.top_k)

    def _check_cache(self, budget_bytes: int) -> None:
        """A cache needs room for the largest expert, whatever it holds."""
        largest = max(spec.layout.record_bytes for spec in self.specs)
        if budget_bytes < largest:
            raise UsageError(
                f"an expert budget of {budget_bytes} bytes does not hold one expert of {largest} bytes; "
                f"the smallest possible is {largest / self.total_bytes:.3f} of all expert bytes"
            )

    def _on_miss_by_layer(self) -> tuple[MissHandling, ...]:
        wanted = self.options.on_miss
        if self.policy.loads_on_miss or wanted is None:
            return (self.policy.default_on_miss,) * len(self.specs)
        if isinstance(wanted, tuple):
            if len(wanted) != len(self.specs):
                raise UsageError(
                    f"{len(wanted)} miss handlings for {len(self.specs)} MoE layers; give one or all"
                )
            return wanted
        return (wanted,) * len(self.specs)

    # -- patching -------------------------------------------------------------------------------

    @contextmanager
    def patched(self, model: nn.Module) -> Iterator[Committee]:
        """Run ``model`` with this committee inside the block; restores it in every case.

        Raises:
            UsageError: The model's MoE layers are not those of the store, or it is patched already.
        """
        patches = patch(model, self)
        try:
            yield self
        finally:
            restore(patches)

    def close(self) -> None:
        """Stop loading and return the memory. The committee cannot be used afterwards."""
        self._loader.close()
        for layer in range(len(self.specs)):
            for expert in self.residency.residents(layer):
                self.residency.evict(ExpertKey(layer, expert))
        self.residency.release_idle()

    def report(self) -> dict[str, Any]:
        """Counters and settings so far, as plain data for results and summaries."""
        return {
            "summary": self._summary(),
            "policy": self.policy.name,
            "on_miss": ",".join(dict.fromkeys(self.on_miss)),
            "budget_bytes": self.residency.budget_bytes,
            "resident_expert_bytes": self.residency.mapped_bytes,
            "expert_bytes": self.total_bytes,
            "experts_per_layer": list(self.quotas),
            "store_read_mode": self.store.read_mode,
            **self.accounting.to_json_dict(),
        }

    def _summary(self) -> str:
        counts, mebi = self.accounting, 2**20
        totals = counts.totals()
        choices = totals["hit_tokens"] + totals["miss_tokens"]
        hits = (
            f"{100 * totals['hit_tokens'] / choices:.1f} % of tokens found their expert, " if choices else ""
        )
        return (
            f"committee: {self.policy.name}, {self.residency.mapped_bytes / mebi:.1f} of "
            f"{self.total_bytes / mebi:.1f} MiB of experts in memory "
            f"(budget {self.residency.budget_bytes / mebi:.1f}), "
            f"{hits}{totals['swaps']} swaps, {counts.bytes_read / mebi:.1f} MiB read"
            + (f", {counts.failed_loads} loads failed" if counts.failed_loads else "")
        )

    # -- streams --------------------------------------------------------------------------------

    def select_stream(self, stream: str) -> None:
        """The following frames are of this stream; importance is kept per stream."""
        self._stream = stream

    def forget_stream(self, stream: str) -> None:
        """A stream ended or lost its camera: what it showed no longer counts."""
        self._streams.pop(stream, None)

    def reset(self) -> None:
        """Start anew: the residents of the beginning, nothing remembered. Counters go on."""
        self._wait_for_loads()
        self._scheduler.reset()
        self._streams.clear()
        self._filled = False

    def resize(self, budget_bytes: int) -> None:
        """Change the budget at the next frame boundary (call it between frames).

        Shrinking evicts the least important experts at once and returns their memory to the system;
        growing fills up over the next frames.

        Raises:
            UsageError: The budget is too small; nothing changes.
        """
        quotas = self._quotas(budget_bytes)
        self._wait_for_loads()
        if self.policy.uses_budget:
            self.residency.budget_bytes = budget_bytes
        self.quotas = self._scheduler.quotas = quotas
        self._scheduler.reset()
        if self.policy.loads_on_miss:
            while self.residency.mapped_bytes > budget_bytes and self._lru:
                self._evict(next(iter(self._lru)))
        else:
            for layer, quota in enumerate(quotas):
                values = self._importance(layer)
                weakest = sorted(self.residency.residents(layer), key=lambda expert: (values[expert], expert))
                for expert in weakest[: max(0, len(weakest) - quota)]:
                    self._evict(ExpertKey(layer, expert))
        self.residency.release_idle()

    # -- one frame ------------------------------------------------------------------------------

    def start_frame(self) -> None:
        """Frame boundary: take in what was loaded. Called by the patched backbone."""
        if not self._filled:
            self._fill()
        self._before = self.accounting.totals()
        self._take_in(self._loader.finished())
        self._frame_importance = []
        if self._trace is not None:
            self._frame_trace = FrameTrace(self._stream, self._frame)

    def route(self, layer: int, tokens: Tensor, routing: Routing, gate: Gate) -> Routing:
        """Measure the unmasked routing of a layer and handle its misses. Called by ``MaskedGate``."""
        spec = self.specs[layer]
        counts = torch.bincount(routing.experts.reshape(-1), minlength=spec.num_experts)
        if self.policy.adapts or self._frame_trace is not None:
            importance = frame_importance(self.policy.importance, tokens, routing, spec, counts=counts)
            self._frame_importance.append(importance.numpy())
            if self._frame_trace is not None:
                self._frame_trace.add(counts.tolist(), importance.tolist())
        complete = self.residency.is_complete(layer)
        self._count(layer, counts, complete)
        if complete:
            return routing
        return handle_misses(
            self.on_miss[layer],
            routing,
            gate,
            self.residency.mask(layer),
            rerank_bound=self.options.rerank_bound,
        )

    def run_order(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Experts in the order to run them: residents first."""
        return sorted(experts, key=lambda expert: not self.residency.is_resident(ExpertKey(layer, expert)))

    def weights(self, layer: int, expert: int) -> ExpertWeights:
        """Weights to run an expert with, loaded first where misses load.

        Raises:
            StoreError: It had to be loaded and the store failed.
        """
        key = ExpertKey(layer, expert)
        found = self.residency.weights(layer, expert)
        if found is None:
            found = self._load_now(key)
        if key in self._lru:
            self._lru.move_to_end(key)
        self.accounting.used(key)
        return found

    def end_frame(self) -> None:
        """Learn from the frame and start the next loads. Called by the patched backbone."""
        cut = False
        if self.policy.adapts:
            cut = self._tracker(self._stream).update(self._frame_importance)
        swaps = self._scheduler.plan(
            self._frame, scene_cut=cut, importance=self._importance, in_flight=self._in_flight
        )
        for swap in swaps:
            if not self._start(swap):
                break
        if self._trace is not None and self._frame_trace is not None:
            self._trace.write(self._frame_trace)
        self.accounting.frame_done()
        after = self.accounting.totals()
        self.frame_report = {name: after[name] - self._before[name] for name in FRAME_COUNTS}
        self.frame_report["resident_expert_bytes"] = self.residency.mapped_bytes
        self._frame += 1

    # -- inside ---------------------------------------------------------------------------------

    def _tracker(self, stream: str) -> ImportanceTracker:
        if stream not in self._streams:
            self._streams[stream] = ImportanceTracker(
                self.specs, smoothing=self.options.smoothing, scene_cut=self.options.scene_cut
            )
        return self._streams[stream]

    def _importance(self, layer: int) -> NDArray[np.float64]:
        """Over all streams: each weighs the same, whatever its frame rate and resolution."""
        values = np.zeros(self.specs[layer].num_experts)
        for tracker in self._streams.values():
            values += tracker.values(layer)
        return values

    def _count(self, layer: int, counts: Tensor, complete: bool) -> None:
        entry = self.accounting.layers[layer]
        numbers = counts.tolist()
        for expert, number in enumerate(numbers):
            if not number:
                continue
            if complete or self.residency.is_resident(ExpertKey(layer, expert)):
                entry.hit_tokens += number
                entry.hit_experts += 1
            else:
                entry.miss_tokens += number
                entry.miss_experts += 1

    def _fill(self) -> None:
        """Load the initial residents, before the first frame and after a reset."""
        for layer, (spec, quota) in enumerate(zip(self.specs, self.quotas, strict=True)):
            wanted = list(self.policy.initial_residents(spec, quota))
            for expert in self.residency.residents(layer):
                if expert not in wanted:
                    self._evict(ExpertKey(layer, expert))
            for expert in wanted:
                key = ExpertKey(layer, expert)
                if not self.residency.is_resident(key):
                    self._load_now(key)
        self._filled = True

    def _load_now(self, key: ExpertKey) -> ExpertWeights:
        slot = self.residency.take_slot(key.layer)
        while slot is None and self._lru:
            self._evict(self._oldest(key.layer))
            slot = self.residency.take_slot(key.layer)
        if slot is None:
            raise RuntimeError(f"no room for {key} within {self.residency.budget_bytes} bytes")
        start = time.perf_counter()
        try:
            self.store.read_into(key, self.residency.pool(key.layer).buffer(slot))
        except BaseException:
            self.residency.give_back_slot(key.layer, slot)
            self.accounting.failed_loads += 1
            raise
        self._make_resident(key, slot, seconds=time.perf_counter() - start)
        found = self.residency.weights(key.layer, key.expert)
        if found is None:
            raise RuntimeError(f"{key} was loaded but is not resident")
        return found

    def _oldest(self, layer: int) -> ExpertKey:
        """Least recently used; of this layer's layout if any, since such a slot needs no remapping."""
        layout = self.specs[layer].layout
        for key in self._lru:
            if self.specs[key.layer].layout == layout:
                return key
        return next(iter(self._lru))

    def _make_resident(self, key: ExpertKey, slot: int, *, seconds: float) -> None:
        self.residency.put(key, slot)
        if self.policy.loads_on_miss:
            self._lru[key] = None
        self.accounting.loaded(
            key, self.specs[key.layer].record_bytes, seconds=seconds, fill=not self._filled
        )

    def _evict(self, key: ExpertKey) -> None:
        self._lru.pop(key, None)
        self.residency.evict(key)
        self.accounting.evicted(key)

    def _start(self, swap: Swap) -> bool:
        """Begin loading; False where there is no room for another load now."""
        slot = self.residency.take_slot(swap.layer)
        if slot is None:
            return False
        key = ExpertKey(swap.layer, swap.incoming)
        self._scheduler.started(swap)
        self._in_flight.append((key, swap.outgoing))
        self._loader.submit(
            Load(
                key,
                slot,
                self.residency.pool(swap.layer).buffer(slot),
                swap.outgoing,
                submitted_at_seconds=time.monotonic(),
                submitted_frame=self._frame,
            )
        )
        return True

    def _take_in(self, loads: Sequence[Load]) -> None:
        for load in loads:
            self._in_flight.remove((load.key, load.outgoing))
            if load.error is not None:
                self.accounting.failed_loads += 1
                self._scheduler.failed(load.key, self._frame)
                self.residency.give_back_slot(load.key.layer, load.slot)
                continue
            self._scheduler.succeeded(load.key)
            if load.outgoing is not None:
                self._evict(ExpertKey(load.key.layer, load.outgoing))
            self._make_resident(load.key, load.slot, seconds=load.seconds)
            self.accounting.swap_wait_seconds += time.monotonic() - load.submitted_at_seconds
            self.accounting.swap_wait_frames += self._frame - load.submitted_frame

    def _wait_for_loads(self) -> None:
        self._take_in(self._loader.finished(wait_for=len(self._in_flight)))
