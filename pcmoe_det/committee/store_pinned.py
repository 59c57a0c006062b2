"""Experts in pinned host memory: what a CUDA device reads fastest. Unmeasured: no such device was at hand."""

from __future__ import annotations

import torch
from torch import Tensor

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.store_base import CopyingStore, ExpertStore, StoreClosedError
from pcmoe_det.errors import UsageError

__all__ = ["PinnedHostStore"]


class PinnedHostStore(CopyingStore):
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
        super().__init__(source.layers, read_mode="pinned")
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

    def _copy(self, key: ExpertKey, spec: MoELayerSpec, buffer: Tensor) -> None:  # noqa: ARG002
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

    def close(self) -> None:
        """Release the memory. May be called twice."""
        self._records = None
