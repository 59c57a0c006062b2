"""Packing: weights become a folder whose experts can be read one by one."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec, RecordLayout
from pcmoe_det.committee.packed_folder import check_output_folder
from pcmoe_det.committee.packed_format import PACK_DTYPES, PACK_FILES
from pcmoe_det.committee.packed_model import PackedModel, is_packed
from pcmoe_det.committee.packed_skeleton import (
    build_skeleton,
    expert_parameter_names,
    experts_of,
    moe_layers,
)
from pcmoe_det.committee.packed_writer import write_packed
from pcmoe_det.errors import CheckpointError, ConfigError, UsageError
from pcmoe_det.models.description import class_names_problem
from pcmoe_det.models.inference import info_from_config
from pcmoe_det.models.trusted_types import untrusted_type
from pcmoe_det.models.weights_file import WeightsInfo, check_fit, read_weights

__all__ = ["pack", "pack_random"]


def pack(
    config_or_info: Path | WeightsInfo | None,
    weights: Path | Sequence[Path],
    output: Path,
    *,
    dtype: torch.dtype,
    overwrite: bool = False,
) -> PackedModel:
    """Pack a detector. Experts pass through memory one by one where the weights are safetensors.

    Args:
        config_or_info: The detector, as a config file or a description; None takes what the
            weights say of themselves.
        weights: A weights file or training checkpoint, or several that hold parts of one.
        output: The folder to make; it appears at the end, whole.
        dtype: Of the experts and later of the arithmetic: ``torch.float32`` or ``torch.bfloat16``.
            Everything else keeps the precision of the weights, because batch normalisation is
            folded in before it is rounded.
        overwrite: Replace an existing packed model.

    Raises:
        CheckpointError: The weights are missing, damaged, do not describe themselves (if asked to), do not
            fit the detector, or have an expert that is not finite.
        ConfigError: The configuration does not build, has no MoE layers, or names what a packed model may
            not (``untrusted_type``).
        OutputError: The folder exists or cannot be written.
        UsageError: Another dtype, or no weights.
    """
    _check_dtype(dtype)
    check_output_folder(output, overwrite=overwrite, own_files=PACK_FILES)
    paths = [weights] if isinstance(weights, Path) else list(weights)
    tensors, described = _read_all(paths, described=config_or_info is None)
    info = described if config_or_info is None else _info(config_or_info)
    if info is None:
        raise CheckpointError(f"{paths[0]} does not describe its model; name its configuration")
    if info.is_backbone:
        raise CheckpointError(f"{paths[0]} holds a backbone alone; pack the weights of a whole detector")
    if config_or_info is not None:
        _check_config(info)
    skeleton = build_skeleton(info, source=str(paths[0]) if config_or_info is None else None)
    specs = _specs(skeleton, info, dtype)
    check_fit(skeleton, tensors, source=", ".join(map(str, paths)))

    def read_expert(key: ExpertKey) -> dict[str, Tensor]:
        names = expert_parameter_names(specs[key.layer].name)
        return {field: tensors[name][key.expert] for field, name in names.items()}

    write_packed(output, info, specs, dense=_dense_part(tensors, specs), read_expert=read_expert)
    return PackedModel.open(output)


def pack_random(
    config_or_info: Path | WeightsInfo,
    output: Path,
    *,
    dtype: torch.dtype,
    seed: int = 0,
    overwrite: bool = False,
) -> PackedModel:
    """Pack a detector with random weights: for measuring memory and time, where weights do not matter.

    Experts are made one by one, so a model larger than the memory can be packed.

    Args:
        config_or_info: The detector.
        output: The folder to make.
        dtype: See ``pack``.
        seed: Same seed, same pack.
        overwrite: Replace an existing packed model.

    Raises:
        ConfigError: The configuration does not build, has no MoE layers, or names what a packed model may
            not (``untrusted_type``).
        OutputError: The folder exists or cannot be written.
        UsageError: Another dtype.
    """
    _check_dtype(dtype)
    check_output_folder(output, overwrite=overwrite, own_files=PACK_FILES)
    info = _info(config_or_info)
    _check_config(info)
    skeleton = build_skeleton(info, seed=seed)
    specs = _specs(skeleton, info, dtype)
    first = [sum(spec.num_experts for spec in specs[:index]) for index in range(len(specs))]
    total = sum(spec.num_experts for spec in specs)

    def read_expert(key: ExpertKey) -> dict[str, Tensor]:
        generator = torch.Generator().manual_seed(seed * total + first[key.layer] + key.expert)
        # Biases are zero; weights keep outputs about as large as inputs, so that activations stay in range.
        return {
            field.name: torch.zeros(field.shape)
            if len(field.shape) == 1
            else torch.randn(field.shape, generator=generator).mul_(1 / math.sqrt(field.shape[-1]))
            for field in specs[key.layer].layout.fields
        }

    write_packed(
        output, info, specs, dense=_dense_part(skeleton.state_dict(), specs), read_expert=read_expert
    )
    return PackedModel.open(output)


def _check_dtype(dtype: torch.dtype) -> None:
    if dtype not in PACK_DTYPES.values():
        raise UsageError(f"cannot pack experts as {dtype}; there are {' and '.join(PACK_DTYPES)}")


def _info(config_or_info: Path | WeightsInfo) -> WeightsInfo:
    return config_or_info if isinstance(config_or_info, WeightsInfo) else info_from_config(config_or_info)


def _check_config(info: WeightsInfo) -> None:
    """Refuse a config that builds here, but could not be opened from a packed model."""
    untrusted = untrusted_type(info.model)
    if untrusted is not None:
        raise ConfigError(
            f"this configuration cannot be packed, because a packed model runs no code: {untrusted}; "
            "name registered parts by their plain names"
        )
    problem = class_names_problem(info.model, info.class_names)
    if problem is not None:
        raise ConfigError(f"this configuration cannot be packed: {problem}; name each class once")


def _read_all(paths: list[Path], *, described: bool) -> tuple[dict[str, Tensor], WeightsInfo | None]:
    """Tensors of all files (mapped, where they are safetensors), and the first file's description."""
    if not paths:
        raise UsageError("no weights to pack; name a weights file")
    tensors: dict[str, Tensor] = {}
    info: WeightsInfo | None = None
    for index, path in enumerate(paths):
        if is_packed(path):
            raise CheckpointError(f"{path} is a folder; pack the weights file that it was made of")
        part, found = read_weights(path, described=described and index == 0)
        info = info or found
        twice = tensors.keys() & part.keys()
        if twice:
            raise CheckpointError(f"{path} holds {min(twice)} again; name each part of the weights once")
        tensors.update(part)
    return tensors, info


def _specs(skeleton: nn.Module, info: WeightsInfo, dtype: torch.dtype) -> tuple[MoELayerSpec, ...]:
    """The MoE layers, with norms still to be computed."""
    specs = []
    for index, (name, layer) in enumerate(moe_layers(skeleton)):
        experts, hidden, channels = experts_of(layer).fc1_weight.shape
        layout = RecordLayout.for_expert(channels, hidden, dtype)
        specs.append(MoELayerSpec(index, name, experts, channels, hidden, layout, norms=(0.0,) * experts))
    if not specs:
        detector = info.model.get("detector", info.model.get("type", "model"))
        raise ConfigError(
            f"this {detector} has no MoE layers, so there is nothing to pack; use its weights file as it is"
        )
    return tuple(specs)


def _dense_part(tensors: Mapping[str, Tensor], specs: tuple[MoELayerSpec, ...]) -> dict[str, Tensor]:
    of_experts = {name for spec in specs for name in expert_parameter_names(spec.name).values()}
    return {name: tensor.contiguous() for name, tensor in tensors.items() if name not in of_experts}
