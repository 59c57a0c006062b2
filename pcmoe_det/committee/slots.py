"""Memory for resident experts: one pool per record layout, in slots of one record each.

On a CPU address space for every expert is reserved once, and a slot costs memory only while its pages are
mapped; on other devices each slot is a tensor of its own while it is mapped.
Slots that are given back stay mapped for the next load of the same layout (so that in steady state
nothing is allocated) until another layout needs the bytes.
"""

from __future__ import annotations

import mmap
import sys
from dataclasses import dataclass

import torch
from torch import Tensor

from pcmoe_det.committee.layers import RecordLayout
from pcmoe_det.errors import UsageError

__all__ = ["ExpertWeights", "SlotPool"]

# Python names it from 3.13 on.
_LINUX_MAP_NORESERVE = 0x4000 if sys.platform == "linux" else 0


@dataclass(frozen=True, eq=False)
class ExpertWeights:
    """Views of one slot as the kernel wants them; see ``expert_ffn`` for the shapes."""

    fc1_weight: Tensor
    fc1_bias: Tensor
    fc2_weight: Tensor
    fc2_bias: Tensor


class SlotPool:
    """Slots for experts of one layout.

    Called by the thread that runs the model, between frames; loader threads only write to the
    ``buffer`` of slots that no frame reads.

    Args:
        layout: Of the records.
        max_slots: Most slots ever taken at once.
        device: Where the kernel reads the weights.

    Raises:
        UsageError: The system has no address space for so many slots.
    """

    def __init__(self, layout: RecordLayout, *, max_slots: int, device: torch.device) -> None:
        self.layout = layout
        self.max_slots = max_slots
        self._map: mmap.mmap | None = None
        self._device = device
        self._buffers: list[Tensor | None] = [None] * max_slots
        if device.type == "cpu":
            self._map = _address_space(max(1, max_slots) * layout.record_bytes)
            memory = torch.frombuffer(self._map, dtype=torch.uint8).view(-1, layout.record_bytes)
            self._buffers = list(memory[:max_slots])
        self._weights: list[ExpertWeights | None] = [None] * max_slots
        self._unmapped = list(range(max_slots - 1, -1, -1))
        self._idle: list[int] = []

    @property
    def has_idle(self) -> bool:
        """Whether ``take`` needs no new memory."""
        return bool(self._idle)

    @property
    def idle_bytes(self) -> int:
        """Memory of idle slots."""
        return len(self._idle) * self.layout.record_bytes

    @property
    def mapped_bytes(self) -> int:
        """Memory of slots in use and of idle ones."""
        return (self.max_slots - len(self._unmapped)) * self.layout.record_bytes

    def take(self) -> int:
        """Index of a slot to use, an idle one if there is any. Raises RuntimeError when all are in use."""
        if self._idle:
            return self._idle.pop()
        if not self._unmapped:
            raise RuntimeError(f"all {self.max_slots} slots are in use")
        return self._unmapped.pop()

    def give_back(self, slot: int) -> None:
        """The slot is no longer used; its memory is kept for the next ``take``."""
        self._idle.append(slot)

    def unmap_idle(self) -> bool:
        """Return the memory of one idle slot to the system; False where there is none."""
        if not self._idle:
            return False
        slot = self._idle.pop()
        self._unmapped.append(slot)
        if self._map is not None:
            size = self.layout.record_bytes
            self._map.madvise(mmap.MADV_DONTNEED, slot * size, size)
        else:
            self._buffers[slot] = self._weights[slot] = None
        return True

    def buffer(self, slot: int) -> Tensor:
        """``[record_bytes]`` uint8, to be filled by a store."""
        found = self._buffers[slot]
        if found is None:
            found = self._buffers[slot] = torch.empty(
                self.layout.record_bytes, dtype=torch.uint8, device=self._device
            )
        return found

    def weights(self, slot: int) -> ExpertWeights:
        """Typed views of a slot; made once."""
        found = self._weights[slot]
        if found is None:
            found = ExpertWeights(**self.layout.views(self.buffer(slot)))
            self._weights[slot] = found
        return found


def _address_space(num_bytes: int) -> mmap.mmap:
    """Memory that costs nothing until it is written to.

    Private and anonymous: a page exists once it is written, and is gone when unmapped (a shared mapping,
    Python's default, would keep it). Without a reservation: the experts of a model may exceed the machine's
    memory many times, and the budget, not the system, bounds what is written.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", _LINUX_MAP_NORESERVE)
    try:
        return mmap.mmap(-1, num_bytes, flags=flags)
    except (OSError, OverflowError, ValueError) as error:
        raise UsageError(
            f"the system gives no {num_bytes} bytes of address space for expert slots ({error}); "
            "raise the limit on virtual memory (ulimit -v)"
        ) from error
