"""Devices as users write them, right and wrong."""

from __future__ import annotations

import pytest
import torch

from pcmoe_det.errors import UsageError
from pcmoe_det.models.devices import checked_device


@pytest.mark.parametrize("name", ["cpu", "cpu:0", torch.device("cpu")])
def test_the_processor_is_always_there(name: str | torch.device) -> None:
    assert checked_device(name) == torch.device("cpu")


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("banana", "unknown device 'banana'; use cpu, or cuda:0"),
        ("", "unknown device ''"),
        ("cuda:x", "unknown device 'cuda:x'"),
        ("meta", "device 'meta': detectors do not run on meta; use cpu"),
    ],
)
def test_other_devices_are_refused_by_name(name: str, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        checked_device(name)


def test_cuda_devices_must_be_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UsageError, match="device 'cuda:0': torch finds no CUDA device; use --device cpu"):
        checked_device("cuda:0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    assert checked_device("cuda:1") == torch.device("cuda", 1)
    assert checked_device("cuda") == torch.device("cuda")
    with pytest.raises(UsageError, match=r"'cuda:2': torch finds 2 CUDA device\(s\); use cuda:0 to cuda:1"):
        checked_device("cuda:2")
