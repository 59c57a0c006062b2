"""Attention with a learned score bias, for training on CPUs.

``scaled_dot_product_attention`` falls back to a generic path when the bias needs a gradient: it
checks for fully masked rows and computes in float32, which took a third of a training step here.
Windows never have a fully masked row, so the plain formula is enough.
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

__all__ = ["biased_attention"]


class _BiasedAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
        windows, heads, area, width = query.shape
        scale = 1.0 / math.sqrt(width)
        query = (query * scale).reshape(windows * heads, area, width)
        key = key.reshape(windows * heads, area, width)
        value = value.reshape(windows * heads, area, width)
        scores = torch.bmm(query, key.transpose(1, 2)).view(-1, *bias.shape).add_(bias)
        probability = torch.softmax(scores.view(windows * heads, area, area), dim=-1)
        ctx.save_for_backward(query, key, value, probability)
        ctx.scale, ctx.shape, ctx.bias_shape = scale, (windows, heads, area, width), bias.shape
        return torch.bmm(probability, value).view(windows, heads, area, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, ...]:
        query, key, value, probability = ctx.saved_tensors
        grad = grads[0].to(query.dtype).reshape(query.shape)
        grad_value = torch.bmm(probability.transpose(1, 2), grad)
        grad_probability = torch.bmm(grad, value.transpose(1, 2))
        grad_scores = torch._softmax_backward_data(grad_probability, probability, -1, probability.dtype)
        grad_bias = grad_scores.view(-1, *ctx.bias_shape).sum(0)
        grad_query = torch.bmm(grad_scores, key).mul_(ctx.scale)
        grad_key = torch.bmm(grad_scores.transpose(1, 2), query)
        shape = ctx.shape
        return grad_query.view(shape), grad_key.view(shape), grad_value.view(shape), grad_bias


def biased_attention(query: Tensor, key: Tensor, value: Tensor, bias: Tensor) -> Tensor:
    """Softmax(query key^T / sqrt(width) + bias) value, differentiable in all four.

    Args:
        query: ``[windows, heads, area, width]``; ``key`` and ``value`` alike.
        bias: ``[n, heads, area, area]`` in the same dtype, repeated ``windows / n`` times.

    Returns:
        ``[windows, heads, area, width]``.
    """
    with torch.autocast(query.device.type, enabled=False):
        return _BiasedAttention.apply(query, key, value, bias)
