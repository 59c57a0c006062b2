"""NMS: mmcv's compiled results, a loop over pairs, and inputs that go wrong easily."""

from __future__ import annotations

import mmcv.ops
import numpy as np
import pytest
import torch

from pcmoe_det.compat import nms as nms_module
from pcmoe_det.compat.nms import nms
from tests.compat.slow_operators import slow_nms


def _spread(rng: np.random.Generator, count: int) -> np.ndarray:
    corner = rng.uniform(0, 400, (count, 2))
    return np.concatenate((corner, corner + rng.uniform(4, 90, (count, 2))), axis=1).astype(np.float32)


def _clustered(rng: np.random.Generator, count: int) -> np.ndarray:
    centres = _spread(rng, 6)[rng.integers(0, 6, count)]
    moved = centres + rng.normal(0, 4, centres.shape)
    return np.concatenate((moved[:, :2], np.maximum(moved[:, :2] + 1, moved[:, 2:])), axis=1).astype(
        np.float32
    )


def _chain(_: np.random.Generator, count: int) -> np.ndarray:
    """Each box overlaps the next ones only: the decision about one depends on all before it."""
    left = np.arange(count, dtype=np.float32) * 10
    return np.stack((left, np.zeros_like(left), left + 40, np.full_like(left, 30)), axis=1)


def _on_a_grid(rng: np.random.Generator, count: int) -> np.ndarray:
    """Small integers, so that overlaps equal to the threshold and equal boxes are common."""
    corner = rng.integers(0, 12, (count, 2))
    return np.concatenate((corner, corner + rng.integers(0, 8, (count, 2))), axis=1).astype(np.float32)


@pytest.mark.parametrize("case", ["300_5_0", "300_7_0", "300_5_1", "1_5_0", "2000_6_0"])
def test_keeps_the_boxes_that_compiled_mmcv_keeps(reference: dict[str, torch.Tensor], case: str) -> None:
    _, threshold, offset = (int(part) for part in case.split("_"))
    boxes, scores = reference[f"nms_{case}.boxes"], reference[f"nms_{case}.scores"]
    dets, kept = mmcv.ops.nms(boxes, scores, threshold / 10, offset)
    assert kept.tolist() == reference[f"nms_{case}.keep"].tolist()
    assert torch.equal(dets, torch.cat((boxes[kept], scores[kept, None]), dim=1))


def test_batched_nms_equals_compiled_mmcv(reference: dict[str, torch.Tensor]) -> None:
    dets, kept = mmcv.ops.batched_nms(
        reference["softnms.boxes"],
        reference["softnms.scores"],
        reference["batched_nms.ids"],
        {"type": "nms", "iou_threshold": 0.5},
    )
    assert kept.tolist() == reference["batched_nms.keep"].tolist()
    torch.testing.assert_close(dets, reference["batched_nms.dets"], atol=1e-5, rtol=0)


@pytest.mark.parametrize("offset", [0, 1])
@pytest.mark.parametrize("threshold", [-0.5, 0.0, 0.3, 0.5, 0.7, 1.0])
@pytest.mark.parametrize("make", [_spread, _clustered, _chain, _on_a_grid], ids=lambda make: make.__name__)
def test_equals_a_loop_over_pairs(make, threshold: float, offset: int) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(7)
    for count in (1, 2, 40, 160):
        boxes = make(rng, count)
        scores = rng.integers(0, 25, count).astype(np.float32) / 25  # many equal scores
        kept = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold, offset)
        assert kept.tolist() == slow_nms(boxes, scores, threshold, offset)


@pytest.mark.parametrize("sweep_cost", [0, float("inf")], ids=["sweep", "blocks"])
@pytest.mark.parametrize("make", [_spread, _clustered, _chain], ids=lambda make: make.__name__)
def test_both_ways_decide_alike(make, sweep_cost: float, monkeypatch: pytest.MonkeyPatch) -> None:  # type: ignore[no-untyped-def]
    rng = np.random.default_rng(3)
    boxes = torch.from_numpy(make(rng, 2600))
    scores = torch.from_numpy(rng.random(2600).astype(np.float32))
    expected = nms(boxes, scores, 0.4, 0)
    monkeypatch.setattr(nms_module, "_SWEEP_COST", sweep_cost)
    # Small pieces, so that the sweep crosses their borders.
    monkeypatch.setattr(nms_module, "_CHUNK_PAIRS", 1000)
    assert torch.equal(nms(boxes, scores, 0.4, 0), expected)
    assert 0 < expected.numel() < 2600


def test_broken_boxes_disturb_nothing() -> None:
    rng = np.random.default_rng(5)
    boxes = _clustered(rng, 200)
    scores = rng.random(200).astype(np.float32)
    whole = nms(torch.from_numpy(boxes), torch.from_numpy(scores), 0.5, 0).tolist()
    broken = np.array(
        [
            [np.nan, 0, 50, 50],
            [0, 0, np.inf, np.inf],
            [-np.inf, 5, 90, 50],
            [60, 60, 10, 10],
            [30, 30, 30, 30],
            [30, 30, 30, 30],
            [0, 0, 1e-25, 1e-25],
            [0, 0, 3e38, 3e38],
        ],
        dtype=np.float32,
    )
    mixed = np.concatenate((boxes, broken))
    all_scores = np.concatenate((scores, np.linspace(0.99, 0.2, len(broken), dtype=np.float32)))
    kept = nms(torch.from_numpy(mixed), torch.from_numpy(all_scores), 0.5, 0).tolist()
    assert [index for index in kept if index < 200] == whole
    assert sorted(index for index in kept if index >= 200) == list(range(200, 208))
    assert kept == slow_nms(mixed, all_scores, 0.5)


def test_long_chains_of_overlaps_leave_every_other_box() -> None:
    boxes = torch.from_numpy(_chain(np.random.default_rng(0), 6000))
    # Neighbours overlap by 30 of 50, the next but one by 20 of 60.
    kept = nms(boxes, torch.linspace(1, 0.1, 6000), 0.5, 0)
    assert kept.tolist() == list(range(0, 6000, 2))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_other_dtypes_are_compared_exactly(dtype: torch.dtype) -> None:
    rng = np.random.default_rng(11)
    boxes = torch.from_numpy(_clustered(rng, 150)).to(dtype)
    scores = torch.from_numpy(rng.random(150).astype(np.float32)).to(dtype)
    exact = torch.float64 if dtype == torch.float64 else torch.float32
    kept = nms(boxes, scores, 0.5, 0)
    assert kept.tolist() == slow_nms(boxes.to(exact).numpy(), scores.to(exact).numpy(), 0.5)


def test_no_boxes() -> None:
    dets, kept = mmcv.ops.nms(torch.zeros(0, 4), torch.zeros(0), 0.5)
    assert dets.shape == (0, 5)
    assert kept.dtype == torch.int64
    assert kept.shape == (0,)


def test_score_threshold_and_limit_of_mmcv_wrapper() -> None:
    boxes = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 11], [50, 50, 60, 60], [80, 80, 90, 90]])
    scores = torch.tensor([0.5, 0.9, 0.7, 0.01])
    _, kept = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.05, max_num=1)
    assert kept.tolist() == [1]
    _, kept = mmcv.ops.nms(boxes, scores, 0.5, score_threshold=0.05)
    assert kept.tolist() == [1, 2]
