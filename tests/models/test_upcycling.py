"""Upcycling starts as the same function, and clustered gates separate what differs."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from pcmoe_det.errors import CheckpointError, UsageError
from pcmoe_det.models.gates import LinearGate
from pcmoe_det.models.moe import MoELayer
from pcmoe_det.models.swin_moe import SwinMoE
from pcmoe_det.models.upcycling import cluster_gates, upcycle


def make(num_experts: int, **options: object) -> SwinMoE:
    torch.manual_seed(1)
    settings: dict[str, object] = dict(
        embed_dims=12,
        depths=(1, 2, 2),
        num_heads=(1, 2, 4),
        window_size=4,
        num_experts=num_experts,
        moe_blocks=((), (1,), (0, 1)),
        out_indices=(0, 1, 2),
        drop_path_rate=0.0,
    )
    model = SwinMoE(**{**settings, **options})  # type: ignore[arg-type]
    for parameter in model.parameters():
        nn.init.normal_(parameter, std=0.2)
    return model.eval()


def gates(model: SwinMoE) -> dict[str, LinearGate]:
    found = {name: layer.gate for name, layer in model.moe_layers()}
    assert len(found) == 3
    return {name: gate for name, gate in found.items() if isinstance(gate, LinearGate)}


@pytest.mark.parametrize(
    ("options", "weight"),
    [
        (dict(), 1 / 4),
        (dict(top_k=2), 1.0),
        (dict(top_k=2, normalize_gate=False), 2 / 4),
        (dict(fc2_bias=False), 1 / 4),
    ],
    ids=["top 1", "top 2 normalised", "top 2 plain", "no second bias"],
)
def test_a_uniform_gate_gives_the_dense_function(options: dict[str, object], weight: float) -> None:
    """Gate weights of zero: softmax is 1 / experts for every token, whatever expert it goes to."""
    dense, moe = make(0, **options), make(4, **options)
    for gate in gates(moe).values():
        nn.init.zeros_(gate.weight)
    image = torch.randn(2, 3, 48, 64)
    for given in ({}, dict.fromkeys(gates(moe), weight)):
        moe.load_state_dict(upcycle(moe, dense.state_dict(), gate_weights=given).tensors)
        with torch.inference_mode():
            for ours, expected in zip(moe(image), dense(image), strict=True):
                torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_the_given_gate_weight_is_made_up_for() -> None:
    dense, moe = make(0), make(4)
    names = list(gates(moe))
    halves = upcycle(moe, dense.state_dict(), gate_weights={names[0]: 0.5}).tensors
    for name, factor in zip(names, (2.0, 4.0, 4.0), strict=True):
        source = dense.state_dict()
        for expert in range(4):
            experts = f"{name}.experts."
            assert torch.equal(halves[f"{experts}fc1_weight"][expert], source[f"{name}.fc1.weight"])
            assert torch.equal(halves[f"{experts}fc1_bias"][expert], source[f"{name}.fc1.bias"])
            assert torch.equal(halves[f"{experts}fc2_weight"][expert], factor * source[f"{name}.fc2.weight"])
            assert torch.equal(halves[f"{experts}fc2_bias"][expert], factor * source[f"{name}.fc2.bias"])


def test_jitter_makes_experts_differ_by_its_share() -> None:
    dense, moe = make(0), make(4)
    plain = upcycle(moe, dense.state_dict()).tensors
    result = upcycle(moe, dense.state_dict(), jitter=0.1)
    assert result.copied == 3
    assert set(result.kept) == {f"{name}.gate.weight" for name in gates(moe)}
    for name in (f"{layer}.experts.fc1_weight" for layer in gates(moe)):
        difference = result.tensors[name] - plain[name]
        assert float(difference.std()) == pytest.approx(0.1 * float(plain[name].std()), rel=0.1)
        assert not torch.equal(result.tensors[name][0], result.tensors[name][1])
    biases = [name for name in plain if name.endswith(("fc1_bias", "fc2_bias"))]
    assert all(torch.equal(result.tensors[name], plain[name]) for name in biases)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("stages.0.blocks.0.mlp.fc1.weight", "is missing in the dense checkpoint"),
        ("stages.2.blocks.0.mlp.fc2.weight", "stages.2.blocks.0.mlp.fc2.weight of shape"),
        ("stages.2.blocks.0.mlp.fc1.bias", "stages.2.blocks.0.mlp.fc1.bias of shape"),
    ],
)
def test_a_dense_checkpoint_that_lacks_a_tensor(name: str, reason: str) -> None:
    moe, state = make(4), make(0).state_dict()
    del state[name]
    with pytest.raises(CheckpointError, match=reason):
        upcycle(moe, state)


def test_a_dense_checkpoint_of_another_width() -> None:
    with pytest.raises(CheckpointError, match=r"stem.proj.weight is \(24, 3, 4, 4\)"):
        upcycle(make(4), make(0, embed_dims=24).state_dict())


def clusters(count: int, size: int, *, channels: int = 16, spread: float = 0.2) -> tuple[Tensor, Tensor]:
    """Tokens around orthogonal directions on top of a strong common part, and their cluster."""
    torch.manual_seed(4)
    directions = torch.linalg.qr(torch.randn(channels, channels))[0][:count] * 3
    label = torch.arange(count).repeat_interleave(size)
    common = torch.randn(channels)
    return directions[label] + common + spread * torch.randn(count * size, channels), label


def test_clusters_go_to_experts_of_their_own() -> None:
    tokens, label = clusters(4, 100)
    best = 0.0
    for seed in range(5):  # k-means may merge two clusters in one run
        torch.manual_seed(seed)
        chosen = (tokens @ cluster_gates(tokens, 4).T).argmax(1)
        pairs = (chosen[:, None] == chosen[None]) == (label[:, None] == label[None])
        best = max(best, float(pairs.float().mean()))
    assert best > 0.99


def test_logits_spread_as_asked() -> None:
    tokens, _ = clusters(4, 100)
    for sharpness in (2.0, 8.0):
        torch.manual_seed(0)
        weight = cluster_gates(tokens, 4, sharpness=sharpness)
        logits = tokens @ weight.T
        spread = (logits.amax(1) - logits.mean(1)).mean()
        assert float(spread) == pytest.approx(sharpness, rel=1e-4)
        # Rows differ around zero: what all experts share does not route.
        torch.testing.assert_close(weight.mean(0), torch.zeros(16), atol=1e-4, rtol=0)


def test_a_cluster_without_tokens_starts_again_elsewhere() -> None:
    """Nine in ten tokens are of one kind, so all clusters start there and all but one go empty."""
    kinds = torch.eye(4)[:3] * 3 + 1.0
    label = torch.arange(3).repeat_interleave(torch.tensor([900, 50, 50]))
    tokens = kinds[label]
    for seed in range(5):
        torch.manual_seed(seed)
        chosen = (tokens @ cluster_gates(tokens, 3).T).argmax(1)
        assert sorted(torch.bincount(chosen, minlength=3).tolist()) == [50, 50, 900]


@pytest.mark.parametrize("tokens", [torch.ones(40, 6), torch.eye(6)[:2].repeat(20, 1), torch.zeros(40, 6)])
def test_more_experts_than_kinds_of_tokens(tokens: Tensor) -> None:
    weight = cluster_gates(tokens, 5)
    assert weight.shape == (5, 6)
    assert weight.isfinite().all()


def test_too_few_tokens() -> None:
    with pytest.raises(ValueError, match="3 tokens cannot make 4 clusters"):
        cluster_gates(torch.randn(3, 6), 4)


def test_an_upcycled_layer_is_found_by_name() -> None:
    moe = make(4)
    assert [name for name, module in moe.named_modules() if isinstance(module, MoELayer)] == list(gates(moe))


def test_redrawn_units_differ_between_experts_and_the_others_are_the_dense_ones() -> None:
    dense, moe = make(0), make(4)
    name = next(iter(gates(moe)))
    torch.manual_seed(0)
    result = upcycle(moe, dense.state_dict(), gate_weights=dict.fromkeys(gates(moe), 1.0), redrawn_share=0.25)
    fc1 = result.tensors[f"{name}.experts.fc1_weight"]
    fc2 = result.tensors[f"{name}.experts.fc2_weight"]
    source = dense.state_dict()[f"{name}.fc1.weight"]
    changed = (fc1 != source).any(dim=2)
    assert changed.sum(dim=1).tolist() == [round(0.25 * fc1.shape[1])] * 4
    assert len({tuple(row.tolist()) for row in changed}) == 4
    assert torch.equal(
        changed, (result.tensors[f"{name}.experts.fc1_bias"] != dense.state_dict()[f"{name}.fc1.bias"])
    )
    assert torch.equal(changed, (fc2 != dense.state_dict()[f"{name}.fc2.weight"]).any(dim=1))
    new = fc1[changed]
    assert abs(new.std() / source.std() - 1) < 0.2
    assert torch.equal(
        result.tensors[f"{name}.experts.fc2_bias"], dense.state_dict()[f"{name}.fc2.bias"].expand(4, -1)
    )


@pytest.mark.parametrize("share", [-0.1, 1.5])
def test_an_impossible_share_is_refused(share: float) -> None:
    with pytest.raises(UsageError, match="must be 0 to 1"):
        upcycle(make(4), make(0).state_dict(), redrawn_share=share)
