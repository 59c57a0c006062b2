"""Auxiliary losses of a router: no expert idle over a batch, few experts busy within an image."""

from __future__ import annotations

import torch
from torch import Tensor

from pcmoe_det.models.gates import Routing

__all__ = ["importance_and_load_loss", "locality_loss"]


def _squared_variation(per_expert: Tensor) -> Tensor:
    """Squared coefficient of variation, with the unbiased variance."""
    return per_expert.var() / (per_expert.mean().square() + 1e-10)


def importance_and_load_loss(routing: Routing, *, noise: float) -> Tensor:
    """Mean of importance and load loss (Shazeer et al., arXiv 1701.06538, appendix A and section 4).

    As the official Swin-MoE code computes it: the load of an expert is the probability that noise
    lifts its *softmax score* above the token's k-th largest noisy *logit*. Mixing the two is that
    code's habit; a consistent threshold gives other values, so it is kept for parity.

    Args:
        routing: Of all tokens of one layer.
        noise: The gate's noise; its standard deviation on a logit is ``noise / num_experts``.

    Returns:
        Scalar float32, differentiable in the logits.
    """
    num_experts = routing.logits.shape[1]
    if num_experts == 1:
        return routing.logits.new_zeros(())
    probabilities = torch.softmax(routing.logits.float(), dim=1)
    threshold = routing.chosen_logits[:, -1:].float()
    deviation = max(noise, 1e-6) / num_experts
    load = torch.special.ndtr((probabilities - threshold) / deviation).sum(0)
    return 0.5 * (_squared_variation(probabilities.sum(0)) + _squared_variation(load))


def locality_loss(routing: Routing, *, batch: int) -> Tensor:
    """Share of the gate's scores that falls outside the busier half of the experts, image by image.

    The balance loss asks for even use over a *batch*, which a router can also give by using every expert in
    every image. Asked for both, it sends an image to few experts and different images to different ones: what
    a committee of half of the experts needs.

    Args:
        routing: Of all tokens of one layer, image after image.
        batch: Images.

    Returns:
        Scalar float32 in [0, 0.5], differentiable in the logits.
    """
    num_experts = routing.logits.shape[1]
    per_image = torch.softmax(routing.logits.float(), dim=1).view(batch, -1, num_experts).mean(dim=1)
    busier_half = per_image.topk((num_experts + 1) // 2, dim=1).values
    return 1.0 - busier_half.sum(dim=1).mean()
