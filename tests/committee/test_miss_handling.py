"""What tokens of absent experts do."""

from __future__ import annotations

import pytest
import torch

from pcmoe_det.committee.miss_handling import handle_misses
from pcmoe_det.models.gates import Routing
from tests.committee.small_model import SmallDetector


@pytest.mark.parametrize("top_k", [1, 2])
def test_tokens_whose_experts_are_resident_keep_their_routing(top_k: int) -> None:
    gate = next(iter(SmallDetector(top_k=top_k).backbone.moe_layers()))[1].gate
    routing = gate(torch.randn(200, 32))
    resident = torch.tensor([True, False, True, True, False, True])
    present = resident[routing.experts].all(dim=1)
    for handling in ("exchange", "skip", "rerank"):
        handled = handle_misses(
            handling,  # type: ignore[arg-type]
            routing,
            gate,
            resident,
            rerank_bound=0.5,
            stand_in_weight="own",
        )
        assert torch.equal(handled.experts[present], routing.experts[present])
        assert torch.equal(handled.weights[present], routing.weights[present])
        kept = (
            handled.kept if handled.kept is not None else torch.ones_like(handled.experts, dtype=torch.bool)
        )
        assert kept[present].all()
        assert resident[handled.experts[kept]].all()
        if handling == "exchange":
            assert kept.all()
            best = routing.scores.masked_fill(~resident, -1).argmax(dim=1)
            assert torch.equal(handled.experts[~present, 0], best[~present])
        if handling == "skip":
            assert torch.equal(kept, resident[routing.experts])


def test_rerank_judges_each_stand_in_by_the_expert_it_replaces() -> None:
    gate = next(iter(SmallDetector(top_k=2).backbone.moe_layers()))[1].gate
    scores = torch.tensor([[0.70, 0.15, 0.10, 0.03, 0.01, 0.01], [0.50, 0.40, 0.05, 0.03, 0.01, 0.01]])
    weights, experts = scores.topk(2, dim=1)
    routing = Routing(experts, weights, scores, scores.log(), weights.log())
    for absent, expected in (
        ([0], [{1}, {1}]),  # 1 is the token's own; 2 (0.10, 0.05) is far below 0.3 of 0.70 and 0.50
        ([1], [{0, 2}, {0}]),  # 2 is above 0.3 of 0.15, and below 0.3 of 0.40
        ([2], [{0, 1}, {0, 1}]),
    ):
        resident = torch.ones(6, dtype=torch.bool)
        resident[absent] = False
        handled = handle_misses("rerank", routing, gate, resident, rerank_bound=0.3, stand_in_weight="own")
        kept = torch.ones_like(experts, dtype=torch.bool) if handled.kept is None else handled.kept
        assert [set(e[k].tolist()) for e, k in zip(handled.experts, kept, strict=True)] == expected
