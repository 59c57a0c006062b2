"""Putting a committee into a model and taking it out again."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mmengine.model import is_model_wrapper
from torch import nn

from pcmoe_det.committee.modules import MaskedGate, ResidentExperts
from pcmoe_det.errors import UsageError
from pcmoe_det.models.moe import MoELayer
from pcmoe_det.models.prepacked import PrepackedLinear

if TYPE_CHECKING:
    from pcmoe_det.committee.committee import Committee

__all__ = ["Patches", "dense_bytes", "patch", "restore"]


@dataclass
class Patches:
    """What was replaced, to be put back."""

    modules: list[tuple[MoELayer, nn.Module, nn.Module]] = field(default_factory=list)
    hooks: list[Any] = field(default_factory=list)


def _layers_of(model: nn.Module, committee: Committee) -> list[MoELayer]:
    own = {name: module for name, module in model.named_modules() if isinstance(module, MoELayer)}
    expected = [spec.name for spec in committee.specs]
    if list(own) != expected:
        raise UsageError(
            f"the model's MoE layers ({', '.join(own) or 'none'}) are not those of the experts "
            f"({', '.join(expected)}); pack this model's own weights"
        )
    for spec in committee.specs:
        layer = own[spec.name]
        if isinstance(layer.gate, MaskedGate):
            raise UsageError("the model is patched already; leave the other committee's block first")
        if layer.gate.num_experts != spec.num_experts:
            raise UsageError(
                f"{spec.name} has {layer.gate.num_experts} experts, the store {spec.num_experts}; "
                "pack this model's own weights"
            )
    return list(own.values())


def patch(model: nn.Module, committee: Committee) -> Patches:
    """Replace gate and experts of every MoE layer; frames are bounded by the backbone's forward pass.

    Raises:
        UsageError: The model does not fit the committee, or is patched already. It is then unchanged.
    """
    inner: nn.Module = model.module if is_model_wrapper(model) else model  # type: ignore[assignment]
    layers = _layers_of(inner, committee)
    patches = Patches()
    try:
        for index, layer in enumerate(layers):
            patches.modules.append((layer, layer.gate, layer.experts))
            gate, experts = layer.gate, layer.experts
            _exchange(layer, MaskedGate(gate, committee, index), ResidentExperts(experts, committee, index))
        frame: nn.Module = getattr(inner, "backbone", inner)
        patches.hooks.append(frame.register_forward_pre_hook(_before(committee.start_frame)))
        patches.hooks.append(frame.register_forward_hook(_after(committee.end_frame)))
    except BaseException:
        restore(patches)
        raise
    return patches


def dense_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers that belong to no expert; patched or not."""
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    of_experts = {id(parameter) for layer in layers for parameter in layer.experts.parameters()}
    tensors = [*model.parameters(), *model.buffers()]
    plain = sum(tensor.numel() * tensor.element_size() for tensor in tensors if id(tensor) not in of_experts)
    prepacked = sum(module.weight_bytes for module in model.modules() if isinstance(module, PrepackedLinear))
    return plain + prepacked


def restore(patches: Patches) -> None:
    """Put back what ``patch`` replaced: the same objects in the same places."""
    for hook in patches.hooks:
        hook.remove()
    for layer, gate, experts in patches.modules:
        _exchange(layer, gate, experts)
    patches.hooks.clear()
    patches.modules.clear()


def _exchange(layer: nn.Module, gate: nn.Module, experts: nn.Module) -> None:
    layer.gate, layer.experts = gate, experts


def _before(call: Callable[[], None]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any) -> None:
        del module, inputs
        call()

    return hook


def _after(call: Callable[[], None]) -> Callable[..., None]:
    def hook(module: nn.Module, inputs: Any, output: Any) -> None:
        del module, inputs, output
        call()

    return hook
