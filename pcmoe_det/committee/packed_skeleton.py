"""A detector without its experts: everything else is whole, the experts' places are marked."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.store_base import ExpertStore
from pcmoe_det.errors import UsageError
from pcmoe_det.models.experts import ExpertFFN, expert_ffn, experts_without_memory, run_routed
from pcmoe_det.models.gates import Routing
from pcmoe_det.models.inference import build_model
from pcmoe_det.models.moe import MoELayer
from pcmoe_det.models.weights_file import WeightsInfo

__all__ = ["PackedExperts", "build_skeleton", "expert_parameter_names", "experts_of", "moe_layers"]


class PackedExperts(nn.Module):
    """Stands where the experts of an MoE layer run; has no parameters.

    Without a committee it reads each expert when it is needed, into one buffer: exact and slow.

    Args:
        spec: The layer whose experts are elsewhere.
        store: Where to read them.
        drop: Dropout that the experts had, for whoever puts them back.
    """

    def __init__(self, spec: MoELayerSpec, store: ExpertStore, *, drop: float = 0.0) -> None:
        super().__init__()
        self.spec = spec
        self.num_experts = spec.num_experts
        self.drop = drop
        self._store = store

    def forward(self, tokens: Tensor, routing: Routing) -> Tensor:
        """``[tokens, channels]`` -> the same shape, to the bit what ``ExpertFFN`` gives.

        Raises:
            StoreError: An expert cannot be read.
        """
        buffer = torch.empty(self.spec.record_bytes, dtype=torch.uint8)

        def run(expert: int, part: Tensor) -> Tensor:
            self._store.read_into(ExpertKey(self.spec.index, expert), buffer)
            views = self.spec.layout.views(buffer.to(part.device))
            return expert_ffn(
                part, views["fc1_weight"], views["fc1_bias"], views["fc2_weight"], views["fc2_bias"]
            )

        return run_routed(tokens, routing, run)

    def extra_repr(self) -> str:
        return f"{self.spec.name}, num_experts={self.num_experts}, expert_bytes={self.spec.expert_bytes}"


def build_skeleton(info: WeightsInfo, *, source: str | None = None, seed: int = 0) -> nn.Module:
    """Build a detector with random weights whose experts take no memory (meta device).

    Arithmetic in low precision is left to ``prepare_for_inference``, as ``load_detector`` does. Torch's
    random state is as before.

    Args:
        info: The detector.
        source: The file that describes it; None for what the user named (see ``build_model``).
        seed: Of the random weights.

    Raises:
        CheckpointError: The file describes more than a model.
        ConfigError: The configuration does not build.
    """
    config = {**info.model, "precision": "float32"} if "precision" in info.model else info.model
    with torch.random.fork_rng(devices=[]), experts_without_memory():
        torch.manual_seed(seed)
        return build_model(config, source=source)


def moe_layers(model: nn.Module) -> list[tuple[str, MoELayer]]:
    """Module path and module of every MoE layer, first to last."""
    return [(name, module) for name, module in model.named_modules() if isinstance(module, MoELayer)]


def expert_parameter_names(layer_name: str) -> dict[str, str]:
    """Names in the detector's state dict of a layer's expert parameters, by field of a record."""
    fields = ("fc1_weight", "fc1_bias", "fc2_weight", "fc2_bias")
    return {field: f"{layer_name}.experts.{field}" for field in fields}


def experts_of(layer: MoELayer) -> ExpertFFN:
    """The experts of a layer built by ``build_skeleton``."""
    experts = layer.experts
    if not isinstance(experts, ExpertFFN):
        raise UsageError(
            f"an MoE layer has experts of type {type(experts).__name__}; only ExpertFFN is packed"
        )
    return experts
