"""Expert FFNs: batched parameters, and the kernel that runs them on routed tokens.

Tokens are sorted by expert once; each expert then works on one contiguous slice, without padding,
and the results go back in one weighted gather. A frame's result does not depend on its batch mates.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pcmoe_det.models.gates import Routing

__all__ = [
    "Dispatch",
    "ExpertFFN",
    "combine",
    "dispatch",
    "expert_ffn",
    "experts_without_memory",
    "run_routed",
]

_WITHOUT_MEMORY: ContextVar[bool] = ContextVar("_WITHOUT_MEMORY", default=False)


@contextmanager
def experts_without_memory() -> Iterator[None]:
    """Within it new ``ExpertFFN`` modules have parameters on the meta device: shapes, but no values.

    For whoever builds a detector to put the experts elsewhere. (A meta device for the whole detector
    would do away with its fixed buffers too, and constructors that compute with tensors fail on it.)
    """
    token = _WITHOUT_MEMORY.set(True)
    try:
        yield
    finally:
        _WITHOUT_MEMORY.reset(token)


@dataclass(frozen=True, eq=False)
class Dispatch:
    """Token order of one MoE layer.

    Attributes:
        order: ``[kept]`` int64 positions into the flattened ``[tokens * top_k]`` choices, sorted by
            expert and, within an expert, by token.
        counts: Choices per expert.
        top_k: Choices per token.
    """

    order: Tensor
    counts: tuple[int, ...]
    top_k: int

    @property
    def source(self) -> Tensor:
        """``[kept]`` int64, the token of each choice."""
        return self.order if self.top_k == 1 else self.order // self.top_k


def dispatch(routing: Routing) -> Dispatch:
    """Sort the choices that a routing keeps by expert."""
    num_experts = routing.scores.shape[1]
    flat = routing.experts.reshape(-1)
    if routing.kept is not None:
        flat = torch.where(routing.kept.reshape(-1), flat, num_experts)
    order = torch.argsort(flat, stable=True)
    counts = torch.bincount(flat, minlength=num_experts)[:num_experts].tolist()
    return Dispatch(order=order[: sum(counts)], counts=tuple(counts), top_k=routing.experts.shape[1])


def combine(outputs: Tensor, routing: Routing, plan: Dispatch) -> Tensor:
    """Put expert outputs back in token order, weighted and summed over a token's choices.

    Args:
        outputs: ``[kept, channels]`` in the order of ``plan``.
        routing: What ``plan`` was made from.
        plan: The order.

    Returns:
        ``[tokens, channels]``; zero for a token without a kept choice.
    """
    num_tokens = routing.experts.shape[0]
    weights = routing.weights.reshape(-1).index_select(0, plan.order).to(outputs.dtype)
    weighted = outputs * weights[:, None]
    if plan.top_k == 1 and routing.kept is None:
        inverse = torch.empty_like(plan.order)
        inverse[plan.order] = torch.arange(num_tokens, device=plan.order.device)
        return weighted.index_select(0, inverse)
    result = weighted.new_zeros(num_tokens, weighted.shape[1])
    return result.index_add(0, plan.source, weighted)


def run_routed(
    tokens: Tensor,
    routing: Routing,
    run_expert: Callable[[int, Tensor], Tensor],
    *,
    order: Callable[[list[int]], list[int]] | None = None,
) -> Tensor:
    """Sum over the chosen experts of gate weight times expert output.

    Args:
        tokens: ``[tokens, channels]``.
        routing: Of these tokens.
        run_expert: Runs the expert of an index on ``[n, channels]`` tokens, n above 0.
        order: In which order to run the experts that have tokens; ascending if None. The result does
            not depend on it.

    Returns:
        ``[tokens, channels]``.
    """
    plan = dispatch(routing)
    parts = tokens.index_select(0, plan.source).split(list(plan.counts))
    wanted = [expert for expert, count in enumerate(plan.counts) if count]
    if not wanted:
        return torch.zeros_like(tokens)
    outputs = {expert: run_expert(expert, parts[expert]) for expert in (order(wanted) if order else wanted)}
    return combine(torch.cat([outputs[expert] for expert in wanted]), routing, plan)


def expert_ffn(
    tokens: Tensor, fc1: Tensor, bias1: Tensor, fc2: Tensor, bias2: Tensor, *, drop: float = 0.0
) -> Tensor:
    """One expert on ``[n, channels]``; ``fc1`` is ``[hidden, channels]``, ``fc2`` ``[channels, hidden]``."""
    hidden = F.gelu(F.linear(tokens, fc1, bias1))
    if drop:
        hidden = F.dropout(hidden, drop)
    return F.linear(hidden, fc2, bias2)


class ExpertFFN(nn.Module):
    """``num_experts`` two-layer GELU FFNs held as batched parameters.

    Args:
        channels: Token width.
        hidden: Width of the hidden layer.
        num_experts: Number of experts.
        drop: Dropout after the activation, in training.
        init_std: Standard deviation of the initial weights (0.005 in the official code).
    """

    def __init__(
        self, channels: int, hidden: int, num_experts: int, *, drop: float = 0.0, init_std: float = 0.005
    ) -> None:
        super().__init__()
        self.num_experts = num_experts
        self.drop = drop
        device = "meta" if _WITHOUT_MEMORY.get() else None
        self.fc1_weight = nn.Parameter(torch.empty(num_experts, hidden, channels, device=device))
        self.fc1_bias = nn.Parameter(torch.zeros(num_experts, hidden, device=device))
        self.fc2_weight = nn.Parameter(torch.empty(num_experts, channels, hidden, device=device))
        self.fc2_bias = nn.Parameter(torch.zeros(num_experts, channels, device=device))
        nn.init.trunc_normal_(self.fc1_weight, std=init_std)
        nn.init.trunc_normal_(self.fc2_weight, std=init_std)

    def forward(self, tokens: Tensor, routing: Routing) -> Tensor:
        """Sum over the chosen experts of gate weight times expert output.

        Args:
            tokens: ``[tokens, channels]``.
            routing: Of these tokens.

        Returns:
            ``[tokens, channels]`` in the dtype of the experts' arithmetic; zero for a token without a
            kept choice.
        """
        # unbind, not indexing: its gradient is one stack instead of a full-size zero per expert.
        fields = (self.fc1_weight, self.fc1_bias, self.fc2_weight, self.fc2_bias)
        parameters = list(zip(*(field.unbind(0) for field in fields), strict=True))
        drop = self.drop if self.training else 0.0
        return run_routed(
            tokens, routing, lambda expert, part: expert_ffn(part, *parameters[expert], drop=drop)
        )
