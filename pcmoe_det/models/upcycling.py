"""Upcycling: an MoE detector that starts where a dense one ended.

Sparse upcycling, arXiv 2212.05055: each dense FFN is copied into all experts of its layer. There a
token's expert output is multiplied with its gate weight, which starts near ``1 / num_experts``, so
here the second layer is divided by the expected gate weight (of all chosen experts together, which is
1 where the gate normalises it): the MoE starts as the same function.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from pcmoe_det.errors import CheckpointError
from pcmoe_det.models.gates import Gate
from pcmoe_det.models.moe import MoELayer

__all__ = ["Upcycled", "cluster_gates", "upcycle"]


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
) -> Upcycled:
    """Make a state dict for ``model`` from that of its dense twin.

    Args:
        model: With MoE layers; its gates are taken over as they are.
        dense: State dict with ``mlp.fc1`` and ``mlp.fc2`` where the model has experts.
        gate_weights: Expected sum of the weights of a token's chosen experts, by layer name. Where not
            given: 1 for a gate that normalises it, else ``top_k / num_experts``, as of a uniform gate.
        jitter: Relative standard deviation of noise on the copies, so that experts differ from the
            first step on.

    Raises:
        CheckpointError: A dense tensor is missing or has another shape.
    """
    tensors: dict[str, Tensor] = {}
    kept: list[str] = []
    copied = 0
    layers = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
    scales = {
        f"{name}.": 1.0 / (gate_weights or {}).get(name, _uniform_weight(layer.gate))
        for name, layer in layers.items()
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
            tensors[name] = copies.to(own.dtype)
            copied += layer == "fc1" and kind == "weight"
        else:
            tensors[name] = own.clone()
            kept.append(name)
    return Upcycled(tensors, copied, tuple(kept))


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
