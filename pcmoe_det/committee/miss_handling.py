"""What happens to a token whose expert is not resident."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

import torch

from pcmoe_det.models.gates import Gate, Routing
from pcmoe_det.models.stand_ins import StandInWeight, with_stand_ins

__all__ = ["MissHandling", "handle_misses"]

MissHandling = Literal["exchange", "skip", "rerank", "load"]


def handle_misses(
    handling: MissHandling,
    routing: Routing,
    gate: Gate,
    resident: torch.Tensor,
    *,
    rerank_bound: float,
    stand_in_weight: StandInWeight,
) -> Routing:
    """Reroute the tokens that the unmasked routing sends to absent experts.

    Tokens whose experts are all resident keep their routing to the bit.

    - ``exchange``: the best resident expert, with the gate weight that ``stand_in_weight`` says.
    - ``skip``: no expert; the residual passes. Weights of the kept choices stay.
    - ``rerank``: exchange where the resident's score is at least ``rerank_bound`` times the score of
      the expert it stands in for (the best stand-in for the best absent choice), else skip.
    - ``load``: the routing is exact; the experts are loaded when they run.

    Args:
        handling: See above.
        routing: By the unmasked gate.
        gate: For ``normalize``.
        resident: ``[num_experts]`` bool.
        rerank_bound: 0 to 1.
        stand_in_weight: Of ``exchange`` and ``rerank``.

    Returns:
        The routing to carry out.
    """
    present = resident[routing.experts]
    if handling == "load" or bool(present.all()):
        return routing
    if handling == "skip" or not bool(resident.any()):
        return replace(routing, kept=present if routing.kept is None else present & routing.kept)
    exchanged = with_stand_ins(routing, resident, weight=stand_in_weight, normalize=gate.normalize)
    if handling == "exchange":
        return exchanged
    near = _near(routing, exchanged, present, bound=rerank_bound)
    return replace(exchanged, kept=near if exchanged.kept is None else near & exchanged.kept)


def _near(routing: Routing, exchanged: Routing, present: torch.Tensor, *, bound: float) -> torch.Tensor:
    """``[tokens, top_k]`` bool: the choice was the token's own, or scores near the one it replaces."""
    chosen = (exchanged.experts[:, :, None] == routing.experts[:, None, :]).any(dim=2)
    wanted = routing.scores.gather(1, routing.experts)
    absent_first = present.int().argsort(dim=1, stable=True)
    number = (torch.cumsum(~chosen, dim=1) - 1).clamp_min(0)  # the how manieth stand-in of its token
    replaced = wanted.gather(1, absent_first).gather(1, number)
    return chosen | (routing.scores.gather(1, exchanged.experts) >= bound * replaced)
