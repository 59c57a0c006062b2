"""Fixtures of the operator tests."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from tests.reference import shared


@pytest.fixture(scope="session")
def reference() -> dict[str, Tensor]:
    """Inputs and outputs of mmcv's compiled CPU operators."""
    with np.load(shared("reference", "mmcv_ops", "mmcv_ops.npz")) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
