"""Upcycling: an MoE detector that starts where a dense one ended.

Sparse upcycling, arXiv 2212.05055: each dense FFN is copied into all experts of its layer. There a
token's expert output is multiplied with its gate weight, which starts near ``1 / num_experts``, so
here the second layer is divided by the expected gate weight (of all chosen experts together, which is
1 where the gate normalises it): the MoE starts as the same function.

Equal experts stay much alike for a long time. Drop-Upcycling (arXiv 2502.19261) draws a share of the hidden
units of each expert anew, from a normal distribution with the mean and deviation of the weights they replace:
each expert forgets something else, and they grow apart from the first step on.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pcmoe_det.errors import CheckpointError, UsageError
from pcmoe_det.models.gates import Gate
from pcmoe_det.models.moe import MoELayer

__all__ = ["Upcycled", "cluster_gates", "scale_writes", "upcycle"]


@dataclass(frozen=True)
class Upcycled:
    """What upcycling did.

    Attributes:
        tensors: A complete state dict of the MoE model.
        copied: FFNs that were copied into experts.
        kept: Names of the model's tensors that the dense checkpoint did not have (the gates).
    """

    tensors: dict[str, Tensor]
    copied: int
    kept: tuple[str, ...]


def upcycle(
    model: nn.Module,
    dense: Mapping[str, Tensor],
    *,
    gate_weights: Mapping[str, float] | None = None,
    jitter: float = 0.0,
    redrawn_share: float = 0.0,
) -> Upcycled:
    """Make a state dict for ``model`` from that of its dense twin.

    Args:
        model: With MoE layers; its gates are taken over as they are.
        dense: State dict with ``mlp.fc1`` and ``mlp.fc2`` where the model has experts.
        gate_weights: Expected sum of the weights of a token's chosen experts, by layer name. Where not
            given: 1 for a gate that normalises it, else ``top_k / num_experts``, as of a uniform gate.
        jitter: Relative standard deviation of noise on the copies, so that experts differ from the
            first step on.
        redrawn_share: Share of each expert's hidden units that are drawn anew (Drop-Upcycling). The MoE
            then starts as a damaged version of the dense model.

    Raises:
        CheckpointError: A dense tensor is missing or has another shape.
        UsageError: ``redrawn_share`` is outside 0 to 1.
    """
    if not 0.0 <= redrawn_share <= 1.0:
        raise UsageError(f"the share of redrawn hidden units is {redrawn_share}; it must be 0 to 1")
    tensors: dict[str, Tensor] = {}
    kept: list[str] = []
    copied = 0
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
    scales = {
        f"{name}.": 1.0 / (gate_weights or {}).get(name, _uniform_weight(layer.gate))
        for name, layer in layers.items()
    }
    redrawn = {
        prefix: _random_units(*layers[prefix.rstrip(".")].experts.fc1_bias.shape, share=redrawn_share)
        for prefix in scales
    }
    for name, own in model.state_dict().items():
        prefix = next((prefix for prefix in scales if name.startswith(prefix)), None)
        if prefix is None:
            source = dense.get(name)
            if source is None or source.shape != own.shape:
                found = "is missing" if source is None else f"is {tuple(source.shape)}"
                raise CheckpointError(f"{name} {found} in the dense checkpoint; {tuple(own.shape)} is needed")
            tensors[name] = source.to(own.dtype)
        elif name.startswith(f"{prefix}experts."):
            layer, kind = name.rsplit(".", 1)[1].split("_")
            source = dense.get(f"{prefix}{layer}.{kind}")
            if source is None and (layer, kind) == ("fc2", "bias"):
                source = torch.zeros(own.shape[1:])
            if source is None or source.shape != own.shape[1:]:
                needed = f"{prefix}{layer}.{kind} of shape {tuple(own.shape[1:])}"
                raise CheckpointError(f"{needed} is needed in the dense checkpoint")
            scale = 1.0 if layer == "fc1" else scales[prefix]
            copies = (source.float() * scale).expand(own.shape).clone()
            if jitter and kind == "weight":
                copies += torch.randn_like(copies) * (jitter * copies.std())
            if (layer, kind) != ("fc2", "bias"):
                _redraw(copies, redrawn[prefix], hidden_axis=2 if layer == "fc2" else 1)
            tensors[name] = copies.to(own.dtype)
            copied += layer == "fc1" and kind == "weight"
        else:
            tensors[name] = own.clone()
            kept.append(name)
    return Upcycled(tensors, copied, tuple(kept))


def scale_writes(tensors: Mapping[str, Tensor], factors: Mapping[str, float]) -> dict[str, Tensor]:
    """Multiply what the experts of some MoE layers add to the residual stream.

    Args:
        tensors: State dict of an MoE model; not changed.
        factors: By layer name.
    """
    scaled = dict(tensors)
    for layer, factor in factors.items():
        for kind in ("fc2_weight", "fc2_bias"):
            name = f"{layer}.experts.{kind}"
            scaled[name] = (tensors[name].float() * factor).to(tensors[name].dtype)
    return scaled


def _random_units(num_experts: int, hidden: int, *, share: float) -> Tensor:
    """``[num_experts, hidden]`` bool: for each expert a random choice of ``share`` of its hidden units."""
    rank = torch.rand(num_experts, hidden).argsort(dim=1).argsort(dim=1)
    return rank < round(share * hidden)


def _redraw(copies: Tensor, units: Tensor, *, hidden_axis: int) -> None:
    """Draw what belongs to ``units`` anew, in place; ``copies`` has the experts first."""
    mask = units if copies.dim() == 2 else units.unsqueeze(1 if hidden_axis == 2 else 2)
    fresh = copies.mean() + copies.std() * torch.randn_like(copies)
    torch.where(mask, fresh, copies, out=copies)


def _uniform_weight(gate: Gate) -> float:
    """Sum of the weights of a token's chosen experts, if the gate has no preference."""
    return 1.0 if gate.normalize and gate.top_k > 1 else gate.top_k / gate.num_experts


def cluster_gates(tokens: Tensor, num_experts: int, *, steps: int = 30, sharpness: float = 8.0) -> Tensor:
    """Gate weights that send similar tokens to the same expert from the start.

    Spherical k-means; each gate row is a cluster's direction, scaled so that logits of typical
    tokens spread by about ``sharpness``.

    Args:
        tokens: ``[n, channels]`` inputs of the MoE layer.
        num_experts: Number of clusters.
        steps: Iterations.
        sharpness: Spread of the logits.

    Returns:
        ``[num_experts, channels]`` float32.
    """
    if len(tokens) < num_experts:
        raise ValueError(f"{len(tokens)} tokens cannot make {num_experts} clusters")
    tokens = tokens.float()
    norms = tokens.norm(dim=1, keepdim=True).clamp_min(1e-6)
    directions = tokens / norms
    centres = directions[torch.randperm(len(tokens))[:num_experts]].clone()
    for _ in range(steps):
        nearest = (directions @ centres.T).argmax(dim=1)
        sums = torch.zeros_like(centres).index_add_(0, nearest, directions)
        counts = torch.bincount(nearest, minlength=num_experts)
        empty = (counts == 0).nonzero().flatten()
        if len(empty):  # a cluster without tokens restarts at a random token
            sums[empty] = directions[torch.randint(len(tokens), (len(empty),))]
        centres = sums / sums.norm(dim=1, keepdim=True).clamp_min(1e-6)
    # Only differences between rows route; the common part would only shift all logits.
    centres = centres - centres.mean(dim=0)
    logits = tokens @ centres.T
    return centres * (sharpness / (logits.amax(1) - logits.mean(1)).mean().clamp_min(1e-6))
