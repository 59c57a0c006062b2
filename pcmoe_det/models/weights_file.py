"""Weights as users run them: one safetensors file that describes its own model.

The file's metadata holds the model's configuration as JSON, so a detector is built from the file
alone and nothing in it is executable.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor, nn

from pcmoe_det.errors import CheckpointError, OutputError

__all__ = ["FORMAT_VERSION", "WeightsInfo", "load_into", "read_weights", "save_weights"]

FORMAT_VERSION = 1
_KEY = "pcmoe_det"


@dataclass(frozen=True)
class WeightsInfo:
    """What a weights file says about itself.

    Attributes:
        model: Configuration of the mmdet detector (plain data), or of a backbone alone.
        class_names: By class id; empty for a backbone alone.
        long_side: Images are resized so that their longer side has this many pixels.
        format_version: Of this description.
    """

    model: dict[str, Any]
    class_names: tuple[str, ...] = ()
    long_side: int = 0
    format_version: int = FORMAT_VERSION


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
    """
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
        save_file(tensors, str(part), metadata={_KEY: json.dumps(asdict(info))})
        part.replace(path)
    except (OSError, SafetensorError) as error:
        part.unlink(missing_ok=True)
        raise OutputError(f"cannot write weights to {path}: {error}") from error


def _parse_info(path: Path, metadata: Mapping[str, str] | None) -> WeightsInfo:
    text = (metadata or {}).get(_KEY)
    if text is None:
        raise CheckpointError(
            f"{path} does not describe its model; name its configuration with --config, "
            "or convert the weights with tools/export.py"
        )
    try:
        fields = json.loads(text)
        version = int(fields["format_version"])
        if version > FORMAT_VERSION:
            raise CheckpointError(
                f"{path} has format version {version}; this release reads up to {FORMAT_VERSION}: "
                "install a newer pcmoe_det"
            )
        return WeightsInfo(
            model=dict(fields["model"]),
            class_names=tuple(fields["class_names"]),
            long_side=int(fields["long_side"]),
            format_version=version,
        )
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(
            f"{path}: its description is damaged ({error!r}); get the file again"
        ) from error


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
    if not path.is_file():
        raise CheckpointError(f"no weights at {path}; check the path")
    if path.suffix != ".safetensors":
        if described:
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


def _read_training_checkpoint(path: Path) -> dict[str, Tensor]:
    """Tensors of a ``.pth`` file; averaged (EMA) weights are preferred where it has them."""
    try:
        # Mapped, so that optimiser state is not read; weights_only, so that no code runs.
        with torch.serialization.safe_globals(trusted_globals()):
            content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{path} is not a readable checkpoint of plain tensors ({reason})") from error
    averaged = content.get("ema_state_dict") if isinstance(content, dict) else None
    if averaged:
        return {name.removeprefix("module."): value for name, value in averaged.items() if name != "steps"}
    for key in ("state_dict", "model"):
        if isinstance(content, dict) and isinstance(content.get(key), dict):
            content = content[key]
            break
    tensors = {name: value for name, value in dict(content).items() if isinstance(value, Tensor)}
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
    own = model.state_dict()
    missing = [name for name in own if name not in tensors]
    unknown = [name for name in tensors if name not in own]
    shapes = [
        f"{name} is {tuple(tensors[name].shape)}, the model has {tuple(value.shape)}"
        for name, value in own.items()
        if name in tensors and tensors[name].shape != value.shape
    ]
    problems = [
        *(f"{len(missing)} missing, e.g. {missing[0]}" for _ in missing[:1]),
        *(f"{len(unknown)} unknown, e.g. {unknown[0]}" for _ in unknown[:1]),
        *shapes[:1],
    ]
    if problems:
        raise CheckpointError(
            f"{source} does not fit the model: {'; '.join(problems)}; use the weights' own config"
        )
    model.load_state_dict(dict(tensors))
