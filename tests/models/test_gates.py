"""Routing against plain loops, and what must not depend on precision or mode."""

from __future__ import annotations

import math

import pytest
import torch

from pcmoe_det.models.gates import CosineGate, Gate, LinearGate, build_gate, choose_experts


def make_gate(kind: str, **options: object) -> Gate:
    torch.manual_seed(0)
    settings = dict(top_k=1, noise=1.0, normalize=True, projection=8)
    return build_gate(kind, 12, 5, **{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [1, 2, 5])
@pytest.mark.parametrize("normalize", [True, False])
def test_choice_and_weights_of_each_token(top_k: int, normalize: bool) -> None:
    logits = torch.randn(40, 5)
    routing = choose_experts(logits, logits, top_k=top_k, normalize=normalize)
    for token, row in enumerate(logits.tolist()):
        total = sum(math.exp(value) for value in row)
        scores = [math.exp(value) / total for value in row]
        best = sorted(range(5), key=lambda expert: -scores[expert])[:top_k]
        assert routing.experts[token].tolist() == best
        share = sum(scores[expert] for expert in best) if normalize and top_k > 1 else 1.0
        expected = [scores[expert] / share for expert in best]
        assert routing.weights[token].tolist() == pytest.approx(expected, rel=1e-5)
        assert routing.chosen_logits[token].tolist() == pytest.approx([row[expert] for expert in best])
    assert routing.kept is None


def test_a_top_1_weight_is_never_normalised_to_one() -> None:
    logits = torch.zeros(3, 5)
    assert choose_experts(logits, logits, top_k=1, normalize=True).weights.flatten().tolist() == (
        pytest.approx([0.2] * 3)
    )


def test_cosine_logits_do_not_depend_on_a_token_s_length() -> None:
    gate = make_gate("cosine").eval()
    assert isinstance(gate, CosineGate)
    torch.nn.init.zeros_(gate.projector.bias)
    tokens = torch.randn(20, 12)
    torch.testing.assert_close(gate.logits(tokens), gate.logits(7 * tokens), atol=1e-5, rtol=1e-5)
    inverse_temperature = 1 / 0.5
    assert gate.logits(tokens).abs().max() <= inverse_temperature + 1e-6


def test_the_temperature_of_a_cosine_gate_has_a_floor() -> None:
    gate = make_gate("cosine").eval()
    assert isinstance(gate, CosineGate)
    torch.nn.init.constant_(gate.log_inverse_temperature, 50.0)
    assert gate.logits(torch.randn(50, 12)).abs().max() <= 100.0 + 1e-3


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_routing_is_float32_whatever_the_surroundings(kind: str) -> None:
    gate, tokens = make_gate(kind).eval(), torch.randn(30, 12).bfloat16()
    expected = gate(tokens.float())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        routing = gate(tokens)
    assert routing.scores.dtype == routing.weights.dtype == torch.float32
    assert torch.equal(routing.scores, expected.scores)
    assert gate.bfloat16()(tokens).scores.dtype == torch.float32


@pytest.mark.parametrize("kind", ["linear", "cosine"])
def test_noise_has_the_stated_size_and_leaves_the_clean_logits(kind: str) -> None:
    gate, tokens = make_gate(kind, noise=2.0).train(), torch.randn(1, 12).expand(20_000, 12)
    with torch.no_grad():
        routing = gate(tokens)
        clean = gate.eval()(tokens[:1])
    torch.testing.assert_close(routing.logits[0], clean.logits[0])
    noisy = routing.scores.log() - routing.scores.log()[:, :1]
    difference = noisy[:, 1] - (clean.logits[0, 1] - clean.logits[0, 0])
    assert float(difference.std()) == pytest.approx(math.sqrt(2) * 2.0 / 5, rel=0.05)


def test_gradients_reach_the_gate_through_the_weights() -> None:
    gate = make_gate("linear", top_k=2).eval()
    assert isinstance(gate, LinearGate)
    gate(torch.randn(30, 12)).weights[:, 0].sum().backward()
    assert gate.weight.grad is not None
    assert gate.weight.grad.abs().sum() > 0


def test_wrong_settings_are_named() -> None:
    with pytest.raises(ValueError, match="top_k is 6; with 5 experts it must be 1 to 5"):
        make_gate("linear", top_k=6)
    with pytest.raises(ValueError, match="unknown gate 'softmax'"):
        make_gate("softmax")
