"""Experts of a model that is whole in memory, behind the interface of a store.

It saves no memory: for `CommitteeHook` on a model that is being trained, and as truth in tests.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec, RecordLayout
from pcmoe_det.committee.packed_skeleton import moe_layers
from pcmoe_det.committee.store_base import CopyingStore
from pcmoe_det.errors import UsageError
from pcmoe_det.models.experts import ExpertFFN

__all__ = ["MemoryExpertStore"]


class MemoryExpertStore(CopyingStore):
    """Reads the experts of a whole model.

    The parameters are read when asked, so that weights exchanged later (EMA) are followed.

    Args:
        model: A detector with MoE layers, not patched.

    Raises:
        UsageError: It has no MoE layers, or they are not whole.
    """

    def __init__(self, model: nn.Module) -> None:
        specs = []
        self._experts: list[ExpertFFN] = []
        for index, (name, layer) in enumerate(moe_layers(model)):
            experts = layer.experts
            if not isinstance(experts, ExpertFFN):
                raise UsageError(
                    f"the experts of {name} are not in memory ({type(experts).__name__}); use a disk store"
                )
            self._experts.append(experts)
            specs.append(_spec(index, name, experts))
        if not specs:
            raise UsageError("the model has no MoE layers; a committee needs a model with experts")
        super().__init__(specs, read_mode="warm")

    def _copy(self, key: ExpertKey, spec: MoELayerSpec, buffer: Tensor) -> None:
        with torch.inference_mode():
            for name, view in spec.layout.views(buffer).items():
                view.copy_(self._experts[key.layer].get_parameter(name)[key.expert])

    def close(self) -> None:
        """Nothing to release."""


def _spec(index: int, name: str, experts: ExpertFFN) -> MoELayerSpec:
    hidden, channels = experts.fc1_weight.shape[1:]
    with torch.inference_mode():
        squares = sum(
            weight.float().square().sum(dim=(1, 2)) for weight in (experts.fc1_weight, experts.fc2_weight)
        )
    return MoELayerSpec(
        index=index,
        name=name,
        num_experts=experts.num_experts,
        channels=channels,
        hidden=hidden,
        layout=RecordLayout.for_expert(channels, hidden, experts.fc1_weight.dtype),
        norms=tuple(torch.as_tensor(squares).sqrt().tolist()),
    )
