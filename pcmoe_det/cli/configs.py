"""Configurations as commands see them: pointed at the user's data."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["point_at_data"]


def point_at_data(config: Config, *, data_root: str | None, generated_root: str | None = None) -> None:
    """Replace the config's ``data_root`` and ``generated_root`` wherever a data set uses them. In place."""
    roots: dict[str, str] = {}
    if data_root is not None:
        roots[config.get("data_root", "")] = data_root
    if generated_root is not None:
        roots[config.get("generated_root", "")] = generated_root

    def walk(node: Any) -> None:
        if isinstance(node, Mapping):
            if "type" in node and node.get("data_root") in roots:
                node["data_root"] = roots[node["data_root"]]  # type: ignore[index]
            for value in node.values():
                walk(value)
        elif isinstance(node, list | tuple):
            for value in node:
                walk(value)

    for name in ("train_dataloader", "val_dataloader", "test_dataloader"):
        walk(config.get(name))
