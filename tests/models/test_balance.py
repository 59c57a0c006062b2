"""The load-balancing loss written out, and what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pcmoe_det.models.balance import importance_and_load_loss
from pcmoe_det.models.gates import choose_experts


def written_out(logits: np.ndarray, top_k: int, noise: float) -> float:
    """Shazeer's two losses, token by token, with the official code's threshold."""
    experts = logits.shape[1]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    load = np.zeros(experts)
    for row, scores in zip(logits, probabilities, strict=True):
        threshold = sorted(row)[-top_k]
        for expert in range(experts):
            z = (scores[expert] - threshold) / (noise / experts)
            load[expert] += 0.5 * (1 + math.erf(z / math.sqrt(2)))
    return 0.5 * sum(np.var(total, ddof=1) / np.mean(total) ** 2 for total in (probabilities.sum(0), load))


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize("noise", [1.0, 0.3])
def test_equals_the_formula(top_k: int, noise: float) -> None:
    logits = torch.randn(60, 5, generator=torch.Generator().manual_seed(top_k)) * 0.5
    routing = choose_experts(logits, logits, top_k=top_k, normalize=True)
    loss = importance_and_load_loss(routing, noise=noise)
    assert float(loss) == pytest.approx(written_out(logits.double().numpy(), top_k, noise), rel=1e-4)


def test_descending_it_evens_the_load() -> None:
    torch.manual_seed(0)
    tokens, weight = torch.randn(400, 6).abs(), torch.randn(5, 6, requires_grad=True)
    shares = []
    for _ in range(60):
        logits = tokens @ weight.T
        routing = choose_experts(logits, logits, top_k=1, normalize=True)
        shares.append(float(torch.bincount(routing.experts[:, 0], minlength=5).max()) / 400)
        loss = importance_and_load_loss(routing, noise=1.0)
        (gradient,) = torch.autograd.grad(loss, weight)
        weight = (weight - 0.5 * gradient).detach().requires_grad_()
    assert shares[0] > 0.4
    assert shares[-1] < 0.3


def test_one_expert_has_nothing_to_balance() -> None:
    logits = torch.randn(9, 1, requires_grad=True)
    routing = choose_experts(logits, logits, top_k=1, normalize=True)
    assert float(importance_and_load_loss(routing, noise=1.0)) == 0.0


def test_finite_without_noise_and_with_one_sided_routing() -> None:
    logits = torch.tensor([[30.0, 0.0, 0.0]]).expand(50, 3).clone().requires_grad_()
    routing = choose_experts(logits, logits, top_k=1, normalize=True)
    loss = importance_and_load_loss(routing, noise=0.0)
    loss.backward()
    assert loss.isfinite()
    assert logits.grad is not None
    assert logits.grad.isfinite().all()
