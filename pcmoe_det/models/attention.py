"""Window attention with Swin's two kinds of relative position bias."""

from __future__ import annotations

import math
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcmoe_det.models.attention_kernel import biased_attention
from pcmoe_det.models.windows import WindowLayout, from_windows, to_windows, window_layout

__all__ = ["BiasKind", "ContinuousPositionBias", "TablePositionBias", "WindowAttention"]

BiasKind = Literal["table", "continuous"]


def _relative_position_index(window: int) -> Tensor:
    """``[window**2, window**2]`` int64: row of the bias table for each pair of tokens."""
    axis = torch.arange(window)
    coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij")).flatten(1)
    relative = coords[:, :, None] - coords[:, None, :] + (window - 1)
    return relative[0] * (2 * window - 1) + relative[1]


class TablePositionBias(nn.Module):
    """Swin V1: one learned bias per head and relative offset. Fixed to one window size."""

    def __init__(self, window: int, num_heads: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.empty((2 * window - 1) ** 2, num_heads))
        self.register_buffer("index", _relative_position_index(window), persistent=False)
        self.window = window
        nn.init.trunc_normal_(self.table, std=0.02)

    def forward(self, window: int) -> Tensor:
        """``[num_heads, window**2, window**2]``. Raises ValueError for another window size."""
        if window != self.window:
            raise ValueError(f"a bias table for window {self.window} cannot serve window {window}")
        return self.table[self.index].permute(2, 0, 1)  # type: ignore[index]


class ContinuousPositionBias(nn.Module):
    """The official Swin-MoE code's bias: a small MLP over log-spaced relative coordinates.

    Swin V2 (arXiv 2111.09883, section 3.3) introduced it; Swin-MoE uses it with plain
    dot-product attention. It serves any window size.
    """

    def __init__(self, num_heads: int, *, hidden: int = 512) -> None:
        super().__init__()
        self.mlp = nn.Sequential(
            nn.Linear(2, hidden), nn.ReLU(inplace=True), nn.Linear(hidden, num_heads, bias=False)
        )

    def forward(self, window: int) -> Tensor:
        """``[num_heads, window**2, window**2]``."""
        weight = next(self.mlp.parameters())
        axis = torch.arange(-(window - 1), window, dtype=torch.float32, device=weight.device)
        coords = torch.stack(torch.meshgrid(axis, axis, indexing="ij"), dim=-1).flatten(0, 1)
        coords = coords * (8.0 / max(window - 1, 1))
        coords = torch.sign(coords) * torch.log2(coords.abs() + 1.0) / math.log2(8)
        table = self.mlp(coords.to(weight.dtype))
        return table[_relative_position_index(window).to(weight.device)].permute(2, 0, 1)


class WindowAttention(nn.Module):
    """Multi-head self-attention inside (shifted) windows of a token map.

    Args:
        channels: Token width.
        num_heads: Heads; must divide ``channels``.
        window: Window side in tokens.
        shifted: Shift the windows by half a window.
        bias: ``table`` follows Swin V1 as mmdet runs it (constant window, always shifted);
            ``continuous`` follows the official Swin-MoE code (a map no larger than one window is one
            unshifted window of its own size).
    """

    def __init__(self, channels: int, *, num_heads: int, window: int, shifted: bool, bias: BiasKind) -> None:
        super().__init__()
        if channels % num_heads:
            raise ValueError(f"{channels} channels cannot be divided among {num_heads} heads")
        self.num_heads = num_heads
        self.window = window
        self.shift = window // 2 if shifted else 0
        self.bias_kind: BiasKind = bias
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.position_bias = (
            TablePositionBias(window, num_heads) if bias == "table" else ContinuousPositionBias(num_heads)
        )
        self._score_bias: dict[tuple[int, int, int, torch.dtype], Tensor] = {}

    def train(self, mode: bool = True) -> WindowAttention:
        self._score_bias.clear()
        return super().train(mode)

    def _apply(self, fn: object, *args: object, **kwargs: object) -> WindowAttention:
        self._score_bias.clear()
        return super()._apply(fn, *args, **kwargs)  # type: ignore[arg-type, return-value]

    def _load_from_state_dict(self, *args: object, **kwargs: object) -> None:
        self._score_bias.clear()
        super()._load_from_state_dict(*args, **kwargs)  # type: ignore[arg-type]

    def layout(self, height: int, width: int, device: torch.device) -> WindowLayout:
        """The windows used for a map of this size."""
        window, shift = self.window, self.shift
        if self.bias_kind == "continuous" and min(height, width) <= window:
            window, shift = min(height, width), 0
        return window_layout(height, width, window, shift, device)

    def _bias_and_mask(
        self, layout: WindowLayout, size: tuple[int, int], batch: int, dtype: torch.dtype
    ) -> Tensor:
        """``[n, num_heads, area, area]`` for maps of this size, kept between frames at inference.

        n is 1 or ``num_windows`` where the bias needs a gradient, else 1 or ``batch * num_windows``.
        """
        kept = not (self.training or torch.is_grad_enabled())
        # Not by the layout's id: layouts are dropped when there are many, and ids used again.
        key = (*size, batch, dtype)
        if kept and key in self._score_bias:
            return self._score_bias[key]
        bias = self.position_bias(math.isqrt(layout.window_area)).unsqueeze(0)
        if layout.mask is not None:
            bias = bias + layout.mask.to(bias.dtype)
            bias = bias if batch == 1 or bias.requires_grad else bias.repeat(batch, 1, 1, 1)
        bias = bias.to(dtype).contiguous()
        if kept:
            if len(self._score_bias) >= 16:  # more sizes than a stream has; do not grow for ever
                self._score_bias.clear()
            self._score_bias[key] = bias
        return bias

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """``[batch, height * width, channels]`` -> the same shape."""
        projected: Tensor = self.proj(self.mix(tokens, height, width))
        return projected

    def mix(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """Attention up to the last projection, ``[batch, height * width, channels]`` -> the same shape."""
        layout = self.layout(height, width, tokens.device)
        batch, _, channels = tokens.shape
        if layout.padding.numel() and not torch.is_grad_enabled():
            # Padding is zero and projected to the bias, so it need not be multiplied. It is a third of the
            # positions of small maps.
            qkv = to_windows(self.qkv(tokens), layout, fill=self.qkv.bias)
        else:
            qkv = self.qkv(to_windows(tokens, layout))
        qkv = qkv.view(batch * layout.num_windows, layout.window_area, 3, self.num_heads, -1)
        query, key, value = qkv.permute(2, 0, 3, 1, 4).unbind(0)
        bias = self._bias_and_mask(layout, (height, width), batch, query.dtype)
        if bias.requires_grad:
            mixed = biased_attention(query, key, value, bias)
        else:
            mixed = F.scaled_dot_product_attention(query, key, value, attn_mask=bias)
        mixed = mixed.transpose(1, 2).reshape(batch, layout.num_windows * layout.window_area, channels)
        # The projection acts on each token alone, so padding is dropped before it.
        return from_windows(mixed, layout)
