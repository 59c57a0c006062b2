"""Router losses through mmdet's detectors, and boxes that keep their precision."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmengine.config import ConfigDict
from torch import nn

from pcmoe_det.errors import ConfigError
from pcmoe_det.models.detector import MixedPrecisionRoIExtractor
from pcmoe_det.models.inference import build_model
from pcmoe_det.models.moe import MoELayer
from tests.models.tiny_models import build, cascade_rcnn, retina_net, training_batch

DETECTORS = {"CascadeRCNN": cascade_rcnn, "RetinaNet": retina_net}


def moe_layers(model: nn.Module) -> list[MoELayer]:
    return [module for module in model.modules() if isinstance(module, MoELayer)]


@pytest.mark.parametrize("kind", DETECTORS)
def test_router_losses_are_among_the_detector_s(kind: str) -> None:
    model = build(DETECTORS[kind]()).train()
    losses = model.loss(*training_batch())  # type: ignore[operator]
    total, logged = model.parse_losses(losses)  # type: ignore[operator]
    assert 0 < logged["loss_balance"] < logged["loss"]
    terms = sum(float(value.detach()) for name, value in logged.items() if "loss" in name)
    assert 2 * float(logged["loss"].detach()) == pytest.approx(terms, rel=1e-5)  # the sum is among them
    assert 1 <= logged["busiest_expert"] <= 4
    total.backward()
    for layer in moe_layers(model):
        gradient = layer.gate.weight.grad
        assert gradient is not None
        assert gradient.abs().sum() > 0
    copy.deepcopy(model)  # refused if a tensor of the graph were left on a layer


@pytest.mark.parametrize("kind", DETECTORS)
def test_the_balance_loss_alone_reaches_the_gates(kind: str) -> None:
    model = build(DETECTORS[kind](balance_weight=1.0)).train()
    model.loss(*training_batch())["loss_balance"].backward()  # type: ignore[operator]
    with_gradient = {name for name, value in model.named_parameters() if value.grad is not None}
    assert {"backbone.stages.2.blocks.1.mlp.gate.weight", "backbone.stages.3.blocks.0.mlp.gate.weight"} <= (
        with_gradient
    )
    assert not any("head" in name for name in with_gradient)


def test_its_weight_is_the_configured_one() -> None:
    values = []
    for weight in (1.0, 0.25):
        model = build(retina_net(balance_weight=weight, gate_noise=0.0)).train()
        loss = model.loss(*training_batch())["loss_balance"]  # type: ignore[operator]
        values.append(float(loss.detach()))
    assert values[1] == pytest.approx(0.25 * values[0], rel=1e-5)


def test_a_static_backbone_has_none() -> None:
    losses = build(retina_net(num_experts=0)).train().loss(*training_batch())  # type: ignore[operator]
    assert "loss_balance" not in losses


def test_unknown_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="unknown detector 'CascadeRCMM'"):
        build_model({**retina_net(), "detector": "CascadeRCMM"})
    with pytest.raises(ConfigError, match="unknown precision 'float8'"):
        build_model({**retina_net(), "precision": "float8"})


def extractor(kind: type[SingleRoIExtractor]) -> SingleRoIExtractor:
    return kind(
        roi_layer=ConfigDict(type="RoIAlign", output_size=7, sampling_ratio=2),
        out_channels=4,
        featmap_strides=[8, 16, 32],
        finest_scale=40,
    )


def features(dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    sizes = ((32, 52), (16, 26), (8, 13))
    return [torch.randn(2, 4, *size, generator=generator).to(dtype) for size in sizes]


def boxes(count: int, largest: float) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    corner = torch.rand(count, 2, generator=generator) * 200
    sides = torch.rand(count, 2, generator=generator) * largest + 3.3
    images = torch.arange(count)[:, None] % 2
    return torch.cat([images, corner, corner + sides], dim=1)


@pytest.mark.parametrize("count", [0, 1, 60])
@pytest.mark.parametrize("largest", [20.0, 200.0], ids=["one level", "all levels"])
def test_the_extractor_equals_mmdet_s_in_float32(count: int, largest: float) -> None:
    rois, maps = boxes(count, largest), features()
    ours, theirs = extractor(MixedPrecisionRoIExtractor), extractor(SingleRoIExtractor)
    torch.testing.assert_close(ours(maps, rois), theirs(maps, rois))
    torch.testing.assert_close(ours(maps, rois, 1.3), theirs(maps, rois, 1.3))
    torch.testing.assert_close(ours(maps[:1], rois), theirs(maps[:1], rois))


def test_the_extractor_reads_the_same_places_in_bfloat16() -> None:
    rois = boxes(60, 200.0)
    ours = extractor(MixedPrecisionRoIExtractor)
    exact = ours([level.float() for level in features(torch.bfloat16)], rois)
    low = ours(features(torch.bfloat16), rois)
    assert low.dtype == torch.bfloat16
    torch.testing.assert_close(low.float(), exact, atol=0.02, rtol=0.02)


def test_every_level_has_a_gradient_even_where_no_box_falls() -> None:
    maps = [level.requires_grad_() for level in features()]
    extractor(MixedPrecisionRoIExtractor)(maps, boxes(5, 10.0)).sum().backward()
    assert all(level.grad is not None for level in maps)
    assert [bool(level.grad.any()) for level in maps if level.grad is not None] == [True, False, False]


def test_losses_are_collected_from_any_backbone(monkeypatch: pytest.MonkeyPatch) -> None:
    model = build(retina_net(num_experts=0)).train()
    batch = training_batch()
    extra: dict[str, Any] = {"loss_extra": torch.tensor(2.0)}
    monkeypatch.setattr(type(model.backbone), "auxiliary_losses", lambda _: extra)
    assert model.loss(*batch)["loss_extra"] == 2.0  # type: ignore[operator]
