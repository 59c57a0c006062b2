"""Weights as users run them: one safetensors file that describes its own model.

The file's metadata holds the model's configuration as JSON, so a detector is built from the file
alone and nothing in it is executable.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pcmoe_det.errors import CheckpointError, ConfigError, OutputError
from pcmoe_det.models.description import FORMAT_VERSION, WeightsInfo, info_from_fields, parse_json

__all__ = [
    "FORMAT_VERSION",
    "WeightsInfo",
    "check_fit",
    "load_backbone_into",
    "load_into",
    "read_weights",
    "save_weights",
    "trusted_globals",
]

_KEY = "pcmoe_det"
# First bytes of what torch.save writes now (a zip archive) and wrote once (a pickle).
_CHECKPOINT_STARTS = (b"PK\x03\x04", b"\x80")


def save_weights(
    path: Path, state_dict: Mapping[str, Tensor], info: WeightsInfo, *, dtype: torch.dtype | None = None
) -> None:
    """Write a weights file, whole or not at all.

    Args:
        path: Target, replaced if it exists.
        state_dict: Parameters and buffers by name.
        info: Stored beside them.
        dtype: Cast floating tensors to this; None keeps them.

    Raises:
        OutputError: The file cannot be written.
        ConfigError: The model's configuration is not plain data.
    """
    try:
        description = json.dumps(asdict(info))
    except TypeError as error:
        raise ConfigError(
            f"the model's configuration cannot be stored in {path}, it must be plain data: {error}"
        ) from error
    tensors = {
        name: (tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor)
        .detach()
        .cpu()
        .clone(memory_format=torch.contiguous_format)
        for name, tensor in state_dict.items()
    }
    part = path.with_name(path.name + ".part")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        save_file(tensors, str(part), metadata={_KEY: description})
        part.chmod(0o644)  # safetensors makes files that only their owner may read
        part.replace(path)
    except (OSError, SafetensorError) as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(f"cannot write weights to {path}: {error}") from error


def _parse_info(path: Path, metadata: Mapping[str, str] | None) -> WeightsInfo:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} does not describe its model; name its configuration with --config, "
            "or convert the weights with tools/export.py"
        )
    try:
        return info_from_fields(parse_json(text), source=str(path))
    except (ValueError, KeyError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else str(error)
        raise CheckpointError(f"{path}: its description is damaged ({reason}); get the file again") from error


def read_weights(path: Path, *, described: bool = True) -> tuple[dict[str, Tensor], WeightsInfo | None]:
    """Read a weights file.

    Args:
        path: A safetensors file, or a training checkpoint (``.pth``) without code in it.
        described: Demand that the file describes its model.

    Returns:
        The tensors, and the description (None where the file has none and ``described`` is False).

    Raises:
        CheckpointError: Missing, damaged, from a newer release, or not described.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises where a name is too long)
        if os.path.isdir(path):  # noqa: PTH112
            raise CheckpointError(
                f"no weights at {path}: it is a folder; name a file (a packed model runs in tools/stream.py, "
                "process.py, test.py and bench.py)"
            )
        raise CheckpointError(f"no weights at {path}; check the path")
    if path.suffix != ".safetensors":
        if described:
            if not _starts_like_a_checkpoint(path):
                raise CheckpointError(
                    f"{path} is no weights file; name a .safetensors file, or a training checkpoint (.pth) "
                    "and its configuration"
                )
            raise CheckpointError(
                f"{path} is a training checkpoint; name its configuration with --config, "
                "or convert it with tools/export.py"
            )
        return _read_training_checkpoint(path), None
    try:
        with safe_open(str(path), framework="pt") as file:
            metadata = file.metadata()
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path} is damaged or no safetensors file ({error}); get it again") from error
    if not described and _KEY not in (metadata or {}):
        return tensors, None
    return tensors, _parse_info(path, metadata)


def _starts_like_a_checkpoint(path: Path) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(4).startswith(_CHECKPOINT_STARTS)
    except OSError as error:
        raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error


def _read_training_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.pth`` file: the averaged (EMA) weights where training kept an average.

    mmengine's EMAHook saves the average under ``state_dict`` and the weights that were trained under
    ``ema_state_dict``, the other way round than the names say.
    """
    try:
        # weights_only, so that no code runs
        with torch.serialization.safe_globals(trusted_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise CheckpointError(f"{path} is not a readable checkpoint of plain tensors ({reason})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path} holds a {type(content).__name__}, not a state dict")
    for key in ("state_dict", "model"):
        if isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {name: value for name, value in content.items() if isinstance(value, Tensor)}
    if not tensors:
        raise CheckpointError(f"{path} holds no tensors under 'state_dict' or 'model'")
    return tensors


def trusted_globals() -> list[Any]:
    """Classes of plain data that training checkpoints hold beside tensors (none can run code)."""
    import numpy as np

    reconstruct = np.empty(0).__reduce__()[0]
    scalar = np.float64(0).__reduce__()[0]
    kinds = {type(np.dtype(kind)) for kind in ("float64", "float32", "int64", "int32", "bool", "uint8")}
    return [np.ndarray, np.dtype, reconstruct, scalar, *kinds]


def load_into(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Load ``tensors`` into ``model``; every name and shape must fit.

    Raises:
        CheckpointError: Names the first tensors that are missing, unknown or of another shape.
    """
    check_fit(model, tensors, source=source)
    model.load_state_dict(dict(tensors))


def check_fit(model: nn.Module, tensors: Mapping[str, Tensor], *, source: str) -> None:
    """Refuse tensors that are not those of ``model`` (which may be on the meta device).

    Raises:
        CheckpointError: Names the first tensors that are missing, unknown or of another shape.
    """
    problems = _misfits(model.state_dict(), tensors)
    if problems:
        raise CheckpointError(
            f"{source} does not fit the model: {'; '.join(problems)}; use the weights' own config"
        )


def load_backbone_into(
    model: nn.Module, tensors: Mapping[str, Tensor], info: WeightsInfo, *, source: str
) -> tuple[str, ...]:
    """Load weights of a backbone alone into a detector's ``backbone``.

    Every name and shape must fit, with one exception: a classifier normalises only the map of its last
    stage, so the detector's ``norm{stage}`` of other stages may be missing and stay as they are.

    Args:
        model: A detector.
        tensors: By name, with the prefix ``backbone.``.
        info: Of the file; its configuration is told where the backbones differ.
        source: The file, for the error.

    Returns:
        Names of the detector's tensors that stay as they are.

    Raises:
        CheckpointError: Names the first tensors that are missing, unknown or of another shape.
    """
    own = {f"backbone.{name}": value for name, value in model.get_submodule("backbone").state_dict().items()}
    kept = tuple(name for name in own if name not in tensors and _OUTPUT_NORM.fullmatch(name))
    problems = _misfits({name: value for name, value in own.items() if name not in kept}, tensors)
    if problems:
        wanted = ", ".join(f"{key}={value!r}" for key, value in info.model["backbone"].items())
        raise CheckpointError(
            f"{source} does not fit the detector's backbone: {'; '.join(problems)}; "
            f"the config's backbone must be dict({wanted}), other out_indices apart"
        )
    backbone = {name.removeprefix("backbone."): value for name, value in tensors.items()}
    model.get_submodule("backbone").load_state_dict(backbone, strict=False)
    return kept


_OUTPUT_NORM = re.compile(r"backbone\.norm\d+\.(weight|bias)")


def _misfits(own: Mapping[str, Tensor], tensors: Mapping[str, Tensor]) -> list[str]:
    """What keeps ``tensors`` from being the state ``own``: counts, and the first of each kind."""
    missing = [name for name in own if name not in tensors]
    unknown = [name for name in tensors if name not in own]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    return [
        *(f"{len(missing)} missing, e.g. {missing[0]}" for _ in missing[:1]),
        *(f"{len(unknown)} unknown, e.g. {unknown[0]}" for _ in unknown[:1]),
        *shapes[:1],
    ]
