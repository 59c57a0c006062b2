"""The MoE layer of the paper's figure: a gate and experts."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from pcmoe_det.models.balance import importance_and_load_loss, locality_loss
from pcmoe_det.models.experts import ExpertFFN
from pcmoe_det.models.gates import Gate, Routing
from pcmoe_det.models.stand_ins import (
    DEFAULT_STAND_IN_WEIGHT,
    StandInWeight,
    random_committees,
    with_stand_ins,
)

__all__ = ["MoELayer", "within_capacity"]


def within_capacity(routing: Routing, *, capacity_factor: float) -> Tensor:
    """Which choices fit, when each expert takes a limited number of tokens.

    Batch-prioritised routing (V-MoE, arXiv 2106.05974, section 4.1) as the official code does it:
    tokens with the larger best score are served first; second choices queue behind all first ones.

    Returns:
        ``[tokens, top_k]`` bool; False also where the routing itself does not keep a choice, which takes no
        room.
    """
    tokens, num_experts = routing.scores.shape
    top_k = routing.experts.shape[1]
    capacity = top_k * int(capacity_factor * -(-tokens // num_experts))
    order = torch.argsort(-routing.scores.max(dim=1).values, stable=True)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(tokens, device=order.device)
    kept = torch.empty_like(routing.experts, dtype=torch.bool)
    already = torch.zeros(num_experts, dtype=torch.int64, device=order.device)
    for choice in range(top_k):
        one_hot = nn.functional.one_hot(routing.experts[:, choice], num_experts)
        if routing.kept is not None:
            one_hot = one_hot * routing.kept[:, choice : choice + 1]
        place = (one_hot[order].cumsum(0)[rank] - 1 + already).gather(
            1, routing.experts[:, choice : choice + 1]
        )
        kept[:, choice] = place[:, 0] < capacity
        already = already + one_hot.sum(0)
    return kept if routing.kept is None else kept & routing.kept


class MoELayer(nn.Module):
    """Replaces the FFN of a transformer block.

    A committee patches it by replacing ``gate`` and ``experts``; nothing else of a model changes.

    Args:
        gate: Chooses experts for each token.
        experts: The expert FFNs.
        capacity_factor: Limit tokens per expert to this multiple of an even share, with
            batch-prioritised routing; None is dropless (the rule at inference).
        committee_probability: In training, the share of images whose tokens find only a random committee
            of the experts, so that the model learns to do with one.
        stand_in_weight: Gate weight of the experts that then stand in for absent ones.
    """

    def __init__(
        self,
        gate: Gate,
        experts: ExpertFFN,
        *,
        capacity_factor: float | None = None,
        committee_probability: float = 0.0,
        stand_in_weight: StandInWeight = DEFAULT_STAND_IN_WEIGHT,
    ) -> None:
        super().__init__()
        self.gate = gate
        self.experts = experts
        self.capacity_factor = capacity_factor
        self.committee_probability = committee_probability
        self.stand_in_weight: StandInWeight = stand_in_weight
        self.balance_loss: Tensor | None = None
        self.locality_loss: Tensor | None = None
        self.tokens_per_expert: Tensor | None = None
        self.routed_tokens: Tensor | None = None

    def forward(self, tokens: Tensor) -> Tensor:
        """``[batch, length, channels]`` -> the same shape.

        In training ``balance_loss``, ``locality_loss`` (scalars) and ``tokens_per_expert``
        (``[num_experts]`` int64) of this call are left on the layer for whoever collects them;
        ``routed_tokens`` is the sum of the latter since somebody last set it to None.
        """
        flat = tokens.reshape(-1, tokens.shape[-1])
        routing: Routing = self.gate(flat)
        if self.training:
            self.balance_loss = importance_and_load_loss(routing, noise=self.gate.noise)
            self.locality_loss = locality_loss(routing, batch=tokens.shape[0])
            with torch.no_grad():
                self.tokens_per_expert = torch.bincount(
                    routing.experts.reshape(-1), minlength=self.gate.num_experts
                )
                before = self.routed_tokens
                self.routed_tokens = self.tokens_per_expert + (0 if before is None else before)
            if self.committee_probability > 0:
                routing = self._in_committees(routing, batch=tokens.shape[0])
        if self.capacity_factor is not None:
            routing = replace(routing, kept=within_capacity(routing, capacity_factor=self.capacity_factor))
        return self.experts(flat, routing).view_as(tokens)

    def _in_committees(self, routing: Routing, *, batch: int) -> Routing:
        resident = random_committees(routing.scores, batch=batch, probability=self.committee_probability)
        if resident is None:
            return routing
        normalize = self.gate.normalize
        return with_stand_ins(routing, resident, weight=self.stand_in_weight, normalize=normalize)
