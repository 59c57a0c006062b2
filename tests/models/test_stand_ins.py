"""Stand-ins for absent experts against a token-by-token loop, and the committees drawn in training."""

from __future__ import annotations

from typing import get_args

import pytest
import torch

from pcmoe_det.models.experts import ExpertFFN
from pcmoe_det.models.gates import LinearGate, Routing, choose_experts
from pcmoe_det.models.moe import MoELayer
from pcmoe_det.models.stand_ins import StandInWeight, random_committees, with_stand_ins

TOKENS, EXPERTS = 60, 6


def _routing(top_k: int, *, seed: int = 0) -> Routing:
    logits = 2 * torch.randn(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(seed))
    return choose_experts(logits, logits, top_k=top_k, normalize=True)


@pytest.mark.parametrize("weight", get_args(StandInWeight))
@pytest.mark.parametrize("top_k", [1, 2])
def test_each_token_gets_the_best_residents(weight: StandInWeight, top_k: int) -> None:
    routing = _routing(top_k)
    resident = torch.tensor([True, False, True, False, True, False])
    result = with_stand_ins(routing, resident, weight=weight)
    assert result.kept is None
    for token in range(TOKENS):
        wanted = routing.experts[token].tolist()
        if all(resident[expert] for expert in wanted):
            assert torch.equal(result.experts[token], routing.experts[token])
            assert torch.equal(result.weights[token], routing.weights[token])
            continue
        scores = routing.scores[token].tolist()
        best = sorted((e for e in range(EXPERTS) if resident[e]), key=lambda e: -scores[e])[:top_k]
        assert result.experts[token].tolist() == best
        own = torch.tensor([scores[expert] for expert in best])
        if weight == "wanted":
            expected = routing.weights[token]
        elif weight == "renormalized":
            among = own if top_k > 1 else torch.tensor([scores[e] for e in range(EXPERTS) if resident[e]])
            expected = own / among.sum()
        else:
            expected = own / sum(scores[e] for e in wanted) if top_k > 1 else own
        assert torch.allclose(result.weights[token], expected, atol=1e-6)


def test_tokens_may_have_committees_of_their_own() -> None:
    routing = _routing(1)
    resident = torch.rand(TOKENS, EXPERTS, generator=torch.Generator().manual_seed(1)) < 0.5
    resident[:, 0] = True
    result = with_stand_ins(routing, resident, weight="wanted")
    assert resident.gather(1, result.experts).all()


def test_a_choice_without_a_resident_is_not_kept() -> None:
    result = with_stand_ins(_routing(2), torch.tensor([True] + [False] * 5), weight="wanted")
    assert result.kept is not None
    assert result.kept.sum(dim=1).eq(1).all()


def test_all_resident_changes_nothing() -> None:
    routing = _routing(1)
    result = with_stand_ins(routing, torch.ones(EXPERTS, dtype=torch.bool), weight="renormalized")
    assert torch.equal(result.experts, routing.experts)
    assert torch.equal(result.weights, routing.weights)


def test_committees_have_the_promised_sizes_and_favour_what_an_image_uses() -> None:
    torch.manual_seed(0)
    batch, per_image = 4000, 3
    scores = torch.tensor([0.5, 0.2, 0.1, 0.1, 0.05, 0.05, 0.0, 0.0]).expand(batch * per_image, -1)
    resident = random_committees(scores, batch=batch, probability=0.5, focus=1.0)
    assert resident is not None
    images = resident.view(batch, per_image, 8)
    assert (images == images[:, :1]).all()
    sizes = images[:, 0].sum(dim=1)
    assert 0.45 < (sizes == 8).float().mean() < 0.55
    limited = images[sizes < 8, 0]
    assert set(limited.sum(dim=1).tolist()) == {2, 3, 4, 5, 6, 7}
    often = limited.float().mean(dim=0)
    assert often[0] > 0.9 > often[1] > often[2] > often[4] > often[6]


@pytest.mark.parametrize(("focus", "least", "most"), [(0.0, 0.45, 0.55), (1.0, 0.6, 0.9), (30.0, 0.999, 1.0)])
def test_the_focus_says_how_surely_the_busiest_experts_stay(focus: float, least: float, most: float) -> None:
    torch.manual_seed(0)
    scores = torch.tensor([0.4, 0.3, 0.2, 0.1]).repeat(4000, 1)
    resident = random_committees(scores, batch=4000, probability=1.0, focus=focus)
    assert resident is not None
    halves = resident[resident.sum(dim=1) == 2]
    assert len(halves) > 1000
    assert least <= float(halves[:, :2].float().mean()) <= most


def test_no_committees_when_nobody_asks() -> None:
    assert random_committees(torch.rand(8, 4), batch=2, probability=0.0) is None


def test_a_layer_limits_images_in_training_only_and_stays_trainable() -> None:
    torch.manual_seed(0)
    layer = MoELayer(LinearGate(8, 4), ExpertFFN(8, 16, 4), committee_probability=1.0)
    with torch.no_grad():
        layer.gate.weight.normal_()
    tokens = torch.randn(2, 50, 8)
    plain = MoELayer(layer.gate, layer.experts)
    assert torch.equal(layer.eval()(tokens), plain.eval()(tokens))
    layer.train()
    layer(tokens).square().sum().backward()
    assert layer.gate.weight.grad is not None
    assert layer.gate.weight.grad.abs().sum() > 0
    # The balance loss and the counts are those of the routing that the gate wanted.
    assert layer.tokens_per_expert is not None
    assert layer.tokens_per_expert.sum() == 100
