"""RoIAlign: mmcv's compiled results, the definition as a loop, gradients, and broken boxes."""

from __future__ import annotations

import pytest
import torch
from mmcv.ops import RoIAlign, roi_align
from torch import Tensor

from pcmoe_det.compat import roi_average
from pcmoe_det.errors import UsageError
from tests.compat.slow_operators import slow_roi_align

_MODES = ["avg", "max"]


def _features(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def _rois(count: int, *, images: int = 2, seed: int = 1, side: float = 130.0) -> Tensor:
    """Boxes from a few pixels to most of a 160 x 120 image, some reaching outside."""
    generator = torch.Generator().manual_seed(seed)
    corner = torch.rand(count, 2, generator=generator) * torch.tensor([170.0, 130.0]) - 10
    size = torch.rand(count, 2, generator=generator) ** 3 * side + 0.5
    image = torch.randint(0, images, (count, 1), generator=generator).float()
    return torch.cat((image, corner, corner + size), dim=1)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("aligned", [0, 1])
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_equals_compiled_mmcv(
    reference: dict[str, Tensor], mode: str, aligned: int, sampling_ratio: int
) -> None:
    features = reference["roi.features"].clone().requires_grad_()
    out = roi_align(features, reference["roi.rois"], (7, 5), 0.25, sampling_ratio, mode, bool(aligned))
    out.backward(torch.linspace(-1, 1, out.numel()).view_as(out))
    case = f"roi_{mode}_aligned{aligned}_sr{sampling_ratio}"
    torch.testing.assert_close(out, reference[f"{case}.out"], atol=1e-5, rtol=0)
    torch.testing.assert_close(features.grad, reference[f"{case}.grad_features"], atol=1e-5, rtol=1e-6)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
@pytest.mark.parametrize("sampling_ratio", [0, 1, 2, 5])
def test_equals_the_definition(mode, aligned: bool, sampling_ratio: int) -> None:  # type: ignore[no-untyped-def]
    features, rois = _features(2, 2, 15, 20, dtype=torch.float64), _rois(25).double()
    out = roi_align(features, rois, (3, 2), 0.125, sampling_ratio, mode, aligned)
    expected = slow_roi_align(features.numpy(), rois.numpy(), (3, 2), 0.125, sampling_ratio, mode, aligned)
    torch.testing.assert_close(out, torch.from_numpy(expected), atol=1e-10, rtol=0)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3)], ids=str)
@pytest.mark.parametrize("mode", _MODES)
def test_maps_smaller_than_the_sampling_grid(mode, shape: tuple[int, int]) -> None:  # type: ignore[no-untyped-def]
    features = _features(1, 2, *shape, dtype=torch.float64).requires_grad_()
    rois = torch.tensor([[0, -3.0, -2, 50, 40], [0, 1, 1, 1.5, 2]]).double()
    out = roi_align(features, rois, (2, 2), 0.5, 0, mode, True)
    expected = slow_roi_align(features.detach().numpy(), rois.numpy(), (2, 2), 0.5, 0, mode, True)
    torch.testing.assert_close(out.detach(), torch.from_numpy(expected), atol=1e-10, rtol=0)


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
@pytest.mark.parametrize("aligned", [False, True], ids=["legacy", "aligned"])
def test_gradients_against_differences(mode: str, sampling_ratio: int, aligned: bool) -> None:
    features = _features(2, 3, 6, 7, dtype=torch.float64).requires_grad_()
    rois = _rois(6).double() * torch.tensor([1, 0.3, 0.3, 0.3, 0.3], dtype=torch.float64)
    assert torch.autograd.gradcheck(
        lambda x: roi_align(x, rois, (2, 3), 0.15, sampling_ratio, mode, aligned), (features,)
    )


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_stays_within_its_rounding(dtype: torch.dtype, mode: str) -> None:
    half = _features(2, 8, 30, 40).to(dtype).requires_grad_()
    full = half.detach().float().requires_grad_()
    rois = _rois(60)
    layer = RoIAlign((7, 7), spatial_scale=0.25, sampling_ratio=0, pool_mode=mode)
    out, exact = layer(half, rois), layer(full, rois)
    assert out.dtype == dtype
    # One rounding of the weights and one of the result, each half a unit in the last place.
    unit = torch.finfo(dtype).eps
    torch.testing.assert_close(out.float(), exact, atol=2 * unit, rtol=unit)
    if mode == "avg":  # Rounded samples may swap places as the largest.
        gradient = _features(*out.shape, seed=3).to(dtype)
        out.backward(gradient)
        exact.backward(gradient.float())
        assert half.grad is not None
        assert half.grad.dtype == dtype
        torch.testing.assert_close(half.grad.float(), full.grad, atol=4 * unit, rtol=2 * unit)


def test_half_precision_coordinates_are_exact() -> None:
    """A ramp of one per column: bfloat16 coordinates, in steps of 1 at 200, would be off by 0.4."""
    ramp = (torch.arange(256.0) - 200).expand(1, 1, 8, 256).bfloat16()
    rois = torch.tensor([[0, 200.4, 2, 203.4, 5]])
    out = roi_align(ramp, rois, (1, 3), 1.0, 2, "avg", True)
    # Bin centres 200.9, 201.9, 202.9; pixel centres lie half a pixel further left.
    torch.testing.assert_close(out.flatten().float(), torch.tensor([0.4, 1.4, 2.4]), atol=0.01, rtol=0.005)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_an_image_alone_gives_the_same_bits(mode: str, sampling_ratio: int, dtype: torch.dtype) -> None:
    features, rois = _features(3, 16, 30, 40).to(dtype), _rois(90, images=3)
    gradient = _features(90, 16, 7, 7, seed=5).to(dtype)

    def run(features: Tensor, rois: Tensor, gradient: Tensor) -> tuple[Tensor, Tensor]:
        features = features.clone().requires_grad_()
        out = roi_align(features, rois, (7, 7), 0.25, sampling_ratio, mode, True)
        out.backward(gradient)
        assert features.grad is not None
        return out.detach(), features.grad

    together, together_grad = run(features, rois, gradient)
    for image in range(3):
        mine = rois[:, 0] == image
        alone_rois = rois[mine] * torch.tensor([0.0, 1, 1, 1, 1])
        alone, alone_grad = run(features[image : image + 1], alone_rois, gradient[mine])
        assert torch.equal(together[mine], alone)
        assert torch.equal(together_grad[image], alone_grad[0])


def test_pieces_and_channel_slices_do_not_show(monkeypatch: pytest.MonkeyPatch) -> None:
    features, rois = _features(2, 40, 30, 40), _rois(80)
    gradient = _features(80, 40, 7, 7, seed=9)

    def run() -> tuple[Tensor, Tensor]:
        leaf = features.clone().requires_grad_()
        out = roi_align(leaf, rois, (7, 7), 0.25, 0, "avg", True)
        out.backward(gradient)
        assert leaf.grad is not None
        return out.detach(), leaf.grad

    whole, whole_grad = run()
    monkeypatch.setattr(roi_average, "_BUFFER_BYTES", 1000)
    monkeypatch.setattr(roi_average, "_FORWARD_TAPS", 3000)
    monkeypatch.setattr(roi_average, "_BACKWARD_TAPS", 3000)
    pieces, pieces_grad = run()
    assert torch.equal(whole, pieces)
    torch.testing.assert_close(whole_grad, pieces_grad, atol=1e-5, rtol=1e-5)


def test_channels_last_features_and_strided_gradients() -> None:
    features, rois = _features(2, 20, 30, 40), _rois(30)
    gradient = _features(30, 7, 7, 20, seed=2).permute(0, 3, 1, 2)
    results = []
    for layout in (torch.contiguous_format, torch.channels_last):
        leaf = features.clone(memory_format=layout).requires_grad_()
        out = roi_align(leaf, rois, (7, 7), 0.25, 2, "avg", True)
        out.backward(gradient)
        results.append((out.detach(), leaf.grad))
    assert torch.equal(results[0][0], results[1][0])
    torch.testing.assert_close(results[0][1], results[1][1])


@pytest.mark.parametrize("mode", _MODES)
@pytest.mark.parametrize("sampling_ratio", [0, 2])
def test_broken_boxes_give_zeros_and_disturb_nothing(mode: str, sampling_ratio: int) -> None:
    features = _features(2, 4, 30, 40).requires_grad_()
    whole = _rois(10)
    nan, inf = float("nan"), float("inf")
    broken = torch.tensor(
        [[0, nan, 0, 9, 9], [1, 0, 0, inf, 9], [0, -inf, -inf, inf, inf], [1, 900, 900, 950, 950]]
    )
    out = roi_align(features, torch.cat((broken, whole)), (3, 3), 0.25, sampling_ratio, mode, True)
    assert torch.equal(out[4:], roi_align(features, whole, (3, 3), 0.25, sampling_ratio, mode, True))
    assert out[:4].count_nonzero() == 0
    out.sum().backward()
    assert features.grad is not None
    assert features.grad.isfinite().all()


def test_boxes_of_no_or_negative_size() -> None:
    features = torch.ones(1, 2, 10, 10)
    rois = torch.tensor([[0.0, 20, 20, 20, 20], [0, 24, 24, 20, 20], [0, 20, 16, 20, 30]])
    adaptive = roi_align(features, rois, (2, 2), 0.25, 0, "avg", True)
    assert adaptive.count_nonzero() == 0  # no samples, and no division of zero by zero
    fixed = roi_align(features, rois, (2, 2), 0.25, 2, "avg", True)
    assert torch.equal(fixed, torch.ones(3, 2, 2, 2))


def test_an_absurdly_large_box_needs_no_absurd_memory() -> None:
    features = torch.ones(1, 1, 20, 20)
    rois = torch.tensor([[0.0, -1e9, -1e9, 1e9, 1e9], [0, 4, 4, 12, 12]])
    out = roi_align(features, rois, (2, 2), 1.0, 0, "avg", True)
    assert (out[0] < 1e-3).all()
    torch.testing.assert_close(out[1], torch.ones(1, 2, 2))


@pytest.mark.parametrize("mode", _MODES)
def test_no_boxes_and_no_channels(mode: str) -> None:
    features = _features(1, 3, 8, 8).requires_grad_()
    out = roi_align(features, torch.zeros(0, 5), (7, 7), 0.5, 0, mode, True)
    assert out.shape == (0, 3, 7, 7)
    out.sum().backward()
    assert features.grad is not None
    assert features.grad.count_nonzero() == 0
    assert roi_align(torch.zeros(1, 0, 8, 8), _rois(4, images=1), (7, 7)).shape == (4, 0, 7, 7)


@pytest.mark.parametrize("index", [-1.0, 2.0, float("nan")])
def test_an_image_that_does_not_exist_is_named(index: float) -> None:
    rois = torch.tensor([[0.0, 0, 0, 8, 8], [index, 0, 0, 8, 8]])
    with pytest.raises(UsageError, match="allowed are 0 to 1"):
        roi_align(_features(2, 3, 8, 8), rois, (2, 2))
