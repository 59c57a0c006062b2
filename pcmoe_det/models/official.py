"""Names and layouts of other people's Swin checkpoints, mapped to ours.

``official`` is the Swin and Swin-MoE code base of the authors, ``mmdet`` mmdetection's
``SwinTransformer``. A tensor is renamed, transposed or permuted; nothing is computed.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from pcmoe_det.errors import CheckpointError

__all__ = ["Conversion", "backbone_config", "convert_mmdet_swin", "convert_official_swin", "read_sharded"]

_BUFFERS = ("relative_coords_table", "relative_position_index", "attn_mask", "_num_global_experts")

_OFFICIAL_RULES: tuple[tuple[str, str], ...] = (
    (r"^patch_embed\.", "stem."),
    (r"^layers\.", "stages."),
    (r"\.attn\.cpb_mlp\.", ".attn.position_bias.mlp."),
    (r"\.attn\.relative_position_bias_table$", ".attn.position_bias.table"),
    (r"\._moe_layer\.experts\.batched_fc1_w$", ".experts.fc1_weight"),
    (r"\._moe_layer\.experts\.batched_fc2_w$", ".experts.fc2_weight"),
    (r"\._moe_layer\.experts\.batched_fc(\d)_bias$", r".experts.fc\1_bias"),
    (r"\._moe_layer\.gates\.0\.wg\.weight$", ".gate.weight"),
    (r"\._moe_layer\.gates\.0\.cosine_projector\.", ".gate.projector."),
    (r"\._moe_layer\.gates\.0\.sim_matrix$", ".gate.embedding"),
    (r"\._moe_layer\.gates\.0\.temperature$", ".gate.log_inverse_temperature"),
)

_MMDET_RULES: tuple[tuple[str, str], ...] = (
    (r"^patch_embed\.projection\.", "stem.proj."),
    (r"^patch_embed\.", "stem."),
    (r"\.attn\.w_msa\.relative_position_bias_table$", ".attn.position_bias.table"),
    (r"\.attn\.w_msa\.", ".attn."),
    (r"\.ffn\.layers\.0\.0\.", ".mlp.fc1."),
    (r"\.ffn\.layers\.1\.", ".mlp.fc2."),
)


@dataclass(frozen=True)
class Conversion:
    """Result of a conversion.

    Attributes:
        tensors: By our names (of the backbone alone, without prefix).
        skipped: Name of each source tensor left out, with the reason.
        added: Our names of tensors that the source lacks and that are zero by definition.
    """

    tensors: dict[str, Tensor]
    skipped: dict[str, str]
    added: tuple[str, ...] = ()


def _rename(name: str, rules: tuple[tuple[str, str], ...]) -> str:
    for pattern, replacement in rules:
        name = re.sub(pattern, replacement, name)
    return name


def _last_stage(names: list[str]) -> int:
    stages = [
        int(match[1]) for match in (re.match(r"(?:layers|stages)\.(\d+)\.", name) for name in names) if match
    ]
    if not stages:
        raise CheckpointError("the checkpoint holds no Swin stages (no 'layers.N.' or 'stages.N.' tensor)")
    return max(stages)


def convert_official_swin(state: Mapping[str, Tensor]) -> Conversion:
    """Map an official Swin or Swin-MoE state dict (already merged from its shards).

    The official code multiplies with ``batched_fc2_w [E, hidden, channels]`` untransposed; ours is
    ``[E, channels, hidden]``, as a linear layer's weight.
    """
    last = _last_stage(list(state))
    tensors: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for name, tensor in state.items():
        if name.startswith("head."):
            skipped[name] = "classification head"
        elif name.rsplit(".", 1)[-1] in _BUFFERS:
            skipped[name] = "buffer, computed anew"
        else:
            target = _rename(name, _OFFICIAL_RULES)
            target = re.sub(r"^norm\.", f"norm{last}.", target)
            if name.endswith("batched_fc2_w"):
                tensor = tensor.transpose(1, 2).contiguous()
            tensors[target] = tensor
    added = _complete_expert_biases(tensors)
    return Conversion(tensors, skipped, added)


def _complete_expert_biases(tensors: dict[str, Tensor]) -> tuple[str, ...]:
    """Shards of official checkpoints leave out the experts' frozen second bias: it is zero."""
    added = []
    for name in [name for name in tensors if name.endswith("experts.fc2_weight")]:
        bias = name.replace("fc2_weight", "fc2_bias")
        if bias not in tensors:
            weight = tensors[name]
            tensors[bias] = weight.new_zeros(weight.shape[0], weight.shape[1])
            added.append(bias)
    return tuple(added)


def convert_mmdet_swin(state: Mapping[str, Tensor]) -> Conversion:
    """Map the state dict of mmdet's ``SwinTransformer`` (``backbone.`` prefix allowed)."""
    tensors: dict[str, Tensor] = {}
    skipped: dict[str, str] = {}
    for name, tensor in state.items():
        bare = name.removeprefix("backbone.")
        if bare.rsplit(".", 1)[-1] in _BUFFERS:
            skipped[name] = "buffer, computed anew"
        elif not re.match(r"(patch_embed|stages|norm\d)\b", bare):
            skipped[name] = "not part of the backbone"
        else:
            if ".downsample." in bare:
                tensor = _from_unfold_order(tensor)
            tensors[_rename(bare, _MMDET_RULES)] = tensor
    _last_stage(list(tensors))
    return Conversion(tensors, skipped)


def _from_unfold_order(tensor: Tensor) -> Tensor:
    """Merged channels: mmdet has (channel, row, column), Swin and we (column, row, channel)."""
    quads = tensor.reshape(*tensor.shape[:-1], -1, 2, 2)
    return quads.transpose(-3, -1).reshape(tensor.shape).contiguous()


def read_sharded(prefix: Path) -> dict[str, Tensor]:
    """Merge an official rank-sharded checkpoint.

    Args:
        prefix: Path without the endings ``.master`` and ``.rank{r}``.

    Raises:
        CheckpointError: A file is missing, a rank is missing, or a tensor is in conflict.
    """
    master = prefix.with_name(prefix.name + ".master")
    folder = prefix.parent
    pattern = re.compile(re.escape(prefix.name) + r"\.rank(\d+)")
    ranks = sorted(
        (int(match[1]), file)
        for file in (folder.iterdir() if folder.is_dir() else ())
        if (match := pattern.fullmatch(file.name))
    )
    if not master.is_file():
        raise CheckpointError(f"no {master}; give the path without '.master' and '.rank0'")
    if [rank for rank, _ in ranks] != list(range(len(ranks))) or not ranks:
        found = ", ".join(file.name for _, file in ranks) or "none"
        raise CheckpointError(
            f"the rank files beside {master.name} must be rank0, rank1, ...; found: {found}"
        )
    merged = _read_model(master)
    shards = [_read_model(file) for _, file in ranks]
    for name in dict.fromkeys(name for shard in shards for name in shard):
        lacking = [file.name for (_, file), shard in zip(ranks, shards, strict=True) if name not in shard]
        if lacking:
            raise CheckpointError(f"{name} is in other rank files but not in {lacking[0]}; one is damaged")
        parts = [shard[name] for shard in shards]
        # Experts lie over the ranks; what else a rank file holds is the same in all of them.
        try:
            merged[name] = torch.cat(parts) if ".experts." in name else parts[0]
        except RuntimeError as error:
            raise CheckpointError(f"{name} differs in shape between the rank files: {error}") from error
    _check_all_ranks(merged, last=ranks[-1][1])
    return merged


def _check_all_ranks(merged: Mapping[str, Tensor], *, last: Path) -> None:
    """Refuse shards whose experts are fewer (or more) than the master says there are."""
    for name, count in merged.items():
        if not name.endswith("._num_global_experts"):
            continue
        weight = merged.get(name.replace("_num_global_experts", "experts.batched_fc1_w"))
        found = 0 if weight is None else len(weight)
        if found != int(count):
            raise CheckpointError(
                f"the rank files up to {last.name} hold {found} experts of {name.rsplit('.', 1)[0]}, "
                f"the master says {int(count)}: a rank file is missing or does not belong to it"
            )


def _read_model(path: Path) -> dict[str, Tensor]:
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        reason = next(iter(str(error).splitlines()), "it ends too early")
        raise CheckpointError(f"{path} is damaged or no checkpoint of tensors ({reason})") from error
    model = content.get("model") if isinstance(content, dict) else None
    if not isinstance(model, dict):
        raise CheckpointError(f"{path} holds no state dict under 'model'; is it an official Swin checkpoint?")
    return {name: value for name, value in model.items() if isinstance(value, Tensor)}


def backbone_config(conversion: Conversion, source: Mapping[str, Tensor]) -> dict[str, Any]:
    """The ``SwinMoE`` arguments that fit converted official tensors, read off names and shapes.

    Not in a checkpoint, hence left at their defaults: top-k, noise, capacity and drop rates.

    Raises:
        CheckpointError: A tensor is missing that every Swin has.
    """
    try:
        return _backbone_config(conversion, source)
    except (KeyError, IndexError, ZeroDivisionError) as error:
        raise CheckpointError(f"the checkpoint is no whole Swin: {error} is missing or empty") from error


def _backbone_config(conversion: Conversion, source: Mapping[str, Tensor]) -> dict[str, Any]:
    tensors = conversion.tensors
    blocks = {
        (int(match[1]), int(match[2]))
        for match in (re.match(r"stages\.(\d+)\.blocks\.(\d+)\.", name) for name in tensors)
        if match
    }
    num_stages = 1 + max((stage for stage, _ in blocks), default=-1)
    depths = [
        1 + max((block for s, block in blocks if s == stage), default=-1) for stage in range(num_stages)
    ]
    gates = {
        (stage, block): name
        for stage, block in sorted(blocks)
        for name in (f"stages.{stage}.blocks.{block}.mlp.experts.fc1_weight",)
        if name in tensors
    }
    continuous = "stages.0.blocks.0.attn.position_bias.mlp.2.weight" in tensors
    heads_name = "mlp.2.weight" if continuous else "table"
    heads = []
    for stage in range(num_stages):
        bias = tensors[f"stages.{stage}.blocks.0.attn.position_bias.{heads_name}"]
        heads.append(bias.shape[0] if continuous else bias.shape[1])
    config: dict[str, Any] = {
        "type": "SwinMoE",
        "embed_dims": tensors["stem.proj.weight"].shape[0],
        "depths": depths,
        "num_heads": heads,
        "window_size": _window_size(tensors, source, continuous=continuous),
        "mlp_ratio": tensors["stages.0.blocks.0.mlp.fc1.weight"].shape[0]
        / tensors["stem.proj.weight"].shape[0],
        "num_experts": 0,
        "moe_blocks": [[block for s, block in gates if s == stage] for stage in range(num_stages)],
        "fc2_bias": "stages.0.blocks.0.mlp.fc2.bias" in tensors,
        "position_bias": "continuous" if continuous else "table",
        "out_indices": sorted(
            int(name[4:].split(".")[0]) for name in tensors if re.match(r"norm\d+\.weight", name)
        ),
    }
    if gates:
        first = next(iter(gates.values()))
        config["num_experts"] = tensors[first].shape[0]
        embedding = tensors.get(first.replace("experts.fc1_weight", "gate.embedding"))
        config["gate"] = "linear" if embedding is None else "cosine"
        if embedding is not None:
            config["gate_projection"] = embedding.shape[0]
    return config


def _window_size(tensors: Mapping[str, Tensor], source: Mapping[str, Tensor], *, continuous: bool) -> int:
    """Of the first stage: a later, smaller map may have had a smaller window."""
    if not continuous:
        rows = tensors["stages.0.blocks.0.attn.position_bias.table"].shape[0]
        return (int(rows**0.5 + 0.5) + 1) // 2
    table = source.get("layers.0.blocks.0.attn.relative_coords_table")
    if table is None:
        raise CheckpointError(
            "the checkpoint has no relative_coords_table, so its window size is unknown; "
            "use a checkpoint that keeps its buffers"
        )
    return (int(table.shape[1]) + 1) // 2
