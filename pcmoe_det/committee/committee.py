"""The parameter committee: a few important experts in memory instead of all.

PC-MoE / SwapMoE (arXiv 2308.15030) for any detector with our MoE layers. This object ties the parts
together; each has a file of its own: slots and residency (memory), store and loading (disk), importance
and policies (which experts), scheduler (when), miss handling (what an absent expert's tokens do).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from pcmoe_det.committee.accounting import Accounting
from pcmoe_det.committee.budget import divide_budget, smallest_budget
from pcmoe_det.committee.importance import ImportanceTracker, frame_importance
from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.memory import ExpertMemory
from pcmoe_det.committee.miss_handling import MissHandling, handle_misses
from pcmoe_det.committee.options import CommitteeOptions
from pcmoe_det.committee.patching import dense_bytes, patch, restore
from pcmoe_det.committee.policies.base import Policy
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
        self.on_miss = self._on_miss_by_layer()
        self.quotas = self._quotas(budget_bytes)
        if not policy.uses_budget:
            budget_bytes = self.total_bytes
        self.accounting = Accounting(self.specs)
        self.memory = ExpertMemory(
            store,
            budget_bytes=budget_bytes,
            device=device or torch.device("cpu"),
            synchronous=self.options.synchronous,
            cache=policy.loads_on_miss,
            transient_bytes=self._transient_bytes,
            accounting=self.accounting,
            outcome=self._load_ended,
        )
        self.residency = self.memory.residency
        self._scheduler = SwapScheduler(
            policy,
            self.residency,
            quotas=self.quotas,
            update_period=self.options.update_period,
            max_swaps_per_frame=self.options.max_swaps_per_frame,
        )
        self._streams: dict[str, ImportanceTracker] = {}
        self._stream = ""
        self._video: str | None = None
        self._frame = 0
        self._filled = False
        self._frame_importance: list[NDArray[np.float64]] = []
        self._random = torch.Generator().manual_seed(policy.seed)
        self._trace = trace
        self._frame_trace: FrameTrace | None = None
        self.frame_report: dict[str, int] = {}
        # Tokens that wanted each expert in the last frame, by layer; replaced as a whole, for other threads.
        self.frame_tokens: tuple[tuple[int, ...], ...] = ()
        self._tokens_now: list[tuple[int, ...]] = []
        self._device = device or torch.device("cpu")
        self._dense_bytes = 0  # of the model that is patched
        self._before = self.accounting.totals()

    # -- construction ---------------------------------------------------------------------------

    @property
    def _largest_bytes(self) -> int:
        return max(spec.record_bytes for spec in self.specs)

    @property
    def _transient_bytes(self) -> int:
        """Room for an expert that is read for one use, where misses load and it is not a cache."""
        loads = "load" in self.on_miss and self.policy.uses_budget and not self.policy.loads_on_miss
        return self._largest_bytes if loads else 0

    def _quotas(self, budget_bytes: int) -> tuple[int, ...]:
        """Residents per layer; an adapting policy keeps room for the largest record to load into."""
        if not self.policy.uses_budget or budget_bytes >= self.total_bytes:
            return tuple(spec.num_experts for spec in self.specs)
        if self.policy.loads_on_miss:
            self._check_cache(budget_bytes)
            return (0,) * len(self.specs)
        reserve = self._transient_bytes + (self._largest_bytes if self.policy.adapts else 0)
        return divide_budget(self.specs, budget_bytes, reserve_bytes=reserve, least=self.top_k)

    def _check_cache(self, budget_bytes: int) -> None:
        """A cache needs room for the largest expert, whatever it holds."""
        largest = self._largest_bytes
        if budget_bytes < largest:
            raise UsageError(
                f"an expert budget of {budget_bytes} bytes does not hold one expert of {largest} bytes; "
                f"the smallest possible is {smallest_budget(largest, total_bytes=self.total_bytes)}"
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

    @property
    def on_miss_text(self) -> str:
        """As ``--on-miss`` takes it: one name, or that of each layer."""
        return ",".join(self.on_miss if len(set(self.on_miss)) > 1 else self.on_miss[:1])

    # -- patching -------------------------------------------------------------------------------

    @contextmanager
    def patched(self, model: nn.Module) -> Iterator[Committee]:
        """Run ``model`` with this committee inside the block; restores it in every case.

        Raises:
            UsageError: The model's MoE layers are not those of the store, or it is patched already.
        """
        patches = patch(model, self)
        self._dense_bytes = dense_bytes(model)
        try:
            yield self
        finally:
            restore(patches)

    def close(self) -> None:
        """Stop loading and return the memory. The committee cannot be used afterwards."""
        self.memory.close()

    def report(self) -> dict[str, Any]:
        """Counters and settings so far, as plain data for results and summaries."""
        return {
            "summary": self._summary(),
            "policy": self.policy.name,
            "on_miss": self.on_miss_text,
            "budget_bytes": self.residency.budget_bytes,
            "resident_expert_bytes": self.residency.mapped_bytes,
            "expert_bytes": self.total_bytes,
            "model_bytes": self._dense_bytes + self.total_bytes,
            "peak_cuda_bytes": (
                torch.cuda.max_memory_allocated(self._device) if self._device.type == "cuda" else None
            ),
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

    def enter_video(self, video: str, *, keep_residents: bool) -> None:
        """The following frame is of this video of a data set; nothing happens if the last one was, too.

        Each video is a stream of its own, whose importance starts at its first frame.

        Args:
            video: Its name.
            keep_residents: Follow from the residents of the video before, instead of starting anew.
        """
        if video == self._video:
            return
        if self._video is not None:
            if keep_residents:
                self.forget_stream(self._video)
            else:
                self.reset()
        self.select_stream(video)
        self._video = video

    def reset(self) -> None:
        """Start anew: the residents of the beginning, nothing remembered. Counters go on.

        Raises:
            StoreError: A load under way does not end.
        """
        self.wait_for_loads()
        self._scheduler.reset()
        self._streams.clear()
        self._random.manual_seed(self.policy.seed)
        self._filled = False

    def resize(self, budget_bytes: int) -> None:
        """Change the budget at the next frame boundary (call it between frames).

        Shrinking evicts at once, and returns the memory to the system: the least important experts, or those
        that a policy which does not adapt would not have chosen. Growing fills up over the next frames.

        Raises:
            UsageError: The budget is too small; nothing changes.
        """
        quotas = self._quotas(budget_bytes)
        self.wait_for_loads()
        if self.policy.uses_budget:
            self.residency.budget_bytes = budget_bytes
        self.quotas = self._scheduler.quotas = quotas
        self._scheduler.reset()
        self.memory.shrink_cache()
        if not self.policy.loads_on_miss:
            for layer, quota in enumerate(quotas):
                for expert in set(self.residency.residents(layer)) - set(self._staying(layer, quota)):
                    self.memory.evict(ExpertKey(layer, expert))
        self.residency.release_idle()

    def _staying(self, layer: int, quota: int) -> Sequence[int]:
        if not self.policy.adapts:
            return self.policy.initial_residents(self.specs[layer], quota)
        values = self._importance(layer)
        return sorted(self.residency.residents(layer), key=lambda expert: (-values[expert], -expert))[:quota]

    def wait_for_loads(self) -> None:
        """Take in every load under way; for the end of a phase, not inside a live stream.

        Raises:
            StoreError: One does not end.
        """
        self.memory.take_in(frame=self._frame, wait=True)

    # -- one frame ------------------------------------------------------------------------------

    def start_frame(self) -> None:
        """Frame boundary: take in what was loaded. Called by the patched backbone."""
        if not self._filled:
            wanted = [
                list(self.policy.initial_residents(spec, quota))
                for spec, quota in zip(self.specs, self.quotas, strict=True)
            ]
            # What cannot be read now is filled in later; without a budget nobody expects an exchange.
            self.memory.replace_residents(wanted, tolerant=self.policy.uses_budget)
            self._filled = True
        self.memory.take_in(frame=self._frame)
        self._frame_importance = []
        self._tokens_now = []
        if self._trace is not None:
            self._frame_trace = FrameTrace(self._stream, self._frame)

    def route(self, layer: int, tokens: Tensor, routing: Routing, gate: Gate) -> Routing:
        """Measure the unmasked routing of a layer and handle its misses. Called by ``MaskedGate``."""
        spec = self.specs[layer]
        counts = torch.bincount(routing.experts.reshape(-1), minlength=spec.num_experts)
        numbers: list[int] = counts.tolist()
        self._tokens_now.append(tuple(numbers))
        if self.policy.adapts or self._frame_trace is not None:
            importance = frame_importance(
                self.policy.importance, tokens, routing, spec, counts=counts, generator=self._random
            )
            self._frame_importance.append(importance.numpy())
            if self._frame_trace is not None:
                self._frame_trace.add(numbers, importance.tolist())
        complete = self.residency.is_complete(layer)
        self._count(layer, numbers, complete)
        if complete:
            return routing
        return handle_misses(
            self.on_miss[layer],
            routing,
            gate,
            self.residency.mask(layer),
            rerank_bound=self.options.rerank_bound,
            stand_in_weight=self.options.stand_in_weight,
        )

    def run_order(self, layer: int, experts: Sequence[int]) -> list[int]:
        """Experts in the order to run them: residents first."""
        return sorted(experts, key=lambda expert: not self.residency.is_resident(ExpertKey(layer, expert)))

    def weights(self, layer: int, expert: int) -> ExpertWeights:
        """Weights to run an expert with, loaded first where misses load.

        Raises:
            StoreError: It had to be loaded and the store failed.
        """
        return self.memory.weights(ExpertKey(layer, expert))

    def end_frame(self) -> None:
        """Learn from the frame and start the next loads. Called by the patched backbone."""
        self.memory.end_frame()
        cut = False
        if self.policy.adapts:
            cut = self._tracker(self._stream).update(self._frame_importance)
        swaps = self._scheduler.plan(
            self._frame, scene_cut=cut, importance=self._importance, in_flight=self.memory.in_flight
        )
        for swap in swaps:
            if not self.memory.start(swap, frame=self._frame):
                break
            self._scheduler.started(swap)
        if self._trace is not None and self._frame_trace is not None:
            self._trace.write(self._frame_trace)
        self.frame_tokens = tuple(self._tokens_now)
        self.accounting.frame_done()
        after = self.accounting.totals()
        # Since the last frame's end, so that what is read between frames is not lost from the sum.
        self.frame_report = {name: after[name] - self._before[name] for name in FRAME_COUNTS}
        self._before = after
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

    def _count(self, layer: int, counts: Sequence[int], complete: bool) -> None:
        entry = self.accounting.layers[layer]
        for expert, number in enumerate(counts):
            if not number:
                continue
            if complete or self.residency.is_resident(ExpertKey(layer, expert)):
                entry.hit_tokens += number
                entry.hit_experts += 1
            else:
                entry.miss_tokens += number
                entry.miss_experts += 1

    def _load_ended(self, key: ExpertKey, succeeded: bool) -> None:
        if succeeded:
            self._scheduler.succeeded(key)
        else:
            self._scheduler.failed(key, self._frame)
