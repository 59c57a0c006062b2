"""Low-precision arithmetic: where it is used, where boxes stay exact, and copies of such models."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mmengine.model import ExponentialMovingAverage
from torch import Tensor, nn

from pcmoe_det.models.detector import MixedPrecisionRoIExtractor
from pcmoe_det.models.inference import prepare_for_inference
from pcmoe_det.models.precision import cast_tree, low_precision_forward, parameter_dtype
from tests.models.tiny_models import build, cascade_rcnn, training_batch


def on_bfloat16_grid(values: Tensor) -> Tensor:
    return values == values.bfloat16().float()


class Watch:
    """What went into RoIAlign, and what the heads gave back."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, model: nn.Module) -> None:
        self.rois: list[Tensor] = []
        self.features: list[torch.dtype] = []
        self.heads: list[torch.dtype] = []
        forward = MixedPrecisionRoIExtractor.forward

        def watched(extractor: Any, feats: Any, rois: Tensor, *args: Any) -> Tensor:
            self.features.append(feats[0].dtype)
            return forward(extractor, feats, rois, *args)

        monkeypatch.setattr(MixedPrecisionRoIExtractor, "forward", watched)
        layer = type(model.roi_head.bbox_roi_extractor[0].roi_layers[0])  # type: ignore[index,union-attr]
        align = layer.forward

        def watched_align(module: Any, features: Tensor, rois: Tensor) -> Tensor:
            self.rois.append(rois.detach().clone())
            return align(module, features, rois)

        monkeypatch.setattr(layer, "forward", watched_align)
        for head in (model.rpn_head, *model.roi_head.bbox_head):  # type: ignore[union-attr]
            head.register_forward_hook(self._keep)

    def _keep(self, module: nn.Module, inputs: Any, output: Any) -> None:
        self.heads.extend(tensor.dtype for tensor in flat(output))

    def assert_boxes_are_exact(self) -> None:
        assert set(self.features) == {torch.bfloat16}
        assert set(self.heads) == {torch.float32}
        assert {rois.dtype for rois in self.rois} == {torch.float32}
        coordinates = torch.cat([rois[:, 1:].flatten() for rois in self.rois])
        assert coordinates.numel() > 100
        assert on_bfloat16_grid(coordinates).float().mean() < 0.5


def flat(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    else:
        for item in value:
            yield from flat(item)


def test_training_in_bfloat16_keeps_boxes_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(cascade_rcnn(precision="bfloat16")).train()
    watch = Watch(monkeypatch, model)
    total, _ = model.parse_losses(model.loss(*training_batch()))  # type: ignore[operator]
    total.backward()
    watch.assert_boxes_are_exact()
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}
    assert all(value.grad is None or value.grad.isfinite().all() for value in model.parameters())


def test_inference_in_bfloat16_keeps_boxes_exact(monkeypatch: pytest.MonkeyPatch) -> None:
    model = prepare_for_inference(build(cascade_rcnn()), dtype=torch.bfloat16, device=torch.device("cpu"))
    watch = Watch(monkeypatch, model)
    images, samples = training_batch(images=1)
    with torch.inference_mode():
        found = model.predict(images, samples, rescale=True)[0].pred_instances  # type: ignore[operator]
    watch.assert_boxes_are_exact()
    assert parameter_dtype(model.backbone) == torch.bfloat16  # type: ignore[arg-type]
    assert found.bboxes.dtype == found.scores.dtype == torch.float32
    inside = (found.bboxes > 0) & (found.bboxes < torch.tensor([96, 64, 96, 64]))
    assert inside.sum() > 10
    assert on_bfloat16_grid(found.bboxes[inside]).float().mean() < 0.5


def test_prepared_in_float32_is_the_same_detector() -> None:
    model = build(cascade_rcnn()).train()
    for _ in range(3):  # running statistics to fold
        model.loss(*training_batch())  # type: ignore[operator]
    model.eval()
    images, samples = training_batch(images=1)
    with torch.inference_mode():
        expected = model.predict(images, copy.deepcopy(samples), rescale=True)[0]  # type: ignore[operator]
        prepared = prepare_for_inference(
            copy.deepcopy(model), dtype=torch.float32, device=torch.device("cpu")
        )
        assert not any(isinstance(module, nn.BatchNorm2d) for module in prepared.neck.modules())  # type: ignore[union-attr]
        found = prepared.predict(images, samples, rescale=True)[0]  # type: ignore[operator]
    assert len(found.pred_instances) == len(expected.pred_instances) > 0
    for name in ("bboxes", "scores"):
        ours, theirs = (getattr(result.pred_instances, name) for result in (found, expected))
        torch.testing.assert_close(ours, theirs, atol=1e-3, rtol=1e-4)
    assert not any(parameter.requires_grad for parameter in prepared.parameters())


@pytest.mark.parametrize("copy_it", [copy.deepcopy, lambda model: ExponentialMovingAverage(model).module])
def test_copies_compute_with_their_own_weights(copy_it: Any) -> None:
    model = build(cascade_rcnn(precision="bfloat16")).eval()
    images, _ = training_batch(images=1)
    with torch.no_grad():
        before = model.backbone(images)[0]  # type: ignore[operator]
        twin = copy_it(model).eval()
        assert torch.equal(twin.backbone(images)[0], before)
        for parameter in twin.parameters():
            parameter.mul_(0.5)
        twin.eval()
        assert not torch.equal(twin.backbone(images)[0], before)
        assert torch.equal(model.backbone(images)[0], before)  # type: ignore[operator]
    assert type(twin.backbone) is type(model.backbone)
    assert twin.state_dict().keys() == model.state_dict().keys()
    assert before.dtype == torch.bfloat16


def test_an_average_follows_training() -> None:
    model = build(cascade_rcnn(precision="bfloat16"))
    average = ExponentialMovingAverage(model, momentum=0.5)
    average.update_parameters(model)
    old = model.backbone.stem.proj.weight.detach().clone()  # type: ignore[union-attr]
    with torch.no_grad():
        model.backbone.stem.proj.weight.add_(1.0)  # type: ignore[union-attr]
    average.update_parameters(model)
    torch.testing.assert_close(average.module.backbone.stem.proj.weight, old + 0.5)


class _Linear(nn.Linear):
    """A module of its own, so that no other test has exchanged its class."""


@pytest.mark.parametrize("float_output", [True, False])
@pytest.mark.parametrize("weights", [torch.float32, torch.bfloat16])
def test_forward_of_a_module(float_output: bool, weights: torch.dtype) -> None:
    module = _Linear(8, 4)
    names = [name for name, _ in module.named_parameters()]
    low_precision_forward(module, torch.bfloat16, float_output=float_output)
    low_precision_forward(module, torch.bfloat16, float_output=float_output)  # twice changes nothing
    assert isinstance(module, _Linear)
    assert [name for name, _ in module.named_parameters()] == names
    result = module.to(weights)(torch.randn(3, 8))
    assert result.dtype == (torch.float32 if float_output else torch.bfloat16)
    assert on_bfloat16_grid(result.float()).all()


def test_cast_tree_leaves_what_is_no_floating_tensor() -> None:
    labels, box = torch.arange(3), torch.rand(4)
    tree = cast_tree({"a": [box, (labels, None)], "b": "text"}, torch.bfloat16)
    assert tree["a"][0].dtype == torch.bfloat16
    assert tree["a"][1] == (labels, None)
    assert tree["b"] == "text"
    assert isinstance(tree["a"][1], tuple)
