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
      the expert it stands in for, else skip.
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
    own = routing.scores.gather(1, exchanged.experts)
    wanted = routing.scores.gather(1, routing.experts)
    near = (own >= rerank_bound * wanted) | present.all(dim=1, keepdim=True)
    return replace(exchanged, kept=near if exchanged.kept is None else near & exchanged.kept)
