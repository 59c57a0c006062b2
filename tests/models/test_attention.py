"""Position biases kept between frames, and the two kinds of them."""

from __future__ import annotations

import pytest
import torch

from pcmoe_det.models.attention import BiasKind, ContinuousPositionBias, TablePositionBias, WindowAttention
from pcmoe_det.models.windows import window_layout


def make_attention(bias: BiasKind) -> WindowAttention:
    torch.manual_seed(0)
    attention = WindowAttention(8, num_heads=2, window=4, shifted=True, bias=bias).eval()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


@pytest.mark.parametrize("bias", ["table", "continuous"])
def test_a_bias_is_never_that_of_another_size(bias: BiasKind) -> None:
    """Layouts are dropped and made again over many sizes; a new one may lie where an old one was."""
    attention = make_attention(bias)
    maps = {(height, width): torch.randn(1, 128, 8) for height, width in ((8, 16), (16, 8))}
    expected = {}
    with torch.inference_mode():
        for size, tokens in maps.items():
            expected[size] = attention(tokens, *size)
            attention.train(False)  # forgets
        for _ in range(50):
            for size, tokens in maps.items():
                window_layout.cache_clear()
                torch.testing.assert_close(attention(tokens, *size), expected[size], atol=0, rtol=0)


@pytest.mark.parametrize("size", [(5, 9), (8, 8), (3, 2)])
@pytest.mark.parametrize("bias", ["table", "continuous"])
def test_inference_computes_what_training_does(bias: BiasKind, size: tuple[int, int]) -> None:
    """It projects before the windows are formed, training after; padding has to come out the same."""
    attention = make_attention(bias)
    tokens = torch.randn(2, size[0] * size[1], 8)
    trained = attention(tokens, *size).detach()
    with torch.inference_mode():
        torch.testing.assert_close(attention(tokens, *size), trained, atol=1e-5, rtol=1e-5)


def test_what_is_kept_is_bounded() -> None:
    attention = make_attention("table")
    with torch.inference_mode():
        for height in range(4, 44):
            attention(torch.randn(1, height * 5, 8), height, 5)
    assert len(attention._score_bias) <= 16


def test_a_table_serves_its_window_only() -> None:
    with pytest.raises(ValueError, match="a bias table for window 4 cannot serve window 3"):
        TablePositionBias(4, 2)(3)
    assert ContinuousPositionBias(2)(3).shape == (2, 9, 9)


def test_a_bias_depends_on_the_offset_only() -> None:
    for bias in (TablePositionBias(4, 2), ContinuousPositionBias(2)):
        plane = bias(4).view(2, 4, 4, 4, 4)
        for head in plane.detach():
            assert torch.equal(head[0, 0, 1, 2], head[2, 1, 3, 3])
            assert not torch.equal(head[0, 0, 1, 2], head[0, 0, 2, 1])


def test_heads_must_divide_the_channels() -> None:
    with pytest.raises(ValueError, match="8 channels cannot be divided among 3 heads"):
        WindowAttention(8, num_heads=3, window=4, shifted=False, bias="table")
