"""What happens to a token whose expert is not resident."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from pcmoe_det.models.gates import Gate, Routing

__all__ = ["MissHandling", "handle_misses"]

MissHandling = Literal["exchange", "skip", "rerank", "load"]


def handle_misses(
    handling: MissHandling, routing: Routing, gate: Gate, resident: torch.Tensor, *, rerank_bound: float
) -> Routing:
    """Reroute the tokens that the unmasked routing sends to absent experts.

    Tokens whose experts are all resident keep their routing to the bit.

    - ``exchange``: the best resident expert, with *its own* gate score as weight. A token that wanted
      another expert clearly thus gets little of the stand-in, one that was undecided much.
    - ``skip``: no expert; the residual passes. Weights of the kept choices stay.
    - ``rerank``: exchange where the resident's score is at least ``rerank_bound`` times the score of
      the expert it stands in for, else skip.
    - ``load``: the routing is exact; the experts are loaded when they run.

    Args:
        handling: See above.
        routing: By the unmasked gate.
        gate: For ``top_k`` and ``normalize``.
        resident: ``[num_experts]`` bool.
        rerank_bound: 0 to 1.

    Returns:
        The routing to carry out.
    """
    present = resident[routing.experts]
    if handling == "load" or bool(present.all()):
        return routing
    kept = present if routing.kept is None else present & routing.kept
    if handling == "skip" or not bool(resident.any()):
        return replace(routing, kept=kept)
    missing = ~present.all(dim=1)
    scores = routing.scores[missing].masked_fill(~resident, 0.0)
    weights, experts = scores.topk(gate.top_k, dim=1)
    usable = weights > 0
    if handling == "rerank":
        usable &= weights >= rerank_bound * routing.scores[missing].gather(1, routing.experts[missing])
    if gate.top_k > 1 and gate.normalize:
        total = routing.scores[missing].gather(1, routing.experts[missing]).sum(dim=1, keepdim=True)
        weights = weights / total.clamp_min(torch.finfo(weights.dtype).eps)
    all_experts, all_weights = routing.experts.clone(), routing.weights.clone()
    all_kept = torch.ones_like(present) if routing.kept is None else routing.kept.clone()
    all_experts[missing], all_weights[missing], all_kept[missing] = experts, weights, usable
    if bool(all_kept.all()):
        return replace(routing, experts=all_experts, weights=all_weights)
    return replace(routing, experts=all_experts, weights=all_weights, kept=all_kept)
