"""The backbone against mmdet's SwinTransformer, and what must hold for any image."""

from __future__ import annotations

import copy

import pytest
import torch
from mmdet.models.backbones.swin import SwinTransformer

import pcmoe_det.models.registry  # noqa: F401
from pcmoe_det.models.official import convert_mmdet_swin
from pcmoe_det.models.swin_moe import SwinMoE


def twins(window: int = 7, embed_dims: int = 24) -> tuple[SwinTransformer, SwinMoE]:
    torch.manual_seed(0)
    sizes = dict(embed_dims=embed_dims, depths=(2, 2, 2, 2), num_heads=(3, 6, 12, 24), window_size=window)
    theirs = SwinTransformer(**sizes, drop_path_rate=0.0, init_cfg=None)
    for parameter in theirs.parameters():
        if parameter.std() == 0 or parameter.numel() == 1:
            torch.nn.init.normal_(parameter, std=0.2)
    theirs.eval()
    ours = SwinMoE(**sizes, num_experts=0, moe_blocks=((), (), (), ()))
    ours.load_state_dict(convert_mmdet_swin(theirs.state_dict()).tensors)
    return theirs, ours.eval()


@pytest.mark.parametrize("size", [(256, 416), (224, 224), (100, 60), (57, 131), (33, 500), (8, 8), (1, 1)])
def test_equals_mmdet_swin_transformer(size: tuple[int, int]) -> None:
    theirs, ours = twins()
    image = torch.randn(2, 3, *size)
    with torch.inference_mode():
        for our_map, their_map in zip(ours(image), theirs(image), strict=True):
            torch.testing.assert_close(our_map, their_map, atol=2e-5, rtol=1e-4)


@pytest.mark.parametrize("bias", ["table", "continuous"])
@pytest.mark.parametrize("stem", ["patch", "conv"])
@pytest.mark.parametrize("size", [(64, 64), (70, 33), (5, 200)])
def test_any_size_and_both_variants(bias: str, stem: str, size: tuple[int, int]) -> None:
    model = SwinMoE(
        embed_dims=12,
        depths=(1, 1, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        num_experts=3,
        moe_blocks=((), (), (1,), (1,)),
        position_bias=bias,  # type: ignore[arg-type]
        stem=stem,  # type: ignore[arg-type]
    ).eval()
    with torch.inference_mode():
        maps = model(torch.randn(1, 3, *size))
    for level, feature in enumerate(maps):
        stride = 4 * 2**level
        assert feature.shape == (1, 12 * 2**level, -(-size[0] // stride), -(-size[1] // stride))
        assert feature.isfinite().all()


def small_moe(**options: object) -> SwinMoE:
    torch.manual_seed(1)
    settings: dict[str, object] = dict(
        embed_dims=12,
        depths=(1, 1, 2, 2),
        num_heads=(1, 2, 4, 8),
        window_size=4,
        num_experts=4,
        moe_blocks=((), (), (1,), (1,)),
        moe_init_std=0.1,
    )
    return SwinMoE(**{**settings, **options})  # type: ignore[arg-type]


@pytest.mark.parametrize("top_k", [1, 2])
def test_a_frame_does_not_depend_on_its_batch_mates(top_k: int) -> None:
    model = small_moe(top_k=top_k).eval()
    batch = torch.randn(3, 3, 64, 96)
    with torch.inference_mode():
        together, alone = model(batch), model(batch[1:2])
    for many, one in zip(together, alone, strict=True):
        torch.testing.assert_close(many[1:2], one, atol=1e-5, rtol=1e-5)


def test_gradients_equal_those_of_the_generic_attention(monkeypatch: pytest.MonkeyPatch) -> None:
    from pcmoe_det.models import attention

    def gradients() -> dict[str, torch.Tensor]:
        model = small_moe(gate_noise=0.0, drop_path_rate=0.0).double().train()
        torch.manual_seed(2)
        sum(feature.square().mean() for feature in model(torch.randn(2, 3, 40, 72).double())).backward()
        return {name: value.grad for name, value in model.named_parameters() if value.grad is not None}

    ours = gradients()

    def generic(
        query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor
    ) -> torch.Tensor:
        repeated = bias.repeat(query.shape[0] // bias.shape[0], 1, 1, 1)
        return torch.softmax(query @ key.transpose(-1, -2) / query.shape[-1] ** 0.5 + repeated, -1) @ value

    monkeypatch.setattr(attention, "biased_attention", generic)
    expected = gradients()
    assert ours.keys() == expected.keys()
    for name, gradient in expected.items():
        torch.testing.assert_close(ours[name], gradient, atol=1e-9, rtol=1e-6, msg=name)


def test_cached_bias_follows_new_weights_and_dtype() -> None:
    model, image = small_moe().eval(), torch.randn(1, 3, 64, 64)
    with torch.inference_mode():
        before = model(image)[0]
    other = small_moe(embed_dims=12)
    for parameter in other.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    fresh = copy.deepcopy(other).eval()
    model.load_state_dict(other.state_dict())
    with torch.inference_mode():
        after, expected = model(image)[0], fresh(image)[0]
        assert torch.equal(after, expected)
        assert not torch.equal(before, after)
        assert model.bfloat16()(image.bfloat16())[0].dtype == torch.bfloat16


def test_frozen_weights_train_the_same_in_a_batch() -> None:
    """Gradients flow through a backbone whose own weights, position biases among them, need none."""
    model, image = small_moe().eval(), torch.randn(2, 3, 40, 72)
    with torch.inference_mode():
        expected = model(image)
    model.requires_grad_(False)
    image.requires_grad_()
    for ours, feature in zip(model(image), expected, strict=True):
        torch.testing.assert_close(ours, feature, atol=1e-5, rtol=1e-5)
    model(image)[-1].sum().backward()
    assert image.grad is not None
    assert image.grad.abs().sum() > 0


def test_nothing_is_kept_between_steps_of_training() -> None:
    model, image = small_moe(drop_path_rate=0.0, gate_noise=0.0).train(), torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        before = model(image)[0]
        for parameter in model.parameters():
            parameter.mul_(1.5)
        assert not torch.equal(model(image)[0], before)
        twin = small_moe(drop_path_rate=0.0, gate_noise=0.0).train()
        twin.load_state_dict(model.state_dict())
        assert torch.equal(model(image)[0], twin(image)[0])


def test_auxiliary_losses_are_taken_once_and_only_in_training() -> None:
    model = small_moe()
    model.train()(torch.randn(2, 3, 64, 64))
    losses = model.auxiliary_losses()
    assert losses["loss_balance"].requires_grad
    assert losses["loss_balance"] > 0
    assert 1 <= float(losses["busiest_expert"]) <= 4
    assert "loss_locality" not in losses
    local = small_moe(locality_weight=0.5)
    local.train()(torch.randn(2, 3, 64, 64))
    assert local.auxiliary_losses()["loss_locality"].requires_grad
    assert model.auxiliary_losses() == {}
    model.eval()(torch.randn(2, 3, 64, 64))
    assert model.auxiliary_losses() == {}


def test_router_noise_only_in_training() -> None:
    gate = next(iter(small_moe(gate_noise=4.0).moe_layers()))[1].gate
    tokens = torch.randn(200, 48)
    assert torch.equal(gate.eval()(tokens).experts, gate(tokens).experts)
    assert not torch.equal(gate.train()(tokens).scores, gate(tokens).scores)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (dict(moe_blocks=((), (), (2,), ())), "block 2 of stage 2, which has 2 blocks"),
        (dict(num_experts=-1), "num_experts is -1"),
        (dict(depths=(1, 1)), "one entry per stage"),
        (dict(stem="linear"), "unknown stem 'linear'"),
        (dict(gate="magic"), "unknown gate 'magic'"),
        (dict(top_k=5), "top_k is 5"),
        (dict(out_indices=(4,)), "there are stages 0 to 3"),
    ],
)
def test_wrong_arguments_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        small_moe(**options)
