"""What patching puts in the place of a layer's gate and experts."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from torch import Tensor, nn

from pcmoe_det.models.experts import expert_ffn, run_routed
from pcmoe_det.models.gates import Gate, Routing

if TYPE_CHECKING:
    from pcmoe_det.committee.committee import Committee

__all__ = ["MaskedGate", "ResidentExperts"]


class MaskedGate(nn.Module):
    """The original gate, followed by what the committee does about absent experts.

    The original stays a submodule, so that the patched model has the same parameters in the same order
    (mmengine's EMA hook exchanges weights by their order).
    """

    def __init__(self, gate: Gate, committee: Committee, layer: int) -> None:
        super().__init__()
        self.original = gate
        self._committee = committee
        self._layer = layer
        self.num_experts = gate.num_experts
        self.top_k = gate.top_k
        self.noise = gate.noise

    def forward(self, tokens: Tensor) -> Routing:
        """Route ``[tokens, channels]`` to resident experts."""
        return self._committee.route(self._layer, tokens, self.original(tokens), self.original)


class ResidentExperts(nn.Module):
    """Runs the experts that are in slots; the sums are those of ``ExpertFFN``, in the same order."""

    def __init__(self, experts: nn.Module, committee: Committee, layer: int) -> None:
        super().__init__()
        self.original = experts
        self._committee = committee
        self._layer = layer

    def forward(self, tokens: Tensor, routing: Routing) -> Tensor:
        """``[tokens, channels]`` -> the same shape."""

        def run(expert: int, part: Tensor) -> Tensor:
            weights = self._committee.weights(self._layer, expert)
            return expert_ffn(
                part, weights.fc1_weight, weights.fc1_bias, weights.fc2_weight, weights.fc2_bias
            )

        # Residents first: a load on a miss must not evict an expert that this layer still needs.
        order = partial(self._committee.run_order, self._layer)
        return run_routed(tokens, routing, run, order=order)
