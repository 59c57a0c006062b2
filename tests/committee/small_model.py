"""A small backbone with MoE layers of two sizes, and made-up video for it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from pcmoe_det.committee.committee import Committee
from pcmoe_det.committee.options import CommitteeOptions
from pcmoe_det.committee.policies import create_policy
from pcmoe_det.committee.store_memory import MemoryExpertStore
from pcmoe_det.models.swin_moe import SwinMoE


class SmallDetector(nn.Module):
    """Only what a committee sees of a detector: a ``backbone``."""

    def __init__(self, *, num_experts: int = 6, top_k: int = 1, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.backbone = SwinMoE(
            embed_dims=8,
            depths=(1, 1, 4, 2),
            num_heads=(1, 1, 2, 4),
            window_size=4,
            num_experts=num_experts,
            moe_blocks=((), (), (1, 3), (1,)),
            moe_init_std=0.2,
            top_k=top_k,
        )
        for _, layer in self.backbone.moe_layers():
            nn.init.normal_(layer.gate.weight, std=1.0)  # type: ignore[arg-type]
        self.eval()

    def forward(self, image: Tensor) -> list[Tensor]:
        return list(self.backbone(image))


def video(frames: int, *, seed: int = 0, size: tuple[int, int] = (64, 64)) -> list[Tensor]:
    """Slowly changing pictures, ``[1, 3, height, width]``."""
    generator = torch.Generator().manual_seed(seed)
    start, end = (torch.randn(1, 3, *size, generator=generator) * 2 for _ in range(2))
    return [torch.lerp(start, end, index / max(1, frames - 1)) for index in range(frames)]


def make_committee(
    model: SmallDetector, *, policy: str = "pcmoe", budget: float = 0.5, **options: Any
) -> Any:
    """A synchronous committee over the model's own weights, and its store."""
    policy_options = options.pop("policy_options", {})
    store = options.pop("store", None) or MemoryExpertStore(model)
    trace = options.pop("trace", None)
    total = sum(spec.expert_bytes for spec in store.layers)
    options.setdefault("synchronous", True)
    committee = Committee(
        store,
        policy=create_policy(policy, policy_options),
        budget_bytes=int(budget * total),
        options=CommitteeOptions(**options),
        top_k=model.backbone.moe_layers().__next__()[1].gate.top_k,
        trace=trace,
    )
    return SimpleNamespace(committee=committee, store=store, total_bytes=total)


def run(model: SmallDetector, frames: list[Tensor]) -> list[list[Tensor]]:
    """Feature maps of each frame."""
    with torch.inference_mode():
        return [model(frame) for frame in frames]


def same(left: list[list[Tensor]], right: list[list[Tensor]]) -> bool:
    """Whether all maps are equal to the bit."""
    return all(
        torch.equal(a, b)
        for one, other in zip(left, right, strict=True)
        for a, b in zip(one, other, strict=True)
    )
