"""Names, sizes and memory layout of experts: what packing, stores and slots agree on."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = [
    "FIELD_ALIGNMENT_BYTES",
    "RECORD_ALIGNMENT_BYTES",
    "ExpertKey",
    "MoELayerSpec",
    "RecordField",
    "RecordLayout",
]

FIELD_ALIGNMENT_BYTES = 64
"""A cache line: what vector loads and prepacking kernels like."""

RECORD_ALIGNMENT_BYTES = 4096
"""A page: what unbuffered reads (O_DIRECT) and giving memory back to the system demand."""


@dataclass(frozen=True, order=True)
class ExpertKey:
    """One expert of one MoE layer; ordered by layer, then by expert.

    Attributes:
        layer: Index of the layer among the MoE layers, first to last, from 0.
        expert: Index within the layer, from 0.
    """

    layer: int
    expert: int


@dataclass(frozen=True)
class RecordField:
    """One parameter tensor inside an expert's record.

    Attributes:
        name: Of the parameter of ``ExpertFFN``.
        shape: Of one expert's part.
        offset_bytes: From the start of the record.
        num_bytes: Without padding.
    """

    name: str
    shape: tuple[int, ...]
    offset_bytes: int
    num_bytes: int


def _round_up(value: int, multiple: int) -> int:
    return -(-value // multiple) * multiple


@dataclass(frozen=True)
class RecordLayout:
    """How one expert's parameters lie in one contiguous record.

    The weights lie as the kernel takes them (``[out, in]``, as a linear layer's), so a record read
    into memory is an expert ready to run. Layouts of experts of one shape and dtype are equal.

    Attributes:
        fields: In the order they are stored.
        dtype: Of every field.
        record_bytes: Size of the record, padding included; a multiple of a page.
    """

    fields: tuple[RecordField, ...]
    dtype: torch.dtype
    record_bytes: int

    @classmethod
    def for_expert(cls, channels: int, hidden: int, dtype: torch.dtype) -> RecordLayout:
        """Layout of a two-layer FFN's record.

        Args:
            channels: Token width.
            hidden: Width of the hidden layer.
            dtype: A floating dtype.

        Raises:
            ValueError: A size below 1, or no floating dtype.
        """
        if channels < 1 or hidden < 1:
            raise ValueError(
                f"an expert of {channels} channels and {hidden} hidden ones; both must be 1 or more"
            )
        if not dtype.is_floating_point:
            raise ValueError(f"experts of dtype {dtype}; it must be a floating one, such as torch.bfloat16")
        shapes = {
            "fc1_weight": (hidden, channels),
            "fc1_bias": (hidden,),
            "fc2_weight": (channels, hidden),
            "fc2_bias": (channels,),
        }
        fields: list[RecordField] = []
        end = 0
        for name, shape in shapes.items():
            offset = _round_up(end, FIELD_ALIGNMENT_BYTES)
            fields.append(RecordField(name, shape, offset, math.prod(shape) * dtype.itemsize))
            end = offset + fields[-1].num_bytes
        return cls(tuple(fields), dtype, _round_up(end, RECORD_ALIGNMENT_BYTES))

    def views(self, buffer: Tensor) -> dict[str, Tensor]:
        """The fields of a record, by name, without copying.

        Args:
            buffer: ``[record_bytes]`` uint8, contiguous, on any device, starting at a multiple of
                the dtype's size (a slot or a fresh tensor does).

        Returns:
            Tensors of the layout's dtype that share the buffer's memory.

        Raises:
            ValueError: The buffer is none of this layout.
        """
        if buffer.dtype != torch.uint8 or tuple(buffer.shape) != (self.record_bytes,):
            raise ValueError(
                f"a record buffer of shape {tuple(buffer.shape)} and dtype {buffer.dtype}; "
                f"this layout needs [{self.record_bytes}] of torch.uint8"
            )
        return {
            field.name: buffer[field.offset_bytes : field.offset_bytes + field.num_bytes]
            .view(self.dtype)
            .view(field.shape)
            for field in self.fields
        }


@dataclass(frozen=True)
class MoELayerSpec:
    """What is known of an MoE layer without its experts' weights.

    Attributes:
        index: Among the MoE layers of the model, first to last, from 0.
        name: Module path in the detector, such as ``backbone.stages.2.blocks.1.mlp``.
        num_experts: Experts of the layer.
        channels: Token width.
        hidden: Width of the experts' hidden layer.
        layout: Of one expert's record.
        norms: ``||E_i||`` of SwapMoE's Eq. 1 for each expert: the Frobenius norm of both weight
            matrices together, in float32 before any rounding to the packed dtype.
    """

    index: int
    name: str
    num_experts: int
    channels: int
    hidden: int
    layout: RecordLayout
    norms: tuple[float, ...]

    def __post_init__(self) -> None:
        if self.num_experts < 1 or len(self.norms) != self.num_experts:
            raise ValueError(
                f"layer {self.name!r} has {self.num_experts} experts and {len(self.norms)} norms; "
                "it needs at least one expert and a norm for each"
            )

    @property
    def record_bytes(self) -> int:
        """Size of one expert, padding included."""
        return self.layout.record_bytes

    @property
    def expert_bytes(self) -> int:
        """Size of all experts of the layer, padding included."""
        return self.num_experts * self.layout.record_bytes

    @property
    def keys(self) -> tuple[ExpertKey, ...]:
        """The layer's experts."""
        return tuple(ExpertKey(self.index, expert) for expert in range(self.num_experts))
