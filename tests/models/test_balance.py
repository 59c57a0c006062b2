"""The load-balancing loss written out, and what it is for."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from pcmoe_det.models.balance import importance_and_load_loss, locality_loss
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


def test_locality_is_what_falls_outside_the_busier_half_image_by_image() -> None:
    busy_left = torch.tensor([[0.6, 0.3, 0.1, 0.0], [0.2, 0.7, 0.0, 0.1]])
    busy_right = torch.tensor([[0.0, 0.2, 0.4, 0.4], [0.0, 0.0, 0.5, 0.5]])
    logits = torch.cat([busy_left, busy_right]).clamp_min(1e-9).log()
    routing = choose_experts(logits, logits, top_k=1, normalize=True)
    # Left image: (0.1 + 0.1) / 2 outside; right one: 0.2 / 2. As one image every expert is as busy.
    assert float(locality_loss(routing, batch=2, slack=0.0)) == pytest.approx((0.1 + 0.1) / 2)
    assert float(locality_loss(routing, batch=1, slack=0.0)) == pytest.approx(0.45)
    assert float(locality_loss(routing, batch=1)) == pytest.approx(0.35)
    assert float(locality_loss(routing, batch=2)) == pytest.approx(0.0, abs=1e-6)


def test_with_balance_it_gives_each_image_its_own_experts() -> None:
    torch.manual_seed(0)
    images = torch.randn(8, 1, 6) * 2  # each image has something of its own
    tokens = (images + torch.randn(8, 40, 6)).reshape(-1, 6)
    weight = (0.3 * torch.randn(4, 6)).requires_grad_()
    outside = []
    for _ in range(150):
        logits = tokens @ weight.T
        routing = choose_experts(logits, logits, top_k=1, normalize=True)
        local = locality_loss(routing, batch=8, slack=0.0)
        outside.append(float(local.detach()))
        (gradient,) = torch.autograd.grad(local + 0.2 * importance_and_load_loss(routing, noise=1.0), weight)
        weight = (weight - 0.5 * gradient).detach().requires_grad_()
    assert outside[0] > 0.2
    assert outside[-1] < 0.5 * outside[0]
    assert torch.bincount(routing.experts[:, 0], minlength=4).min() > 0.1 * len(tokens)
