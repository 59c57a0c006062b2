"""Gates: which experts a token goes to, and with what weight."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

__all__ = ["CosineGate", "Gate", "GateKind", "LinearGate", "Routing", "build_gate", "choose_experts"]

GateKind = Literal["linear", "cosine"]


@dataclass(frozen=True, eq=False)
class Routing:
    """Where a batch of tokens goes.

    Attributes:
        experts: ``[tokens, top_k]`` int64, best first.
        weights: ``[tokens, top_k]`` float32; what each expert's output is multiplied with.
        scores: ``[tokens, num_experts]`` float32, softmax of the (noisy, in training) logits.
        logits: ``[tokens, num_experts]`` float32 without noise.
        chosen_logits: ``[tokens, top_k]`` float32, the (noisy) logits of the chosen experts.
        kept: ``[tokens, top_k]`` bool, the choices that are carried out; None is all of them.
    """

    experts: Tensor
    weights: Tensor
    scores: Tensor
    logits: Tensor
    chosen_logits: Tensor
    kept: Tensor | None = None


class Gate(nn.Module):
    """Base: subclasses give logits, this class turns them into a routing.

    Args:
        num_experts: Experts to choose from.
        top_k: Experts per token.
        noise: Router noise in training: a normal deviate of standard deviation
            ``noise / num_experts`` on each logit. Never at inference.
        normalize: Divide the weights of the chosen experts by their sum (only with ``top_k`` > 1,
            where the official code does so too).
    """

    def __init__(
        self, num_experts: int, *, top_k: int = 1, noise: float = 1.0, normalize: bool = True
    ) -> None:
        super().__init__()
        if not 1 <= top_k <= num_experts:
            raise ValueError(f"top_k is {top_k}; with {num_experts} experts it must be 1 to {num_experts}")
        self.num_experts = num_experts
        self.top_k = top_k
        self.noise = noise
        self.normalize = normalize

    def logits(self, tokens: Tensor) -> Tensor:
        """``[tokens, channels]`` of any dtype -> ``[tokens, num_experts]`` float32."""
        raise NotImplementedError

    def forward(self, tokens: Tensor) -> Routing:
        """Route ``[tokens, channels]``. All of it is float32: a rounded logit changes the expert."""
        with torch.autocast(tokens.device.type, enabled=False):
            logits = self.logits(tokens)
            noisy = logits
            if self.training and self.noise > 0:
                noisy = logits + torch.randn_like(logits) * (self.noise / self.num_experts)
            return choose_experts(logits, noisy, top_k=self.top_k, normalize=self.normalize)


def choose_experts(logits: Tensor, noisy_logits: Tensor, *, top_k: int, normalize: bool) -> Routing:
    """Top-k of the softmax of ``[tokens, num_experts]`` float32 logits."""
    scores = F.softmax(noisy_logits, dim=1)
    weights, experts = scores.topk(top_k, dim=1)
    if top_k > 1 and normalize:
        weights = weights / weights.sum(dim=1, keepdim=True).clamp_min(torch.finfo(weights.dtype).eps)
    return Routing(experts, weights, scores, logits, noisy_logits.gather(1, experts))


class LinearGate(Gate):
    """Logits are a linear map of the token, without bias."""

    def __init__(
        self, channels: int, num_experts: int, *, top_k: int = 1, noise: float = 1.0, normalize: bool = True
    ) -> None:
        super().__init__(num_experts, top_k=top_k, noise=noise, normalize=normalize)
        self.weight = nn.Parameter(torch.empty(num_experts, channels))
        nn.init.trunc_normal_(self.weight, std=0.02)

    def logits(self, tokens: Tensor) -> Tensor:
        return F.linear(tokens.float(), self.weight.float())


class CosineGate(Gate):
    """Logits are cosines between projected token and expert embedding, over a learned temperature.

    X-MoE's router (arXiv 2204.09179, equation 5) as the official Swin-MoE code has it.
    """

    MIN_TEMPERATURE = 0.01

    def __init__(
        self,
        channels: int,
        num_experts: int,
        *,
        top_k: int = 1,
        noise: float = 1.0,
        normalize: bool = True,
        projection: int = 256,
        initial_temperature: float = 0.5,
    ) -> None:
        super().__init__(num_experts, top_k=top_k, noise=noise, normalize=normalize)
        self.projector = nn.Linear(channels, projection)
        self.embedding = nn.Parameter(torch.empty(projection, num_experts))
        self.log_inverse_temperature = nn.Parameter(torch.full((1,), math.log(1.0 / initial_temperature)))
        nn.init.normal_(self.embedding, std=0.01)

    def logits(self, tokens: Tensor) -> Tensor:
        projected = F.linear(tokens.float(), self.projector.weight.float(), self.projector.bias.float())
        cosine = F.normalize(projected, dim=1) @ F.normalize(self.embedding.float(), dim=0)
        limit = math.log(1.0 / self.MIN_TEMPERATURE)
        return cosine * self.log_inverse_temperature.float().clamp(max=limit).exp()


def build_gate(
    kind: GateKind,
    channels: int,
    num_experts: int,
    *,
    top_k: int,
    noise: float,
    normalize: bool,
    projection: int,
) -> Gate:
    """A gate by its configured name. Raises ValueError for an unknown one."""
    if kind == "linear":
        return LinearGate(channels, num_experts, top_k=top_k, noise=noise, normalize=normalize)
    if kind == "cosine":
        return CosineGate(
            channels, num_experts, top_k=top_k, noise=noise, normalize=normalize, projection=projection
        )
    raise ValueError(f"unknown gate {kind!r}; there are 'linear' and 'cosine'")
