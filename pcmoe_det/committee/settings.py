"""Everything a user chooses about a committee, before there is a model."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import nn

from pcmoe_det.committee.budget import parse_budget
from pcmoe_det.committee.committee import Committee
from pcmoe_det.committee.options import CommitteeOptions
from pcmoe_det.committee.policies.base import Policy
from pcmoe_det.committee.store import ExpertStore
from pcmoe_det.committee.trace import TraceWriter
from pcmoe_det.models.moe import MoELayer

__all__ = ["CommitteeSettings"]


@dataclass(frozen=True)
class CommitteeSettings:
    """A policy, a budget, and how misses and swaps are handled.

    Attributes:
        policy: Which experts are resident.
        expert_budget: Share of all expert bytes or size, such as ``0.5`` or ``"300MiB"``.
        options: See ``CommitteeOptions``.
    """

    policy: Policy
    expert_budget: str | float
    options: CommitteeOptions

    def build(
        self, model: nn.Module, store: ExpertStore, *, device: torch.device, trace: TraceWriter | None = None
    ) -> Committee:
        """A committee for ``model``, whose experts ``store`` reads; the caller patches and closes it.

        Raises:
            UsageError: The budget is no budget, or too small.
        """
        return Committee(
            store,
            policy=self.policy,
            budget_bytes=parse_budget(
                self.expert_budget, total_bytes=sum(spec.expert_bytes for spec in store.layers)
            ),
            options=self.options,
            device=device,
            top_k=max(module.gate.top_k for module in model.modules() if isinstance(module, MoELayer)),
            trace=trace,
        )

    def to_json_dict(self) -> dict[str, Any]:
        """What was chosen, as plain data beside results."""
        return {
            "policy": self.policy.name,
            "expert_budget": str(self.expert_budget),
            "policy_options": dict(vars(self.policy)),
            **asdict(self.options),
        }
