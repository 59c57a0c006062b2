"""Any mmdet detector, with the router losses of its backbone and mixed precision."""

from __future__ import annotations

from functools import cache
from typing import Any, Literal

import torch
from mmdet.models.roi_heads.roi_extractors import SingleRoIExtractor
from mmdet.registry import MODELS
from torch import Tensor, nn

from pcmoe_det.models.precision import low_precision_forward

__all__ = ["MixedPrecisionRoIExtractor", "MoEDetectorMixin", "Precision", "moe_detector"]

Precision = Literal["float32", "bfloat16"]


class MoEDetectorMixin:
    """Adds ``backbone.auxiliary_losses()`` to the losses of an mmdet detector.

    mmdet passes on only the feature maps of a backbone, so the backbone keeps its router losses
    and the detector fetches them after its own.
    """

    backbone: nn.Module

    def loss(self, batch_inputs: Tensor, batch_data_samples: list[Any]) -> dict[str, Any]:
        """The detector's losses, ``loss_balance`` and the logged ``busiest_expert``."""
        losses: dict[str, Any] = super().loss(batch_inputs, batch_data_samples)  # type: ignore[misc]
        collect = getattr(self.backbone, "auxiliary_losses", None)
        if collect is not None:
            losses.update(collect())
        return losses

    def _dump_init_info(self) -> None:
        """mmengine writes four lines for each parameter into the log; the config says it all."""


@cache
def _with_moe_losses(detector: type[nn.Module]) -> type[nn.Module]:
    return type(f"MoE{detector.__name__}", (MoEDetectorMixin, detector), {})


def _heads(model: nn.Module) -> list[nn.Module]:
    """The modules whose forward is dense arithmetic on features: RPN, dense and box heads."""
    heads = [getattr(model, name, None) for name in ("rpn_head",)]
    heads.append(getattr(model, "bbox_head", None))
    roi_head = getattr(model, "roi_head", None)
    box_heads = getattr(roi_head, "bbox_head", None)
    heads.extend(box_heads if isinstance(box_heads, nn.ModuleList) else [box_heads])
    return [head for head in heads if isinstance(head, nn.Module)]


@MODELS.register_module(name="MoEDetector")
def moe_detector(*, detector: str, precision: Precision = "float32", **config: Any) -> nn.Module:
    """Build an mmdet detector whose backbone may be a Swin-MoE.

    Args:
        detector: An mmdet detector's registered name, such as ``CascadeRCNN``.
        precision: ``bfloat16`` runs features and heads in bfloat16 and boxes in float32.
        config: That detector's own arguments.
    """
    base = MODELS.get(detector)
    if base is None:
        raise ValueError(
            f"unknown detector {detector!r}; name a class of mmdet's registry, e.g. 'CascadeRCNN'"
        )
    model = _with_moe_losses(base)(**config)
    if precision == "bfloat16":
        use_low_precision(model)
    elif precision != "float32":
        raise ValueError(f"unknown precision {precision!r}; there are 'float32' and 'bfloat16'")
    return model


def use_low_precision(model: nn.Module, dtype: torch.dtype = torch.bfloat16) -> None:
    """Run backbone, neck and heads of a detector in ``dtype``; boxes stay float32. In place."""
    for name in ("backbone", "neck"):
        part = getattr(model, name, None)
        if isinstance(part, nn.Module):
            low_precision_forward(part, dtype, float_output=False)
    for head in _heads(model):
        low_precision_forward(head, dtype, float_output=True)


@MODELS.register_module()
class MixedPrecisionRoIExtractor(SingleRoIExtractor):
    """mmdet's extractor, but boxes keep float32 where features are bfloat16.

    mmdet casts the boxes to the dtype of the features, which moves them by up to 4 pixels.
    """

    def forward(
        self, feats: tuple[Tensor, ...], rois: Tensor, roi_scale_factor: float | None = None
    ) -> Tensor:
        """``[num_rois, channels, height, width]`` features of ``[num_rois, 5]`` float32 boxes."""
        rois = rois.float()
        levels = self.map_roi_levels(rois, len(feats))
        if roi_scale_factor is not None:
            rois = self.roi_rescale(rois, roi_scale_factor)
        if len(feats) == 1:
            return self.roi_layers[0](feats[0], rois)
        pooled: list[Tensor] = []
        order: list[Tensor] = []
        for level, layer in enumerate(self.roi_layers):
            chosen = (levels == level).nonzero().squeeze(1)
            # An empty level takes part too, so that its parameters get a (zero) gradient everywhere.
            pooled.append(layer(feats[level], rois.index_select(0, chosen)))
            order.append(chosen)
        inverse = torch.empty_like(levels)
        places = torch.cat(order)
        inverse[places] = torch.arange(places.numel(), device=places.device)
        return torch.cat(pooled).index_select(0, inverse)
