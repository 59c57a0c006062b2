"""How much an expert matters to what a stream shows now."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, get_args

import numpy as np
import torch
from numpy.typing import NDArray

from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.errors import UsageError
from pcmoe_det.models.gates import Routing

__all__ = ["ImportanceKind", "ImportanceTracker", "frame_importance"]

ImportanceKind = Literal["eq1", "counts", "magnitude", "random"]


def frame_importance(
    kind: ImportanceKind,
    tokens: torch.Tensor,
    routing: Routing,
    spec: MoELayerSpec,
    *,
    counts: torch.Tensor,
    generator: torch.Generator | None = None,
) -> torch.Tensor:
    """Importance of each expert of a layer for the tokens of one frame.

    ``eq1`` is equation 1 of SwapMoE (arXiv 2308.15030): the sum over tokens x routed to expert i of
    ``||x|| * G(x)_i * ||E_i||``.

    Args:
        kind: Which measure; ``counts`` is tokens per expert.
        tokens: ``[tokens, channels]``.
        routing: By the *unmasked* gate, so that absent experts earn their place too.
        spec: Of the layer.
        counts: ``[num_experts]`` choices per expert in ``routing``.
        generator: Of ``random``.

    Returns:
        ``[num_experts]`` float64 on the CPU.

    Raises:
        UsageError: Unknown ``kind``.
    """
    if kind == "counts":
        return counts.double().cpu()
    if kind == "magnitude":
        return torch.tensor(spec.norms, dtype=torch.float64)
    if kind == "random":
        return torch.rand(spec.num_experts, dtype=torch.float64, generator=generator)
    if kind != "eq1":
        raise UsageError(f"unknown importance {kind!r}; there are {', '.join(get_args(ImportanceKind))}")
    norms = tokens.float().norm(dim=1)
    contribution = norms[:, None] * routing.weights
    total = torch.zeros(spec.num_experts, dtype=torch.float64, device=tokens.device)
    total.index_add_(0, routing.experts.reshape(-1), contribution.reshape(-1).double())
    return total.cpu() * torch.tensor(spec.norms, dtype=torch.float64)


class ImportanceTracker:
    """Smoothed importance of one stream.

    Args:
        specs: Every MoE layer.
        smoothing: Weight of the past in the exponential mean, 0 (this frame only) to below 1.
        scene_cut: A frame whose shares of importance differ from the smoothed ones by more than this
            (total variation, 0 to 1) starts the mean anew; 1 never does.
    """

    def __init__(self, specs: Sequence[MoELayerSpec], *, smoothing: float, scene_cut: float) -> None:
        self._specs = tuple(specs)
        self.smoothing = smoothing
        self.scene_cut = scene_cut
        self.frames = 0
        self._mean: list[NDArray[np.float64]] = [np.zeros(spec.num_experts) for spec in specs]

    def update(self, frame: Sequence[NDArray[np.float64]]) -> bool:
        """Take in one frame's importance per layer; returns whether it looks like a scene cut.

        The first frame is one. A frame whose importance is not finite says nothing, and is left out.
        """
        if not all(np.isfinite(now).all() for now in frame):
            return False
        distance = max(
            (_distance(now, mean) for now, mean in zip(frame, self._mean, strict=True)), default=0.0
        )
        cut = self.frames == 0 or distance > self.scene_cut
        keep = 0.0 if cut else self.smoothing
        for now, mean in zip(frame, self._mean, strict=True):
            mean *= keep
            mean += (1.0 - keep) * now
        self.frames += 1
        return cut

    def values(self, layer: int) -> NDArray[np.float64]:
        """``[num_experts]``, as shares of the layer's sum (zeros before the first frame)."""
        mean = self._mean[layer]
        total = float(mean.sum())
        return mean / total if total > 0 else mean.copy()


def _distance(left: NDArray[np.float64], right: NDArray[np.float64]) -> float:
    left_sum, right_sum = float(left.sum()), float(right.sum())
    if left_sum <= 0 or right_sum <= 0:
        return 0.0
    return 0.5 * float(np.abs(left / left_sum - right / right_sum).sum())
