"""Where every token of a feature map lies in the (shifted) attention windows.

Padding, cyclic shift and window partition are one permutation that depends on the size of the map
only, so it is computed once per size and applied as a single gather; its inverse undoes all three.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

__all__ = ["MASKED_SCORE", "WindowLayout", "from_windows", "to_windows", "window_layout"]

MASKED_SCORE = -100.0
"""Added to the attention score of two tokens that only the cyclic shift made neighbours (Swin)."""


@dataclass(frozen=True, eq=False)
class WindowLayout:
    """The windows of one map size.

    Attributes:
        gather: ``[num_windows * window_area]`` int64; the token each window position takes, any where the
            position is padding.
        padding: ``[n]`` int64; the window positions that are padding.
        scatter: ``[height * width]`` int64; the window position where each token went.
        mask: ``[num_windows, 1, window_area, window_area]`` float32 of 0 and ``MASKED_SCORE``, or
            None without shift.
        num_windows: Windows of one image.
        window_area: Tokens of one window.
    """

    gather: Tensor
    padding: Tensor
    scatter: Tensor
    mask: Tensor | None
    num_windows: int
    window_area: int


def _region(size: int, window: int, shift: int) -> Tensor:
    """Label of each shifted coordinate; only equal labels were neighbours before the shift."""
    region = torch.zeros(size, dtype=torch.int64)
    if shift:
        region[size - window : size - shift] = 1
        region[size - shift :] = 2
    return region


@lru_cache(maxsize=256)
def window_layout(height: int, width: int, window: int, shift: int, device: torch.device) -> WindowLayout:
    """The layout of a ``height x width`` token map in ``window x window`` windows shifted by ``shift``.

    The map is padded with zero tokens at the bottom and the right to whole windows, as in Swin.
    """
    padded_height = -(-height // window) * window
    padded_width = -(-width // window) * window
    rows = torch.arange(padded_height)[:, None]
    columns = torch.arange(padded_width)[None, :]
    token = torch.where((rows < height) & (columns < width), rows * width + columns, height * width)
    token = torch.roll(token, shifts=(-shift, -shift), dims=(0, 1))

    def partition(plane: Tensor) -> Tensor:
        tiles = plane.view(padded_height // window, window, padded_width // window, window)
        return tiles.permute(0, 2, 1, 3).reshape(-1)

    gather = partition(token)
    num_windows = (padded_height // window) * (padded_width // window)
    scatter = torch.empty(height * width + 1, dtype=torch.int64)
    scatter[gather] = torch.arange(gather.numel())
    mask = None
    if shift:
        label = (
            3 * _region(padded_height, window, shift)[:, None] + _region(padded_width, window, shift)[None]
        )
        label = partition(label).view(num_windows, window * window)
        differs = label[:, None, :] != label[:, :, None]
        mask = (differs * MASKED_SCORE).unsqueeze(1).to(device)
    return WindowLayout(
        gather=gather.clamp(max=height * width - 1).to(device),
        padding=torch.nonzero(gather == height * width).flatten().to(device),
        scatter=scatter[:-1].clone().to(device),
        mask=mask,
        num_windows=num_windows,
        window_area=window * window,
    )


def _gather_padded(tokens: Tensor, layout: WindowLayout, fill: Tensor | None = None) -> Tensor:
    windows = tokens.index_select(1, layout.gather)
    if not layout.padding.numel():
        return windows
    if fill is None:
        return windows.index_fill_(1, layout.padding, 0)
    batch, _, channels = tokens.shape
    rows = fill.to(windows.dtype).expand(batch, layout.padding.numel(), channels)
    return windows.index_copy_(1, layout.padding, rows)


class _ToWindows(torch.autograd.Function):
    """Every token goes to exactly one place, so the gradient is a gather too (no scatter-add)."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout = layout
        return _gather_padded(tokens, layout)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return grads[0].index_select(1, ctx.layout.scatter), None


class _FromWindows(torch.autograd.Function):
    """Inverse of ``_ToWindows``; padding is dropped, its gradient is zero."""

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, layout: WindowLayout) -> Tensor:
        ctx.layout = layout
        return tokens.index_select(1, layout.scatter)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _gather_padded(grads[0], ctx.layout), None


def to_windows(tokens: Tensor, layout: WindowLayout, *, fill: Tensor | None = None) -> Tensor:
    """``[batch, height * width, channels]`` -> ``[batch, num_windows * window_area, channels]``.

    Args:
        tokens: Any map.
        layout: Its windows.
        fill: ``[channels]``, what padding is; None is zeros. Only where no gradient is wanted.
    """
    if tokens.requires_grad:
        assert fill is None
        return _ToWindows.apply(tokens, layout)
    return _gather_padded(tokens, layout, fill)


def from_windows(tokens: Tensor, layout: WindowLayout) -> Tensor:
    """``[batch, num_windows * window_area, channels]`` -> ``[batch, height * width, channels]``."""
    if tokens.requires_grad:
        return _FromWindows.apply(tokens, layout)
    return tokens.index_select(1, layout.scatter)
