"""Swin-MoE: a Swin Transformer backbone some of whose FFNs are mixtures of experts.

Swin Transformer: arXiv 2103.14030. Swin-MoE: the official Swin code base's MoE variant, with
Tutel's routing (arXiv 2206.03382). Written lean: no per-frame work that depends on the size only.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from mmcv.cnn.bricks import DropPath
from mmdet.registry import MODELS
from mmengine.model import BaseModule
from torch import Tensor, nn

from pcmoe_det.models.attention import BiasKind, WindowAttention
from pcmoe_det.models.experts import ExpertFFN
from pcmoe_det.models.gates import GateKind, build_gate
from pcmoe_det.models.moe import MoELayer

__all__ = ["DenseFFN", "PatchMerging", "SwinMoE", "SwinMoEBlock"]


class DenseFFN(nn.Module):
    """The plain two-layer GELU FFN."""

    def __init__(self, channels: int, hidden: int, *, fc2_bias: bool = True) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, hidden)
        self.fc2 = nn.Linear(hidden, channels, bias=fc2_bias)

    def forward(self, tokens: Tensor) -> Tensor:
        # The erf form: five times faster than tanh's in bfloat16 on CPUs.
        return self.fc2(F.gelu(self.fc1(tokens)))


class SwinMoEBlock(nn.Module):
    """Window attention and an FFN (dense or MoE), each normalised before and added after."""

    def __init__(
        self, attention: WindowAttention, mlp: nn.Module, *, channels: int, drop_path: float
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = attention
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = mlp
        self.drop_path: nn.Module = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """``[batch, height * width, channels]`` -> the same shape."""
        tokens = tokens + self.drop_path(self.attn(self.norm1(tokens), height, width))
        return tokens + self.drop_path(self.mlp(self.norm2(tokens)))


class PatchMerging(nn.Module):
    """Halves the map and doubles the channels. Odd maps are padded with zeros at the far edges."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * channels)
        self.reduction = nn.Linear(4 * channels, 2 * channels, bias=False)

    def forward(self, tokens: Tensor, height: int, width: int) -> tuple[Tensor, int, int]:
        """``[batch, height * width, channels]`` -> merged tokens, their height and their width."""
        batch, _, channels = tokens.shape
        plane = tokens.view(batch, height, width, channels)
        if height % 2 or width % 2:
            plane = F.pad(plane, (0, 0, 0, width % 2, 0, height % 2))
        half_height, half_width = plane.shape[1] // 2, plane.shape[2] // 2
        # Official channel order: the column offset is the slower index.
        quads = plane.view(batch, half_height, 2, half_width, 2, channels).permute(0, 1, 3, 4, 2, 5)
        merged = quads.reshape(batch, half_height * half_width, 4 * channels)
        return self.reduction(self.norm(merged)), half_height, half_width


def _whole_patches(image: Tensor) -> Tensor:
    """Pad with zeros at the far edges to multiples of the patch side, 4."""
    pad_height, pad_width = -image.shape[2] % 4, -image.shape[3] % 4
    return F.pad(image, (0, pad_width, 0, pad_height)) if pad_height or pad_width else image


def _as_tokens(plane: Tensor, norm: nn.Module) -> tuple[Tensor, int, int]:
    """``[batch, channels, height, width]`` -> normalised ``[batch, height * width, channels]``, its sides."""
    height, width = plane.shape[2:]
    return norm(plane.flatten(2).transpose(1, 2)), height, width


class _PatchStem(nn.Module):
    """One 4x4 convolution of stride 4 (Swin)."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.proj = nn.Conv2d(in_channels, channels, kernel_size=4, stride=4)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        return _as_tokens(self.proj(_whole_patches(image)), self.norm)


class _ConvStem(nn.Module):
    """Two 3x3 convolutions of stride 2: learns from little data what one 4x4 patch needs more for.

    "Early convolutions help transformers see better", arXiv 2106.14881.
    """

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(in_channels, channels // 2, 3, stride=2, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(channels // 2)
        self.conv2 = nn.Conv2d(channels // 2, channels, 3, stride=2, padding=1)
        self.norm = nn.LayerNorm(channels)

    def forward(self, image: Tensor) -> tuple[Tensor, int, int]:
        hidden = F.gelu(self.bn1(self.conv1(_whole_patches(image))))
        return _as_tokens(self.conv2(hidden), self.norm)


class _Stage(nn.Module):
    """Blocks at one resolution, and the way down to the next (none after the last)."""

    def __init__(self, blocks: nn.ModuleList, downsample: PatchMerging | None) -> None:
        super().__init__()
        self.blocks = blocks
        self.downsample = downsample


@MODELS.register_module()
class SwinMoE(BaseModule):
    """Swin-MoE as an mmdet backbone.

    Args:
        in_channels: Image channels.
        embed_dims: Channels of the first stage; each later stage doubles them.
        depths: Blocks per stage.
        num_heads: Attention heads per stage.
        window_size: Window side in tokens.
        mlp_ratio: Hidden width of the FFNs over channels.
        num_experts: Experts per MoE layer; 0 makes every FFN dense (a static Swin).
        moe_blocks: Per stage, the blocks whose FFN is an MoE layer.
        gate: ``linear`` or ``cosine``.
        gate_projection: Width of the cosine gate's projection.
        gate_noise: Router noise in training (see ``Gate``).
        top_k: Experts per token.
        normalize_gate: Make a token's gate weights sum to one where ``top_k`` > 1.
        capacity_factor: See ``MoELayer``; None is dropless.
        committee_probability: Share of training images that find only a random committee of the experts of a
            layer (see ``MoELayer``); 0 trains with all of them.
        moe_drop: Dropout inside the experts, in training.
        moe_init_std: Standard deviation of the experts' initial weights.
        balance_weight: Weight of the load-balancing loss.
        locality_weight: Weight of the loss that makes an image use few experts (``locality_loss``).
        fc2_bias: Whether the second layer of the FFNs has a bias; without, that of the experts is
            frozen at zero (official Swin-MoE).
        position_bias: ``table`` (Swin V1) or ``continuous`` (official Swin-MoE).
        stem: ``patch`` (Swin) or ``conv``.
        drop_path_rate: Stochastic depth of the last block; earlier ones less, linearly.
        out_indices: Stages whose normalised maps are returned.
        init_cfg: mmengine initialisation.
    """

    def __init__(
        self,
        *,
        in_channels: int = 3,
        embed_dims: int = 96,
        depths: Sequence[int] = (2, 2, 6, 2),
        num_heads: Sequence[int] = (3, 6, 12, 24),
        window_size: int = 7,
        mlp_ratio: float = 4.0,
        num_experts: int = 8,
        moe_blocks: Sequence[Sequence[int]] = ((), (), (1, 3, 5), (1,)),
        gate: GateKind = "linear",
        gate_projection: int = 256,
        gate_noise: float = 1.0,
        top_k: int = 1,
        normalize_gate: bool = True,
        capacity_factor: float | None = None,
        committee_probability: float = 0.0,
        moe_drop: float = 0.0,
        moe_init_std: float = 0.005,
        balance_weight: float = 0.01,
        locality_weight: float = 0.0,
        fc2_bias: bool = True,
        position_bias: BiasKind = "table",
        stem: Literal["patch", "conv"] = "patch",
        drop_path_rate: float = 0.1,
        out_indices: Sequence[int] = (0, 1, 2, 3),
        init_cfg: dict[str, Any] | None = None,
    ) -> None:
        super().__init__(init_cfg)
        self._check(depths, num_heads, moe_blocks, num_experts, out_indices)
        self.out_indices = tuple(out_indices)
        self.balance_weight = balance_weight
        self.locality_weight = locality_weight
        self.num_features = [embed_dims * 2**stage for stage in range(len(depths))]
        stems: dict[str, type[nn.Module]] = {"patch": _PatchStem, "conv": _ConvStem}
        if stem not in stems:
            raise ValueError(f"unknown stem {stem!r}; there are {', '.join(map(repr, stems))}")
        self.stem: nn.Module = stems[stem](in_channels, embed_dims)
        drop_rates = torch.linspace(0, drop_path_rate, sum(depths)).tolist()

        def ffn(channels: int, is_moe: bool) -> nn.Module:
            hidden = int(channels * mlp_ratio)
            if not is_moe:
                return DenseFFN(channels, hidden, fc2_bias=fc2_bias)
            router = build_gate(
                gate,
                channels,
                num_experts,
                top_k=top_k,
                noise=gate_noise,
                normalize=normalize_gate,
                projection=gate_projection,
            )
            experts = ExpertFFN(channels, hidden, num_experts, drop=moe_drop, init_std=moe_init_std)
            experts.fc2_bias.requires_grad_(fc2_bias)
            return MoELayer(
                router,
                experts,
                capacity_factor=capacity_factor,
                committee_probability=committee_probability,
            )

        self.stages = nn.ModuleList()
        for stage, depth in enumerate(depths):
            channels = self.num_features[stage]
            blocks = nn.ModuleList()
            for index in range(depth):
                attention = WindowAttention(
                    channels,
                    num_heads=num_heads[stage],
                    window=window_size,
                    shifted=index % 2 == 1,
                    bias=position_bias,
                )
                is_moe = num_experts > 0 and index in moe_blocks[stage]
                drop_path = drop_rates[sum(depths[:stage]) + index]
                blocks.append(
                    SwinMoEBlock(attention, ffn(channels, is_moe), channels=channels, drop_path=drop_path)
                )
            last = stage + 1 == len(depths)
            self.stages.append(_Stage(blocks, None if last else PatchMerging(channels)))
        for stage in self.out_indices:
            self.add_module(f"norm{stage}", nn.LayerNorm(self.num_features[stage]))
        self._reset_linear()

    @staticmethod
    def _check(
        depths: Sequence[int],
        num_heads: Sequence[int],
        moe_blocks: Sequence[Sequence[int]],
        num_experts: int,
        out_indices: Sequence[int],
    ) -> None:
        if not len(depths) == len(num_heads) == len(moe_blocks):
            raise ValueError(
                "depths, num_heads and moe_blocks need one entry per stage; they have "
                f"{len(depths)}, {len(num_heads)} and {len(moe_blocks)}"
            )
        if num_experts < 0:
            raise ValueError(f"num_experts is {num_experts}; it must be 0 (static) or more")
        for stage, (depth, blocks) in enumerate(zip(depths, moe_blocks, strict=True)):
            wrong = [block for block in blocks if not 0 <= block < depth]
            if wrong:
                raise ValueError(
                    f"moe_blocks names block {wrong[0]} of stage {stage}, which has {depth} blocks"
                )
        if any(not 0 <= stage < len(depths) for stage in out_indices):
            raise ValueError(f"out_indices is {tuple(out_indices)}; there are stages 0 to {len(depths) - 1}")

    def _reset_linear(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)

    def moe_layers(self) -> Iterator[tuple[str, MoELayer]]:
        """Name and module of every MoE layer, first to last."""
        for name, module in self.named_modules():
            if isinstance(module, MoELayer):
                yield name, module

    def auxiliary_losses(self) -> dict[str, Tensor]:
        """Losses of the last training forward pass, to be added to a detector's. Taken only once."""
        balance = []
        locality = []
        busiest = []
        for _, layer in self.moe_layers():
            if layer.balance_loss is None or layer.locality_loss is None or layer.tokens_per_expert is None:
                continue
            balance.append(layer.balance_loss)
            locality.append(layer.locality_loss)
            busiest.append(layer.tokens_per_expert.max() / layer.tokens_per_expert.float().mean())
            layer.balance_loss = layer.locality_loss = layer.tokens_per_expert = None
        if not balance:
            return {}
        losses = {
            "loss_balance": self.balance_weight * torch.stack(balance).sum(),
            "busiest_expert": torch.stack(busiest).mean(),  # 1 is an even load; logged, not minimised
        }
        if self.locality_weight:
            losses["loss_locality"] = self.locality_weight * torch.stack(locality).sum()
        return losses

    def forward(self, image: Tensor) -> tuple[Tensor, ...]:
        """Feature maps of an image batch.

        Args:
            image: ``[batch, in_channels, height, width]``, normalised, of any size.

        Returns:
            One ``[batch, channels, ceil(height / s), ceil(width / s)]`` map (channels-last in
            memory) for each of ``out_indices``, with s = 4, 8, 16, 32.
        """
        tokens, height, width = self.stem(image)
        batch = tokens.shape[0]
        maps = []
        for index, stage in enumerate(self.stages):
            assert isinstance(stage, _Stage)  # for the type checker
            for block in stage.blocks:
                tokens = block(tokens, height, width)
            if index in self.out_indices:
                out = getattr(self, f"norm{index}")(tokens)
                maps.append(out.view(batch, height, width, -1).permute(0, 3, 1, 2))
            if stage.downsample is not None:
                tokens, height, width = stage.downsample(tokens, height, width)
        return tuple(maps)
