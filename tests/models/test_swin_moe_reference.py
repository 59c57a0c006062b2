"""Every block and MoE layer against outputs of the official Swin-MoE implementation."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pcmoe_det.models.balance import importance_and_load_loss
from pcmoe_det.models.moe import MoELayer
from pcmoe_det.models.official import backbone_config, convert_official_swin, read_sharded
from pcmoe_det.models.registry import SwinMoE
from pcmoe_det.models.swin_moe import SwinMoEBlock
from tests.reference import shared

TOLERANCE = 1e-5
CASES = {
    "linear_top1_capacity": dict(capacity_factor=1.25),
    "linear_top1_dropless": dict(),
    "linear_top2_dropless": dict(top_k=2),
    "cosine_top1_capacity": dict(capacity_factor=1.25),
}


def official_weights(gate: str) -> dict[str, Tensor]:
    with np.load(shared("reference", "swin_moe", f"{gate}.weights.npz")) as arrays:
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def build(gate: str, **options: Any) -> tuple[SwinMoE, dict[str, Tensor]]:
    source = official_weights(gate)
    conversion = convert_official_swin(source)
    config = backbone_config(conversion, source)
    config.pop("type")
    model = SwinMoE(**config, **options)
    model.load_state_dict(conversion.tensors)
    return model.eval(), source


def worst(ours: Tensor, theirs: np.ndarray[Any, Any]) -> float:
    return float((ours - torch.from_numpy(theirs)).abs().max())


@pytest.mark.parametrize("case", CASES)
def test_blocks_moe_layers_and_auxiliary_loss(case: str, record_property: Any) -> None:
    truth = np.load(shared("reference", "swin_moe", f"{case}.activations.npz"))
    model, source = build(case.split("_")[0], **CASES[case])
    seen: dict[str, Tensor] = {}
    losses = []

    def record(name: str) -> Any:
        def hook(module: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
            seen[f"{name}.in"], seen[f"{name}.out"] = inputs[0], output
            if isinstance(module, MoELayer):
                routing = module.gate(inputs[0].flatten(0, 1))
                losses.append(importance_and_load_loss(routing, noise=module.gate.noise))

        return hook

    for name, module in model.named_modules():
        official = name.replace("stages.", "layers.")
        if isinstance(module, SwinMoEBlock):
            module.register_forward_hook(record(official))
        elif isinstance(module, MoELayer):
            module.register_forward_hook(record(official.replace(".mlp", ".moe")))
    with torch.inference_mode():
        features = model(torch.from_numpy(truth["image"]))[-1]
        pooled = features.mean(dim=(2, 3))
        seen["logits"] = pooled @ source["head.weight"].T + source["head.bias"]

    names = [name for name in truth.files if name not in ("image", "aux_loss")]
    assert len(names) == 10 * 2 + 3 * 2 + 1
    differences = {name: worst(seen[name], truth[name]) for name in names}
    differences["aux_loss"] = abs(0.01 * float(torch.stack(losses).sum()) - float(truth["aux_loss"][0]))
    record_property("largest_difference", max(differences.values()))
    print(f"{case}: largest difference {max(differences.values()):.2e}")
    assert max(differences.values()) < TOLERANCE, differences


def test_every_official_tensor_of_the_shards_is_mapped_or_listed() -> None:
    merged = read_sharded(shared("reference", "swin_moe", "sharded.pth.master").with_name("sharded.pth"))
    expected = official_weights("linear")
    ours, theirs = convert_official_swin(merged), convert_official_swin(expected)
    assert set(ours.tensors) == set(theirs.tensors)
    for name, tensor in theirs.tensors.items():
        assert torch.equal(ours.tensors[name], tensor), name
    assert len(ours.tensors) - len(ours.added) + len(ours.skipped) == len(merged)
    assert set(ours.skipped.values()) == {"classification head", "buffer, computed anew"}
