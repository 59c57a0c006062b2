"""Window layouts against pad, roll and partition written out, and what their cache may not break."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from pcmoe_det.models.windows import MASKED_SCORE, from_windows, to_windows, window_layout

CPU = torch.device("cpu")
SIZES = [(8, 8), (7, 11), (4, 4), (3, 2), (1, 1), (5, 24)]


def partition(tokens: Tensor, height: int, width: int, window: int, shift: int) -> Tensor:
    """Swin's own steps: ``[batch, height * width, channels]`` -> windows, one after the other."""
    plane = tokens.view(tokens.shape[0], height, width, -1)
    plane = F.pad(plane, (0, 0, 0, -width % window, 0, -height % window))
    plane = torch.roll(plane, (-shift, -shift), (1, 2))
    windows = [
        plane[:, top : top + window, left : left + window].flatten(1, 2)
        for top in range(0, plane.shape[1], window)
        for left in range(0, plane.shape[2], window)
    ]
    return torch.cat(windows, 1)


@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("shift", [0, 2])
def test_there_and_back(size: tuple[int, int], shift: int) -> None:
    height, width = size
    tokens = torch.randn(2, height * width, 3)
    layout = window_layout(height, width, 4, shift, CPU)
    windows = to_windows(tokens, layout)
    assert torch.equal(windows, partition(tokens, height, width, 4, shift))
    assert torch.equal(from_windows(windows, layout), tokens)


@pytest.mark.parametrize("size", SIZES)
def test_padding_takes_the_fill(size: tuple[int, int]) -> None:
    height, width = size
    tokens, fill = torch.randn(2, height * width, 3), torch.randn(3)
    layout = window_layout(height, width, 4, 2, CPU)
    windows = to_windows(tokens, layout, fill=fill)
    expected = partition(tokens - fill, height, width, 4, 2) + fill  # what is zero there becomes the fill
    torch.testing.assert_close(windows, expected)


@pytest.mark.parametrize("size", SIZES)
def test_only_neighbours_of_the_unshifted_map_see_each_other(size: tuple[int, int]) -> None:
    height, width, window, shift = *size, 4, 2
    layout = window_layout(height, width, window, shift, CPU)
    assert layout.mask is not None
    rows, columns = -(-height // window) * window, -(-width // window) * window
    coordinates = torch.stack(torch.meshgrid(torch.arange(rows), torch.arange(columns), indexing="ij"), -1)
    where = partition(coordinates.view(1, -1, 2), rows, columns, window, shift).view(-1, window * window, 2)
    for tokens, mask in zip(where, layout.mask[:, 0], strict=True):
        # The shift brings the first rows and columns round the edge, behind the last ones.
        came_round = tokens < shift
        strangers = (came_round[:, None] != came_round[None]).any(-1)
        assert torch.equal(mask, strangers * MASKED_SCORE)


@pytest.mark.parametrize("size", [(7, 11), (8, 8)])
def test_gradients_equal_those_of_the_plain_steps(size: tuple[int, int]) -> None:
    height, width = size
    tokens = torch.randn(2, height * width, 3, dtype=torch.float64, requires_grad=True)
    layout = window_layout(height, width, 4, 2, CPU)
    assert torch.autograd.gradcheck(lambda x: to_windows(x, layout), tokens)
    windows = torch.randn(2, layout.num_windows * 16, 3, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda x: from_windows(x, layout), windows)


def test_a_layout_made_at_inference_serves_training() -> None:
    with torch.inference_mode():
        layout = window_layout(9, 13, 4, 2, CPU)
    tokens = torch.randn(1, 117, 3, requires_grad=True)
    from_windows(to_windows(tokens, layout) * 2, layout).sum().backward()
    assert tokens.grad is not None
    assert torch.equal(tokens.grad, torch.full_like(tokens, 2.0))
