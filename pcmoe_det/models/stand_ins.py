"""Which expert stands in for an absent one, with what gate weight, and training that gets used to it."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor

from pcmoe_det.models.gates import Routing

__all__ = ["DEFAULT_STAND_IN_WEIGHT", "StandInWeight", "random_committees", "with_stand_ins"]

StandInWeight = Literal["own", "wanted", "renormalized"]
"""``own``: the stand-in's own gate score. ``wanted``: the score of the expert that it stands in for.
``renormalized``: its score over the sum of all residents' scores, as if the gate knew no others."""

DEFAULT_STAND_IN_WEIGHT: StandInWeight = "own"
"""It disturbs least, because a gate gives little weight to an expert that it did not choose. With a random
quarter of the shipped experts, 639 frames of street clips, mAP@0.5 against all of them: own +0.68
[+0.31, +1.07], wanted +0.13 [-0.38, +0.56], renormalized -0.21 [-0.77, +0.30]; no expert at all +0.52
[+0.31, +0.96]."""


def with_stand_ins(
    routing: Routing, resident: Tensor, *, weight: StandInWeight, normalize: bool = True
) -> Routing:
    """Route tokens that want an absent expert to the best resident ones.

    Tokens whose experts are all resident keep their routing to the bit.

    Args:
        routing: Of all experts, ``top_k`` choices a token.
        resident: Bool, ``[num_experts]``, or ``[tokens, num_experts]`` if tokens have their own committees.
        weight: Gate weight of a stand-in.
        normalize: Whether the gate makes the weights of several choices sum to one.

    Returns:
        The routing to carry out; a choice that no resident expert is left for is not ``kept``.
    """
    top_k = routing.experts.shape[1]
    per_token = resident.expand_as(routing.scores)
    missing = ~per_token.gather(1, routing.experts).all(dim=1)
    scores = routing.scores[missing].masked_fill(~per_token[missing], 0.0)
    own, experts = scores.topk(top_k, dim=1)
    epsilon = torch.finfo(own.dtype).eps
    if weight == "wanted":
        weights = routing.weights[missing]
    elif weight == "renormalized":
        total = own.sum(dim=1, keepdim=True) if top_k > 1 else scores.sum(dim=1, keepdim=True)
        weights = own / total.clamp_min(epsilon) if top_k == 1 or normalize else own
    else:
        weights = own
        if top_k > 1 and normalize:
            wanted = routing.scores[missing].gather(1, routing.experts[missing]).sum(dim=1, keepdim=True)
            weights = own / wanted.clamp_min(epsilon)
    all_experts, all_weights = routing.experts.clone(), routing.weights.clone()
    all_experts[missing], all_weights[missing] = experts, weights
    usable = own > 0
    if routing.kept is None and bool(usable.all()):
        return replace(routing, experts=all_experts, weights=all_weights)
    kept = torch.ones_like(all_experts, dtype=torch.bool) if routing.kept is None else routing.kept.clone()
    kept[missing] = usable
    return replace(routing, experts=all_experts, weights=all_weights, kept=kept)


@torch.no_grad()
def random_committees(
    scores: Tensor, *, batch: int, probability: float, smallest_share: float = 0.25, focus: float = 3.0
) -> Tensor | None:
    """A random committee for some images of a training batch, favouring the experts that an image uses.

    Its size is uniform from ``smallest_share`` of the experts to all but one. Experts are drawn without
    replacement, each with a chance proportional to a power of its mean gate score over the image (Gumbel
    top-k, arXiv 1903.06059): a committee holds what matters to its video, and what mattered a moment ago.
    Committees that hold what does not matter are never met under ``pcmoe``; getting used to them too would
    only make the experts alike.

    Args:
        scores: ``[batch * tokens_per_image, num_experts]``, softmax of the gate.
        batch: Images.
        probability: Share of the images that get one.
        smallest_share: See above.
        focus: The power; 0 draws evenly, a large one always takes the experts that the image uses most.

    Returns:
        Bool ``[batch * tokens_per_image, num_experts]``, the residents for each token; None if this time no
        image gets a committee.
    """
    num_experts = scores.shape[1]
    limited = torch.rand(batch, device=scores.device) < probability
    if num_experts < 2 or not bool(limited.any()):
        return None
    smallest = max(1, round(smallest_share * num_experts))
    sizes = torch.randint(smallest, num_experts, (batch, 1), device=scores.device)
    sizes[~limited] = num_experts
    usage = scores.view(batch, -1, num_experts).mean(dim=1).clamp_min(torch.finfo(scores.dtype).tiny)
    gumbel = -torch.log(-torch.log(torch.rand_like(usage).clamp(1e-9, 1 - 1e-7)))
    rank = (focus * usage.log() + gumbel).argsort(dim=1, descending=True).argsort(dim=1)
    return (rank < sizes).repeat_interleave(scores.shape[0] // batch, dim=0)
