"""Low-precision arithmetic for the parts of a detector that stand it.

Autocast around a whole detector rounds boxes to steps of 4-8 pixels. So only features and the
convolutional or linear parts of the heads run in bfloat16; what a head returns is float32, and
boxes are decoded, suppressed and pooled in float32.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

__all__ = ["cast_tree", "low_precision_forward", "parameter_dtype"]


def cast_tree(value: Any, dtype: torch.dtype) -> Any:
    """``value`` with every floating tensor in nested lists, tuples and dicts cast to ``dtype``."""
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, list | tuple):
        return type(value)(cast_tree(item, dtype) for item in value)
    if isinstance(value, dict):
        return {key: cast_tree(item, dtype) for key, item in value.items()}
    return value


def parameter_dtype(module: nn.Module) -> torch.dtype:
    """Dtype of the first floating parameter (float32 for a module without)."""
    for parameter in module.parameters():
        if parameter.is_floating_point():
            return parameter.dtype
    return torch.float32


_CLASSES: dict[tuple[type[nn.Module], torch.dtype, bool], type[nn.Module]] = {}


def _low_precision_class(base: type[nn.Module], dtype: torch.dtype, float_output: bool) -> type[nn.Module]:
    def forward(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        if parameter_dtype(self) == dtype:  # inference: the weights themselves are in low precision
            result = base.forward(self, *cast_tree(args, dtype), **cast_tree(kwargs, dtype))
        else:
            device = next(self.parameters()).device.type
            with torch.autocast(device, dtype=dtype):
                result = base.forward(self, *args, **kwargs)
        return cast_tree(result, torch.float32) if float_output else result

    return type(f"LowPrecision{base.__name__}", (base,), {"forward": forward, "pcmoe_low_precision": True})


def low_precision_forward(module: nn.Module, dtype: torch.dtype, *, float_output: bool) -> None:
    """Make ``module.forward`` compute in ``dtype``, in place.

    Float32 weights are used through autocast (training), weights already in ``dtype`` directly. The
    class is exchanged instead of wrapping a method, so that copies of the model (EMA) stay whole.

    Args:
        module: Any module with parameters.
        dtype: ``torch.bfloat16`` or ``torch.float16``.
        float_output: Return float32 whatever the arithmetic was.
    """
    if not getattr(type(module), "pcmoe_low_precision", False):
        key = (type(module), dtype, float_output)
        if key not in _CLASSES:
            _CLASSES[key] = _low_precision_class(*key)
        module.__class__ = _CLASSES[key]
