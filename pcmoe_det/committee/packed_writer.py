"""Writes the files of a packed model into a folder, expert by expert."""

from __future__ import annotations

import math
import os
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from pcmoe_det import __version__
from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.packed_folder import sync_file, whole_folder
from pcmoe_det.committee.packed_format import (
    DENSE_FILE,
    DESCRIPTION_FILE,
    EXPERTS_FILE,
    PackDescription,
    expert_file_header,
    file_checksum,
)
from pcmoe_det.errors import CheckpointError, ConfigError, OutputError
from pcmoe_det.models.weights_file import WeightsInfo

__all__ = ["ReadExpert", "write_packed"]

ReadExpert = Callable[[ExpertKey], Mapping[str, Tensor]]
"""An expert's parameters by field of a record, in the precision of their source."""


def write_packed(
    output: Path,
    info: WeightsInfo,
    specs: tuple[MoELayerSpec, ...],
    *,
    dense: Mapping[str, Tensor],
    read_expert: ReadExpert,
) -> None:
    """Write a packed model, whole or not at all. An existing folder is replaced.

    Args:
        output: The folder.
        info: The detector.
        specs: Its MoE layers; their norms are computed here.
        dense: Everything that is no expert, by name.
        read_expert: Called once for each expert, in order.

    Raises:
        CheckpointError: An expert has values that are not finite.
        ConfigError: The configuration is no plain data.
        OutputError: It cannot be written.
    """
    try:
        with whole_folder(output) as folder:
            norms, checksums = _write_experts(folder / EXPERTS_FILE, specs, read_expert)
            dense_path = folder / DENSE_FILE
            save_file(dict(dense), str(dense_path), metadata={"format": "pt"})
            # safetensors makes files that only their owner may read, whatever the umask says.
            dense_path.chmod((folder / EXPERTS_FILE).stat().st_mode & 0o777)
            sync_file(dense_path)
            description = PackDescription(
                info=info,
                layers=tuple(replace(spec, norms=norm) for spec, norm in zip(specs, norms, strict=True)),
                dtype=specs[0].layout.dtype,
                checksums=checksums,
                dense_bytes=dense_path.stat().st_size,
                dense_checksum=file_checksum(dense_path),
                package_version=__version__,
            )
            # Last: a folder without it is not taken for a packed model.
            _write_text(folder / DESCRIPTION_FILE, _described(description))
    except (OSError, SafetensorError) as error:
        raise OutputError(f"cannot write {output}: {error}") from error


def _write_experts(
    path: Path, specs: tuple[MoELayerSpec, ...], read_expert: ReadExpert
) -> tuple[list[tuple[float, ...]], tuple[tuple[int, ...], ...]]:
    """Write header and records; returns norms and checksums, by layer and expert."""
    norms: list[tuple[float, ...]] = []
    checksums: list[tuple[int, ...]] = []
    with path.open("wb", buffering=0) as file:
        _write_all(file.fileno(), memoryview(expert_file_header(specs)))
        for spec in specs:
            buffer = torch.zeros(spec.record_bytes, dtype=torch.uint8)  # padding is zero
            views = spec.layout.views(buffer)
            memory = buffer.numpy().data
            layer_norms: list[float] = []
            layer_checksums: list[int] = []
            for key in spec.keys:
                parameters = read_expert(key)
                for name, view in views.items():
                    view.copy_(parameters[name])
                norm = _norm(parameters)
                _check_finite(spec, key, views, norm)
                layer_norms.append(norm)
                layer_checksums.append(zlib.crc32(memory))
                _write_all(file.fileno(), memory)
            norms.append(tuple(layer_norms))
            checksums.append(tuple(layer_checksums))
        os.fsync(file.fileno())
    return norms, tuple(checksums)


def _norm(parameters: Mapping[str, Tensor]) -> float:
    """``||E_i||`` of SwapMoE's Eq. 1: of both weight matrices together, biases left out."""
    squares = [
        torch.linalg.vector_norm(parameters[name], dtype=torch.float32).square()
        for name in ("fc1_weight", "fc2_weight")
    ]
    return float(torch.stack(squares).sum().sqrt())


def _check_finite(spec: MoELayerSpec, key: ExpertKey, values: Mapping[str, Tensor], norm: float) -> None:
    """Refuse an expert that would make every token it gets not a number."""
    spoilt = next((name for name, value in values.items() if not bool(value.isfinite().all())), None)
    if spoilt is None and not math.isfinite(norm):
        spoilt = "the norm of its weights"
    if spoilt is not None:
        raise CheckpointError(
            f"expert {key.expert} of layer {spec.name} has values in {spoilt} that are not finite (NaN, "
            f"infinite, or too large for {str(spec.layout.dtype).removeprefix('torch.')}); "
            "pack weights from before the training diverged"
        )


def _write_all(descriptor: int, memory: memoryview) -> None:
    while memory:
        memory = memory[os.write(descriptor, memory) :]


def _described(description: PackDescription) -> str:
    try:
        return description.to_json()
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"the model's configuration is no plain data ({error}); use finite numbers and text"
        ) from error


def _write_text(path: Path, text: str) -> None:
    with path.open("w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
