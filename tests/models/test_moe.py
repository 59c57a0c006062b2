"""The MoE layer, and capacity against a reading of batch-prioritised routing with queues."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pcmoe_det.models.experts import ExpertFFN
from pcmoe_det.models.gates import LinearGate, Routing, choose_experts
from pcmoe_det.models.moe import MoELayer, within_capacity


def queues(routing: Routing, capacity: int) -> list[list[bool]]:
    """Each expert serves a queue: first choices by best score, then second choices by best score."""
    tokens, top_k = routing.experts.shape
    best_first = sorted(range(tokens), key=lambda token: -float(routing.scores[token].max()))
    served: dict[int, int] = {}
    kept = [[False] * top_k for _ in range(tokens)]
    for choice in range(top_k):
        for token in best_first:
            expert = int(routing.experts[token, choice])
            kept[token][choice] = served.get(expert, 0) < capacity
            served[expert] = served.get(expert, 0) + 1
    return kept


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(("factor", "tokens"), [(1.0, 40), (1.25, 37), (0.5, 40), (4.0, 10), (1.0, 1)])
def test_capacity_against_queues(top_k: int, factor: float, tokens: int) -> None:
    torch.manual_seed(tokens)
    logits = torch.randn(tokens, 4)
    logits[:, 0] += 1.5  # a busy expert
    routing = choose_experts(logits, logits, top_k=top_k, normalize=True)
    capacity = top_k * int(factor * -(-tokens // 4))
    kept = within_capacity(routing, capacity_factor=factor)
    assert kept.tolist() == queues(routing, capacity)
    assert bool(kept.all()) == (factor == 4.0 or tokens == 1)


def make_layer(**options: object) -> MoELayer:
    torch.manual_seed(0)
    gate = LinearGate(8, 4, noise=0.0)
    torch.nn.init.normal_(gate.weight)
    return MoELayer(gate, ExpertFFN(8, 16, 4, init_std=0.3), **options)  # type: ignore[arg-type]


def test_capacity_drops_tokens_and_none_is_dropless() -> None:
    tokens = torch.randn(1, 1, 8).expand(1, 20, 8)  # all of them want one expert
    dropless, limited = make_layer().eval(), make_layer(capacity_factor=1.0).eval()
    assert (dropless(tokens).abs().sum(-1) > 0).all()
    assert int((limited(tokens).abs().sum(-1) > 0).sum()) == 5


def test_capacity_brings_no_skipped_choice_back() -> None:
    layer = make_layer(capacity_factor=4.0).eval()

    class Skipping(torch.nn.Module):
        def __init__(self, gate: torch.nn.Module) -> None:
            super().__init__()
            self.gate, self.num_experts = gate, 4

        def forward(self, tokens: torch.Tensor) -> Routing:
            routing: Routing = self.gate(tokens)
            return replace(routing, kept=torch.arange(len(tokens))[:, None] % 2 == 0)

    layer.gate = Skipping(layer.gate)  # type: ignore[assignment]
    with torch.no_grad():
        result = layer(torch.randn(1, 10, 8))[0]
    assert (result.abs().sum(-1) > 0).tolist() == [True, False] * 5


def test_what_is_skipped_takes_no_room() -> None:
    gate = LinearGate(8, 4, noise=0.0)
    routing = gate(torch.randn(1, 8).expand(6, 8))  # all want one expert, in this order
    skipped = torch.tensor([[False], [True], [False], [True], [True], [True]])
    kept = within_capacity(replace(routing, kept=skipped), capacity_factor=1.0)  # two fit
    assert kept[:, 0].tolist() == [False, True, False, True, False, False]


def test_training_leaves_loss_and_counts_on_the_layer() -> None:
    layer, tokens = make_layer(), torch.randn(2, 30, 8)
    layer.eval()(tokens)
    assert layer.balance_loss is None
    layer.train()(tokens)
    assert layer.balance_loss is not None
    assert layer.tokens_per_expert is not None
    assert int(layer.tokens_per_expert.sum()) == 60
    layer.balance_loss.backward()
    assert isinstance(layer.gate, LinearGate)
    assert layer.gate.weight.grad is not None
    assert layer.gate.weight.grad.abs().sum() > 0
