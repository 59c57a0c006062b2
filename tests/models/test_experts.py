"""Dropless experts against a loop over tokens, in float64."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pcmoe_det.models.experts import ExpertFFN, combine, dispatch
from pcmoe_det.models.gates import Routing, choose_experts

EXPERTS, CHANNELS, HIDDEN = 5, 6, 8


def make_experts() -> ExpertFFN:
    torch.manual_seed(0)
    experts = ExpertFFN(CHANNELS, HIDDEN, EXPERTS).double()
    for parameter in experts.parameters():
        torch.nn.init.normal_(parameter, std=0.7)
    return experts


def make_routing(tokens: int, top_k: int, *, unused: tuple[int, ...] = ()) -> Routing:
    logits = torch.randn(tokens, EXPERTS, dtype=torch.float64)
    logits[:, list(unused)] = -50.0
    return choose_experts(logits, logits, top_k=top_k, normalize=True)


def one_expert(experts: ExpertFFN, expert: int, token: Tensor) -> Tensor:
    hidden = experts.fc1_weight[expert] @ token + experts.fc1_bias[expert]
    hidden = hidden * 0.5 * (1 + torch.erf(hidden / math.sqrt(2)))
    return experts.fc2_weight[expert] @ hidden + experts.fc2_bias[expert]


def naive(experts: ExpertFFN, tokens: Tensor, routing: Routing) -> Tensor:
    rows = []
    for token in range(len(tokens)):
        row = torch.zeros(CHANNELS, dtype=tokens.dtype)
        for choice in range(routing.experts.shape[1]):
            if routing.kept is None or bool(routing.kept[token, choice]):
                output = one_expert(experts, int(routing.experts[token, choice]), tokens[token])
                row = row + routing.weights[token, choice] * output
        rows.append(row)
    return torch.stack(rows)


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("keep", ["all", "some", "none"])
@pytest.mark.parametrize("unused", [(), (0, 3), (1, 2, 3, 4)], ids=["all used", "two empty", "one used"])
def test_equals_a_loop_over_tokens(top_k: int, keep: str, unused: tuple[int, ...]) -> None:
    if top_k > EXPERTS - len(unused):
        top_k = EXPERTS - len(unused)
    experts, tokens = make_experts(), torch.randn(37, CHANNELS, dtype=torch.float64)
    routing = make_routing(37, top_k, unused=unused)
    if keep != "all":
        kept = torch.rand(37, top_k) < (0.6 if keep == "some" else 0.0)
        routing = replace(routing, kept=kept)
    torch.testing.assert_close(
        experts(tokens, routing), naive(experts, tokens, routing), atol=1e-12, rtol=1e-12
    )


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("keep_all", [True, False])
def test_gradients_equal_those_of_the_loop(top_k: int, keep_all: bool) -> None:
    experts = make_experts()
    tokens = torch.randn(23, CHANNELS, dtype=torch.float64)
    logits = torch.randn(23, EXPERTS, dtype=torch.float64)
    logits[:, 2] = -50.0  # an expert without a token
    kept = None if keep_all else torch.rand(23, top_k) < 0.6
    gradients = []
    for run in (experts, lambda x, routing: naive(experts, x, routing)):
        experts.zero_grad(set_to_none=True)
        x, scores = tokens.clone().requires_grad_(), logits.clone().requires_grad_()
        routing = replace(choose_experts(scores, scores, top_k=top_k, normalize=True), kept=kept)
        (run(x, routing) * torch.linspace(-1, 1, CHANNELS, dtype=torch.float64)).square().sum().backward()
        gradients.append([x.grad, scores.grad, *(parameter.grad for parameter in experts.parameters())])
    for ours, expected in zip(*gradients, strict=True):
        assert ours is not None
        torch.testing.assert_close(ours, expected, atol=1e-11, rtol=1e-9)
    assert gradients[0][2][2].abs().sum() == 0


def test_a_token_s_result_does_not_depend_on_the_others() -> None:
    experts, tokens = make_experts(), torch.randn(50, CHANNELS, dtype=torch.float64)
    routing = make_routing(50, 2)
    together = experts(tokens, routing)
    for part in (slice(0, 1), slice(7, 20), slice(49, 50)):
        alone = Routing(*(getattr(routing, name)[part] for name in _TENSORS))
        torch.testing.assert_close(experts(tokens[part], alone), together[part], atol=1e-13, rtol=1e-12)


_TENSORS = ("experts", "weights", "scores", "logits", "chosen_logits")


@pytest.mark.parametrize("tokens", [0, 1])
@pytest.mark.parametrize("top_k", [1, 2])
def test_few_tokens(tokens: int, top_k: int) -> None:
    experts = make_experts()
    result = experts(torch.ones(tokens, CHANNELS, dtype=torch.float64), make_routing(tokens, top_k))
    assert result.shape == (tokens, CHANNELS)
    assert result.dtype == torch.float64


def test_dispatch_sorts_by_expert_then_token() -> None:
    experts = torch.tensor([[2, 0], [0, 1], [2, 1], [0, 2]])
    scores = torch.zeros(4, 4)
    routing = Routing(experts, torch.ones(4, 2), scores, scores, torch.zeros(4, 2))
    plan = dispatch(routing)
    assert plan.counts == (3, 2, 3, 0)
    assert plan.source.tolist() == [0, 1, 3, 1, 2, 0, 2, 3]
    kept = torch.tensor([[True, False], [True, True], [False, True], [True, False]])
    plan = dispatch(replace(routing, kept=kept))
    assert plan.counts == (2, 2, 1, 0)
    assert plan.source.tolist() == [1, 3, 1, 2, 0]
    outputs = torch.arange(5.0)[:, None]
    # Token 1 has both of its choices, 0 and 1 in sorted order at places 0 and 2.
    assert combine(outputs, routing, plan).flatten().tolist() == [4.0, 2.0, 3.0, 1.0]


def test_dropout_only_in_training() -> None:
    experts = ExpertFFN(CHANNELS, HIDDEN, EXPERTS, drop=0.5, init_std=0.5).double()
    tokens, routing = torch.randn(30, CHANNELS, dtype=torch.float64), make_routing(30, 1)
    experts.train()
    assert not torch.equal(experts(tokens, routing), experts(tokens, routing))
    experts.eval()
    assert torch.equal(experts(tokens, routing), experts(tokens, routing))
