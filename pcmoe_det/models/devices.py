"""Devices as users write them."""

from __future__ import annotations

import torch

from pcmoe_det.errors import UsageError

__all__ = ["checked_device"]


def checked_device(name: str | torch.device) -> torch.device:
    """The device that ``name`` means, if a detector can run there now.

    Args:
        name: ``cpu``, ``cuda`` or ``cuda:N``.

    Raises:
        UsageError: Another kind of device, or one that this machine does not have.
    """
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UsageError(f"unknown device {name!r}; use cpu, or cuda:0 where there is one") from error
    name = str(name)
    if device.type == "cpu":
        return torch.device("cpu")
    if device.type != "cuda":
        raise UsageError(
            f"device {name!r}: detectors do not run on {device.type}; use cpu, or cuda:0 where there is one"
        )
    if not torch.cuda.is_available():
        raise UsageError(f"device {name!r}: torch finds no CUDA device; use --device cpu")
    count = torch.cuda.device_count()
    if device.index is not None and device.index >= count:
        raise UsageError(
            f"device {name!r}: torch finds {count} CUDA device(s); use cuda:0 to cuda:{count - 1}, or cpu"
        )
    return device
