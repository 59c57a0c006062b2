"""Linear layers whose weights lie in the layout of the CPU's matrix kernels.

oneDNN otherwise reorders a weight in every call. Measured on two cores at the sizes of the small model, with
the GELU fused into the first layer of an FFN: 0.5 to 0.85 of the time of the plain layers in bfloat16. The
residual is added by the kernel of the layer before it, too: another 0.7 to 0.95.
"""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from pcmoe_det.models.swin_moe import DenseFFN, PatchMerging, SwinMoEBlock

__all__ = ["PrepackedBlock", "PrepackedFFN", "PrepackedLinear", "can_prepack", "prepack"]


def can_prepack(device: torch.device) -> bool:
    """Whether this build of torch has oneDNN's prepacked layers and runs them on ``device``."""
    operators = torch.ops.mkldnn
    return (
        device.type == "cpu"
        and torch.backends.mkldnn.is_available()
        and hasattr(operators, "_reorder_linear_weight")
        and hasattr(operators, "_linear_pointwise")
        and "binary" in operators._linear_pointwise.overloads()
    )


class PrepackedLinear(nn.Module):
    """``nn.Linear`` for inference on CPUs; has no parameters.

    Args:
        linear: Its weights are taken over.
        gelu: Apply the exact GELU to the result.

    Attributes:
        weight_bytes: Of the weight and bias that were taken over.
    """

    def __init__(self, linear: nn.Linear, *, gelu: bool = False) -> None:
        super().__init__()
        self.in_features, self.out_features = linear.in_features, linear.out_features
        self.weight_bytes = sum(tensor.numel() * tensor.element_size() for tensor in linear.parameters())
        self._weight = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = None if linear.bias is None else linear.bias.detach().clone()
        self._after = ("gelu", "none") if gelu else ("none", "")

    def forward(self, tokens: Tensor) -> Tensor:
        """``[..., in_features]`` -> ``[..., out_features]``."""
        kind, algorithm = self._after
        result: Tensor = torch.ops.mkldnn._linear_pointwise(
            tokens, self._weight, self.bias, kind, [], algorithm
        )
        return result

    def added_to(self, residual: Tensor, tokens: Tensor) -> Tensor:
        """``residual`` plus this layer's map of ``tokens``, rounded once; only without ``gelu``."""
        result: Tensor = torch.ops.mkldnn._linear_pointwise.binary(
            tokens, residual, self._weight, self.bias, "add"
        )
        return result

    def extra_repr(self) -> str:
        return f"{self.in_features}, {self.out_features}, after={self._after[0]}"


class PrepackedFFN(nn.Module):
    """``DenseFFN`` for inference on CPUs."""

    def __init__(self, ffn: DenseFFN) -> None:
        super().__init__()
        self.fc1 = PrepackedLinear(ffn.fc1, gelu=True)
        self.fc2 = PrepackedLinear(ffn.fc2)

    def forward(self, tokens: Tensor) -> Tensor:
        """``[batch, length, channels]`` -> the same shape."""
        result: Tensor = self.fc2(self.fc1(tokens))
        return result

    def added_to(self, residual: Tensor, tokens: Tensor) -> Tensor:
        """``residual`` plus the FFN of ``tokens``."""
        return self.fc2.added_to(residual, self.fc1(tokens))


class PrepackedBlock(nn.Module):
    """``SwinMoEBlock`` for inference on CPUs, with the same submodules under the same names."""

    def __init__(self, block: SwinMoEBlock) -> None:
        super().__init__()
        self.norm1, self.attn, self.norm2 = block.norm1, block.attn, block.norm2
        self.mlp = PrepackedFFN(block.mlp) if isinstance(block.mlp, DenseFFN) else block.mlp
        _replace(self.attn, "qkv")
        _replace(self.attn, "proj")

    def forward(self, tokens: Tensor, height: int, width: int) -> Tensor:
        """``[batch, height * width, channels]`` -> the same shape."""
        mixed = self.attn.mix(self.norm1(tokens), height, width)
        tokens = cast("PrepackedLinear", self.attn.proj).added_to(tokens, mixed)
        hidden = self.norm2(tokens)
        if isinstance(self.mlp, PrepackedFFN):
            return self.mlp.added_to(tokens, hidden)
        moved: Tensor = tokens + self.mlp(hidden)
        return moved


def prepack(backbone: nn.Module) -> None:
    """Replace the linear layers of a Swin-MoE's attention, dense FFNs and patch merging. In place.

    Only for inference. Experts and gates stay as they are: experts are exchanged, gates are float32.
    """
    for holder in [module for module in backbone.modules() if isinstance(module, nn.ModuleList)]:
        for index, block in enumerate(holder):
            if isinstance(block, SwinMoEBlock):
                holder[index] = PrepackedBlock(block)
    for module in backbone.modules():
        if isinstance(module, PatchMerging):
            _replace(module, "reduction")


def _replace(module: nn.Module, name: str) -> None:
    linear = getattr(module, name)
    if isinstance(linear, nn.Linear):
        setattr(module, name, PrepackedLinear(linear))
