"""Experts in pinned host memory: what a CUDA device reads fastest. Unmeasured: no such device was at hand."""

from __future__ import annotations

import time

import torch
from torch import Tensor

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.store_base import (
    ExpertReadError,
    ExpertStore,
    ReadMode,
    ReadResult,
    StoreClosedError,
    StoreCounters,
    StoreTally,
    check_buffer,
    spec_of,
)
from pcmoe_det.errors import UsageError

__all__ = ["PinnedHostStore"]


class PinnedHostStore:
    """Every expert of another store, copied once into page-locked host memory.

    Saves device memory only: the host holds all experts. The source may be closed afterwards.

    Args:
        source: Where the experts come from; each record is checked while it is copied.
        pinned: Lock the pages; only tests on machines without CUDA turn it off.

    Raises:
        ExpertReadError: The source has a damaged record.
        UsageError: Pinned memory cannot be had.
    """

    def __init__(self, source: ExpertStore, *, pinned: bool = True) -> None:
        self._layers = tuple(source.layers)
        self._tally = StoreTally()
        self._records: list[Tensor] | None = []
        for spec in self._layers:
            shape = (spec.num_experts, spec.record_bytes)
            try:
                records = torch.empty(shape, dtype=torch.uint8, pin_memory=pinned)
            except RuntimeError as error:
                raise UsageError(
                    f"cannot pin {spec.expert_bytes} bytes of host memory for layer {spec.name} "
                    f"({str(error).splitlines()[0]}); it needs a CUDA device: read from disk instead"
                ) from error
            for key in spec.keys:
                source.read_into(key, records[key.expert])
            self._records.append(records)

    @property
    def layers(self) -> tuple[MoELayerSpec, ...]:
        """The MoE layers, first to last."""
        return self._layers

    @property
    def read_mode(self) -> ReadMode:
        """Always ``pinned``."""
        return "pinned"

    @property
    def counters(self) -> StoreCounters:
        """Totals so far, the copying at the start excluded."""
        return self._tally.counters

    def read_into(self, key: ExpertKey, buffer: Tensor) -> ReadResult:
        """Copy a record into ``buffer`` (host or device); see ``ExpertStore.read_into``."""
        started = time.monotonic()
        try:
            spec = spec_of(self._layers, key)
        except ExpertReadError:
            self._tally.add_failure()
            raise
        check_buffer(buffer, spec)
        records = self._records
        if records is None:
            raise StoreClosedError("the store in pinned memory is closed; open it again")
        record = records[key.layer][key.expert]
        if buffer.device.type == "cuda":
            # A stream of its own: on the frame's, the copy would wait for the frame and the frame for it.
            side = torch.cuda.Stream(buffer.device)
            with torch.cuda.stream(side):
                buffer.copy_(record, non_blocking=True)
            side.synchronize()
        else:
            buffer.copy_(record)
        result = ReadResult(spec.record_bytes, time.monotonic() - started, 0.0, "pinned")
        self._tally.add(result)
        return result

    def close(self) -> None:
        """Release the memory. May be called twice."""
        self._records = None
