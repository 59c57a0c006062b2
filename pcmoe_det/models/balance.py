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


def locality_loss(routing: Routing, *, batch: int, slack: float = 0.1) -> Tensor:
    """How far the gate's scores reach beyond the busier half of the experts, image by image.

    The balance loss asks for even use over a *batch*, which a router can also give by using every expert in
    every image. Asked for both, it sends an image to few experts and different images to different ones: what
    a committee of half of the experts needs. With a balance loss five times lighter the same half served
    every image within 200 iterations, and the other experts died.

    Args:
        routing: Of all tokens of one layer, image after image.
        batch: Images.
        slack: Share of the scores outside the busier half that costs nothing.

    Returns:
        Scalar float32, 0 to ``0.5 - slack``, differentiable in the logits.
    """
    num_experts = routing.logits.shape[1]
    per_image = torch.softmax(routing.logits.float(), dim=1).view(batch, -1, num_experts).mean(dim=1)
    outside = 1.0 - per_image.topk((num_experts + 1) // 2, dim=1).values.sum(dim=1)
    return (outside - slack).clamp_min(0.0).mean()
