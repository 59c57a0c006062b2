"""Soft-NMS: mmcv's compiled results and the algorithm of the paper as a loop."""

from __future__ import annotations

import mmcv.ops
import numpy as np
import pytest
import torch

from pcmoe_det.compat.soft_nms import softnms
from pcmoe_det.errors import UsageError
from tests.compat.slow_operators import slow_soft_nms

_METHODS = {"naive": 0, "linear": 1, "gaussian": 2}


def _boxes(count: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    rng = np.random.default_rng(seed)
    corner = rng.uniform(0, 60, (count, 2))
    boxes = np.concatenate((corner, corner + rng.uniform(10, 40, (count, 2))), axis=1)
    return torch.from_numpy(boxes.astype(np.float32)), torch.from_numpy(rng.random(count).astype(np.float32))


@pytest.mark.parametrize("method", _METHODS)
def test_equals_compiled_mmcv(reference: dict[str, torch.Tensor], method: str) -> None:
    dets, kept = mmcv.ops.soft_nms(
        reference["softnms.boxes"], reference["softnms.scores"], 0.3, 0.5, 1e-3, method
    )
    assert kept.tolist() == reference[f"softnms_{method}.keep"].tolist()
    torch.testing.assert_close(dets, reference[f"softnms_{method}.dets"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("method", _METHODS)
def test_equals_the_algorithm_of_the_paper(method: str) -> None:
    boxes, scores = _boxes(60, seed=2)
    dets, kept = mmcv.ops.soft_nms(boxes, scores, 0.3, 0.5, 1e-3, method)
    expected = slow_soft_nms(boxes.numpy(), scores.numpy(), _METHODS[method])
    assert kept.tolist() == [index for index, _ in expected]
    torch.testing.assert_close(dets[:, 4], torch.tensor([score for _, score in expected]), atol=1e-5, rtol=0)
    assert torch.equal(dets[:, :4], boxes[kept])


def test_arguments_stay_as_they_are() -> None:
    boxes, scores = _boxes(30, seed=4)
    before = boxes.clone(), scores.clone()
    softnms(boxes, scores, boxes.new_empty(30, 5), 0.3, 0.5, 1e-3, 1, 0)
    assert torch.equal(boxes, before[0])
    assert torch.equal(scores, before[1])


def test_bfloat16_boxes_decay_in_float32() -> None:
    boxes, scores = _boxes(40, seed=6)
    boxes, scores = boxes.bfloat16(), scores.bfloat16()
    dets, kept = mmcv.ops.soft_nms(boxes, scores, method="gaussian")
    exact, exact_kept = mmcv.ops.soft_nms(boxes.float(), scores.float(), method="gaussian")
    assert dets.dtype == torch.bfloat16
    assert kept.tolist() == exact_kept.tolist()
    assert torch.equal(dets, exact.bfloat16())


def test_boxes_without_area_keep_their_scores() -> None:
    boxes = torch.tensor([[5.0, 5, 5, 5], [5, 5, 5, 5], [0, 0, 10, 10]])
    dets, kept = mmcv.ops.soft_nms(boxes, torch.tensor([0.9, 0.8, 0.7]), method="gaussian")
    assert kept.tolist() == [0, 1, 2]
    torch.testing.assert_close(dets[:, 4], torch.tensor([0.9, 0.8, 0.7]))


def test_no_boxes() -> None:
    dets, kept = mmcv.ops.soft_nms(torch.zeros(0, 4), torch.zeros(0))
    assert dets.shape == (0, 5)
    assert kept.dtype == torch.int64


def test_unknown_method_is_named() -> None:
    boxes, scores = _boxes(3, seed=1)
    with pytest.raises(UsageError, match="method 3"):
        softnms(boxes, scores, boxes.new_empty(3, 5), 0.3, 0.5, 1e-3, 3, 0)
