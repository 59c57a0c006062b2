"""The auxiliary loss that keeps a router from collapsing onto few experts."""

from __future__ import annotations

import torch
from torch import Tensor

from pcmoe_det.models.gates import Routing

__all__ = ["importance_and_load_loss"]


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
