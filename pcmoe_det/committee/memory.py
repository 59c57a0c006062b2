"""Brings experts into slots and out of them, and counts each."""

from __future__ import annotations

import logging
import time
from collections import OrderedDict
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from pcmoe_det.committee.accounting import Accounting, LoadReason
from pcmoe_det.committee.layers import ExpertKey
from pcmoe_det.committee.loading import LONGEST_LOAD_SECONDS, BackgroundLoader, ImmediateLoader, Load, Loader
from pcmoe_det.committee.policies.base import Swap
from pcmoe_det.committee.residency import Residency
from pcmoe_det.committee.slots import ExpertWeights
from pcmoe_det.committee.store import ExpertStore, StoreError, may_pass

__all__ = ["ExpertMemory"]

_logger = logging.getLogger(__name__)

# A miss that must load has no stand-in: the frame waits a little for a disk that comes back, then fails.
_MISS_RETRY_SECONDS = (0.05, 0.2, 1.0)


class ExpertMemory:
    """Experts in memory, between a store and the kernel.

    Called by the thread that runs the model. Residents change at frame boundaries only, except in a
    cache, which changes between two experts of a layer.

    Args:
        store: Where experts are read from.
        budget_bytes: Most bytes of slots.
        device: Where the experts run.
        synchronous: Read when asked instead of in the background.
        cache: Misses stay resident, and the least recently used expert makes room for them.
        transient_bytes: Kept free for experts that are read for one use (misses outside a cache).
        accounting: Counts.
        outcome: Called with each background load's expert and whether it succeeded.
        sleep: Waits seconds before a read is tried again.
    """

    def __init__(
        self,
        store: ExpertStore,
        *,
        budget_bytes: int,
        device: torch.device,
        synchronous: bool,
        cache: bool,
        transient_bytes: int,
        accounting: Accounting,
        outcome: Callable[[ExpertKey, bool], None],
        sleep: Callable[[float], object] = time.sleep,
    ) -> None:
        self.store = store
        self.residency = Residency(store.layers, budget_bytes=budget_bytes, device=device)
        self._device = device
        self.in_flight: list[tuple[ExpertKey, int | None]] = []
        self.transient_bytes = transient_bytes
        self._loader: Loader = ImmediateLoader(store) if synchronous else BackgroundLoader(store)
        self._cache = cache
        self._recent: OrderedDict[ExpertKey, None] = OrderedDict()
        self._transient: tuple[int, int] | None = None
        self._accounting = accounting
        self._outcome = outcome
        self._sleep = sleep

    def close(self) -> None:
        """Stop loading and return all memory."""
        self._loader.close()
        self._end_transient()
        for spec in self.store.layers:
            for expert in self.residency.residents(spec.index):
                self.residency.evict(ExpertKey(spec.index, expert))
        self.residency.release_idle()

    def replace_residents(self, wanted: Sequence[Sequence[int]], *, tolerant: bool) -> None:
        """Make exactly these experts resident, per layer, at once.

        Args:
            wanted: Experts of each layer.
            tolerant: Leave an expert out that cannot be read now (logged and counted). One whose record is
                changed, cut or missing will not be whole later, and is refused all the same.

        Raises:
            StoreError: A read failed, and ``tolerant`` is False or waiting does not help.
        """
        for layer, experts in enumerate(wanted):
            for expert in self.residency.residents(layer):
                if expert not in experts:
                    self.evict(ExpertKey(layer, expert))
        for layer, experts in enumerate(wanted):
            for expert in experts:
                key = ExpertKey(layer, expert)
                if self.residency.is_resident(key):
                    continue
                try:
                    slot = self._read(key, reason="fill")
                except StoreError as error:
                    if not (tolerant and may_pass(error)):
                        raise
                    _logger.warning("an expert was not loaded: %s", error)
                    continue
                self.residency.put(key, slot)

    def start(self, swap: Swap, *, frame: int) -> bool:
        """Begin to load ``swap.incoming``; False where there is no room for another load now."""
        slot = self.residency.take_slot(swap.layer, keep_free_bytes=self.transient_bytes)
        if slot is None:
            return False
        buffer = self._buffer(swap.layer, slot)
        key = ExpertKey(swap.layer, swap.incoming)
        self.in_flight.append((key, swap.outgoing))
        self._loader.submit(
            Load(
                key,
                slot,
                buffer,
                swap.outgoing,
                submitted_at_seconds=time.monotonic(),
                submitted_frame=frame,
            )
        )
        return True

    def end_frame(self) -> None:
        """The frame has used its last expert: room that a miss took is free for the next loads."""
        self._end_transient()

    def take_in(self, *, frame: int, wait: bool = False) -> None:
        """Frame boundary: make resident what was loaded; those they replace leave.

        Raises:
            StoreError: With ``wait``, where a load does not end.
        """
        self._end_transient()
        for load in self._loader.finished(wait_for=len(self.in_flight) if wait else 0):
            self.in_flight.remove((load.key, load.outgoing))
            self._outcome(load.key, load.error is None)
            if load.error is not None:
                self._accounting.failed_loads += 1
                self.residency.give_back_slot(load.key.layer, load.slot)
                continue
            if load.outgoing is not None:
                self.evict(ExpertKey(load.key.layer, load.outgoing))
            self.residency.put(load.key, load.slot)
            self._accounting.loaded(load.key, seconds=load.seconds, reason="swap")
            self._accounting.swap_wait_seconds += time.monotonic() - load.submitted_at_seconds
            self._accounting.swap_wait_frames += frame - load.submitted_frame
        if wait and self.in_flight:
            raise StoreError(
                f"{len(self.in_flight)} reads of experts have not ended within {LONGEST_LOAD_SECONDS:g} s; "
                "check the disk and its connection"
            )

    def weights(self, key: ExpertKey) -> ExpertWeights:
        """Weights to run an expert with; read first where it is not resident.

        Outside a cache they are valid until the next call.

        Raises:
            StoreError: The read failed.
        """
        self._end_transient()
        found = self.residency.weights(key.layer, key.expert)
        if found is None:
            slot = self._read(key, reason="miss")
            found = self.residency.pool(key.layer).weights(slot)
            if self._cache:
                self.residency.put(key, slot)
                self._recent[key] = None
            else:
                self._transient = (key.layer, slot)
        elif self._cache:
            self._recent.move_to_end(key)
        self._accounting.used(key)
        if self._transient is not None:
            self._accounting.forgotten(key)
        return found

    def shrink_cache(self) -> None:
        """Evict the least recently used experts until the budget holds."""
        while self.residency.mapped_bytes > self.residency.budget_bytes and self._recent:
            self.evict(next(iter(self._recent)))

    def evict(self, key: ExpertKey) -> None:
        """Make an expert non-resident."""
        self._recent.pop(key, None)
        self.residency.evict(key)
        self._accounting.evicted(key)

    def _read(self, key: ExpertKey, *, reason: LoadReason) -> int:
        """Read an expert into a slot now; returns the slot."""
        slot = self.residency.take_slot(key.layer)
        while slot is None and self._recent:
            self.evict(self._least_recent(key.layer))
            slot = self.residency.take_slot(key.layer)
        if slot is None:
            raise RuntimeError(f"no room for {key} within {self.residency.budget_bytes} bytes")
        buffer = self._buffer(key.layer, slot)
        start = time.perf_counter()
        try:
            self._read_patiently(key, buffer, patience=_MISS_RETRY_SECONDS if reason == "miss" else ())
        except BaseException:
            self.residency.give_back_slot(key.layer, slot)
            raise
        self._accounting.loaded(key, seconds=time.perf_counter() - start, reason=reason)
        return slot

    def _buffer(self, layer: int, slot: int) -> Tensor:
        """The memory of a slot, which nobody reads any more; the slot goes back where there is none."""
        try:
            buffer = self.residency.pool(layer).buffer(slot)
        except BaseException:
            self.residency.give_back_slot(layer, slot)
            raise
        if self._device.type == "cuda":  # what the frame has queued may still read it (unmeasured)
            torch.cuda.current_stream(self._device).synchronize()
        return buffer

    def _read_patiently(self, key: ExpertKey, buffer: Tensor, *, patience: Sequence[float]) -> None:
        """Read into a slot; try again after each wait of ``patience`` while the system fails."""
        for wait_seconds in (*patience, None):
            try:
                self.store.read_into(key, buffer)
            except StoreError as error:
                self._accounting.failed_loads += 1
                if wait_seconds is None or not may_pass(error):
                    raise
                _logger.warning("an expert was not loaded, trying again: %s", error)
                self._sleep(wait_seconds)
            else:
                return

    def _least_recent(self, layer: int) -> ExpertKey:
        """Of this layer's layout if any: such a slot needs no remapping."""
        layout = self.residency.specs[layer].layout
        for key in self._recent:
            if self.residency.specs[key.layer].layout == layout:
                return key
        return next(iter(self._recent))

    def _end_transient(self) -> None:
        if self._transient is not None:
            layer, slot = self._transient
            self._transient = None
            self.residency.give_back_slot(layer, slot)
