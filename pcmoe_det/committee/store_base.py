"""What every expert store promises, its results and its errors."""

from __future__ import annotations

import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.errors import PcmoeError

__all__ = [
    "LONGEST_WAIT_SECONDS",
    "CopyingStore",
    "ExpertReadError",
    "ExpertStore",
    "ReadFailure",
    "ReadMode",
    "ReadResult",
    "StoreClosedError",
    "StoreCounters",
    "StoreError",
    "StoreTally",
    "check_buffer",
    "may_pass",
    "spec_of",
]

ReadMode = Literal["warm", "direct", "dropped", "pinned"]
"""``warm``: through the page cache, so a repeated read is a memory copy. ``direct``: past it (O_DIRECT).
``dropped``: through it, but its pages are dropped first. ``pinned``: from pinned host memory."""

ReadFailure = Literal["missing", "io", "short", "checksum"]


LONGEST_WAIT_SECONDS = 2.0
"""How long closing waits for a read under way. A healthy disk answers within milliseconds."""


class StoreError(PcmoeError):
    """Base of what goes wrong with an expert store."""


class StoreClosedError(StoreError):
    """The store was closed before or during a read."""


class ExpertReadError(StoreError):
    """One expert could not be read; what the buffer holds now must not be used.

    Attributes:
        key: The expert.
        layer_name: Module path of its layer; empty for a layer that does not exist.
        failure: ``missing`` (no such expert), ``io`` (the system reported an error; a retry may help),
            ``short`` (the file ends inside the record) or ``checksum`` (the record was changed).
    """

    def __init__(self, message: str, *, key: ExpertKey, layer_name: str, failure: ReadFailure) -> None:
        super().__init__(message)
        self.key = key
        self.layer_name = layer_name
        self.failure: ReadFailure = failure


@dataclass(frozen=True)
class ReadResult:
    """One successful read.

    Attributes:
        bytes_read: Size of the record.
        seconds: From call to return; checksum and throttling are part of it.
        throttled_seconds: Spent waiting for the bandwidth limit.
        read_mode: How this record was read.
    """

    bytes_read: int
    seconds: float
    throttled_seconds: float
    read_mode: ReadMode


@dataclass(frozen=True)
class StoreCounters:
    """Totals since the store was opened.

    Attributes:
        reads: Successful reads.
        bytes_read: By them.
        seconds: In them, summed over threads.
        throttled_seconds: Part of ``seconds``.
        failures: Reads that raised ``ExpertReadError``.
    """

    reads: int = 0
    bytes_read: int = 0
    seconds: float = 0.0
    throttled_seconds: float = 0.0
    failures: int = 0


def may_pass(error: StoreError) -> bool:
    """Whether the same read may succeed later: the system failed, not the record."""
    return isinstance(error, ExpertReadError) and error.failure == "io"


class ExpertStore(Protocol):
    """Reads experts, one record at a time. Every method may be called from several threads at once."""

    @property
    def layers(self) -> Sequence[MoELayerSpec]:
        """The MoE layers whose experts it holds, first to last."""
        ...

    @property
    def read_mode(self) -> ReadMode:
        """How records are read."""
        ...

    @property
    def counters(self) -> StoreCounters:
        """Totals so far: a consistent snapshot."""
        ...

    def read_into(self, key: ExpertKey, buffer: Tensor) -> ReadResult:
        """Fill ``buffer`` with an expert's record.

        Args:
            key: The expert.
            buffer: ``[record_bytes]`` uint8, contiguous, of the layer's layout. Its content is undefined
                until this returns, and after an error.

        Raises:
            ExpertReadError: The record could not be read whole and unchanged.
            StoreClosedError: The store is closed.
            ValueError: The buffer does not fit the layer.
        """
        ...

    def close(self) -> None:
        """End waiting and running reads (``StoreClosedError``) and release files. May be called twice."""
        ...


class StoreTally:
    """Counts reads of several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counters = StoreCounters()

    @property
    def counters(self) -> StoreCounters:
        """A consistent snapshot."""
        with self._lock:
            return self._counters

    def add(self, result: ReadResult) -> None:
        """Count a successful read."""
        with self._lock:
            old = self._counters
            self._counters = StoreCounters(
                reads=old.reads + 1,
                bytes_read=old.bytes_read + result.bytes_read,
                seconds=old.seconds + result.seconds,
                throttled_seconds=old.throttled_seconds + result.throttled_seconds,
                failures=old.failures,
            )

    def add_failure(self) -> None:
        """Count a failed read."""
        with self._lock:
            old = self._counters
            self._counters = StoreCounters(
                old.reads, old.bytes_read, old.seconds, old.throttled_seconds, old.failures + 1
            )


class CopyingStore(ABC):
    """Base of stores whose experts are in host memory already: a read is a copy. Subclasses add ``close``.

    Args:
        layers: The MoE layers, first to last.
        read_mode: What reads are called.
    """

    def __init__(self, layers: Sequence[MoELayerSpec], *, read_mode: ReadMode) -> None:
        self._layers = tuple(layers)
        self._read_mode = read_mode
        self._tally = StoreTally()

    @property
    def layers(self) -> tuple[MoELayerSpec, ...]:
        """The MoE layers, first to last."""
        return self._layers

    @property
    def read_mode(self) -> ReadMode:
        """Always the same."""
        return self._read_mode

    @property
    def counters(self) -> StoreCounters:
        """Totals so far."""
        return self._tally.counters

    def read_into(self, key: ExpertKey, buffer: Tensor) -> ReadResult:
        """Copy a record into ``buffer``; see ``ExpertStore.read_into``."""
        started = time.monotonic()
        try:
            spec = spec_of(self._layers, key)
        except ExpertReadError:
            self._tally.add_failure()
            raise
        check_buffer(buffer, spec)
        self._copy(key, spec, buffer)
        result = ReadResult(spec.record_bytes, time.monotonic() - started, 0.0, self._read_mode)
        self._tally.add(result)
        return result

    @abstractmethod
    def _copy(self, key: ExpertKey, spec: MoELayerSpec, buffer: Tensor) -> None:
        """Fill a buffer that fits."""


def spec_of(layers: Sequence[MoELayerSpec], key: ExpertKey) -> MoELayerSpec:
    """The layer of an expert.

    Raises:
        ExpertReadError: There is no such expert.
    """
    if not 0 <= key.layer < len(layers):
        raise ExpertReadError(
            f"there is no expert {key.expert} of MoE layer {key.layer}: "
            f"the model has layers 0 to {len(layers) - 1}",
            key=key,
            layer_name="",
            failure="missing",
        )
    spec = layers[key.layer]
    if not 0 <= key.expert < spec.num_experts:
        raise ExpertReadError(
            f"layer {spec.name} has no expert {key.expert}: it has experts 0 to {spec.num_experts - 1}",
            key=key,
            layer_name=spec.name,
            failure="missing",
        )
    return spec


def check_buffer(buffer: Tensor, spec: MoELayerSpec) -> None:
    """Refuse a buffer that cannot take a record of ``spec`` (ValueError)."""
    if (
        buffer.dtype != torch.uint8
        or tuple(buffer.shape) != (spec.record_bytes,)
        or not buffer.is_contiguous()
    ):
        raise ValueError(
            f"layer {spec.name} needs a contiguous buffer [{spec.record_bytes}] of torch.uint8; "
            f"this one is {list(buffer.shape)} of {buffer.dtype}"
        )
