"""Configurations as commands see them: read, pointed at the user's data, checked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pcmoe_det.errors import ConfigError

if TYPE_CHECKING:
    from mmengine.config import Config

__all__ = ["point_at_data", "read_config"]


def read_config(path: str) -> Config:
    """Read an mmengine config and import what it names.

    Raises:
        ConfigError: The file is missing or is no whole config.
    """
    from mmengine.config import Config

    if not Path(path).is_file():
        raise ConfigError(f"no config at {path}; the shipped ones are in configs/")
    try:
        config = Config.fromfile(path)
    except Exception as error:  # a config is Python: anything can go wrong in it
        raise ConfigError(f"{path} is not a readable config ({type(error).__name__}: {error})") from error
    if "model" not in config:
        raise ConfigError(f"{path} has no 'model'; it is a part for _base_, not a whole config")
    return config


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
