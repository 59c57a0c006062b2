"""Prepacked layers against the plain ones."""

from __future__ import annotations

import copy

import pytest
import torch

from pcmoe_det.models.prepacked import PrepackedFFN, PrepackedLinear, can_prepack, prepack
from pcmoe_det.models.swin_moe import DenseFFN, SwinMoE

pytestmark = pytest.mark.skipif(
    not can_prepack(torch.device("cpu")), reason="this build of torch has no oneDNN prepacked layers"
)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 2e-2)])
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 300])
def test_a_linear_layer(dtype: torch.dtype, tolerance: float, bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    linear = torch.nn.Linear(24, 40, bias=bias).to(dtype)
    tokens = torch.randn(2, rows, 24, dtype=dtype)
    with torch.inference_mode():
        torch.testing.assert_close(
            PrepackedLinear(linear)(tokens), linear(tokens), atol=tolerance, rtol=tolerance
        )


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.bfloat16, 3e-2)])
def test_an_ffn_with_its_gelu(dtype: torch.dtype, tolerance: float) -> None:
    torch.manual_seed(0)
    ffn = DenseFFN(24, 96).to(dtype)
    tokens = torch.randn(2, 50, 24, dtype=dtype) * 3
    with torch.inference_mode():
        torch.testing.assert_close(PrepackedFFN(ffn)(tokens), ffn(tokens), atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize("gate", ["linear", "cosine"])
@pytest.mark.parametrize("position_bias", ["table", "continuous"])
def test_a_whole_backbone(gate: str, position_bias: str) -> None:
    torch.manual_seed(0)
    plain = SwinMoE(
        embed_dims=12,
        depths=(1, 1, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        num_experts=3,
        moe_blocks=((), (), (1,), (1,)),
        moe_init_std=0.1,
        gate=gate,  # type: ignore[arg-type]
        position_bias=position_bias,  # type: ignore[arg-type]
    ).eval()
    packed = copy.deepcopy(plain)
    prepack(packed)
    assert sum(isinstance(module, PrepackedLinear) for module in packed.modules()) == 2 * 6 + 2 * 4 + 3
    image = torch.randn(1, 3, 70, 100)
    with torch.inference_mode():
        for ours, expected in zip(packed(image), plain(image), strict=True):
            torch.testing.assert_close(ours, expected, atol=1e-4, rtol=1e-4)
