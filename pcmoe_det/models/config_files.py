"""mmengine config files, read with errors that a user understands."""

from __future__ import annotations

import os
from pathlib import Path

from mmengine.config import Config

from pcmoe_det.errors import ConfigError

__all__ = ["read_config"]


def read_config(path: Path) -> Config:
    """Read an mmengine config and import what it names.

    Raises:
        ConfigError: The file is missing or is no whole config.
    """
    if not os.path.isfile(path):  # noqa: PTH113 (Path.is_file raises where a name is too long)
        raise ConfigError(f"no config at {path}; the shipped ones are in configs/")
    try:
        config = Config.fromfile(str(path))
    except Exception as error:  # a config is Python: anything can go wrong in it
        raise ConfigError(f"{path} is not a readable config ({type(error).__name__}: {error})") from error
    if "model" not in config:
        raise ConfigError(f"{path} has no 'model'; it is a part for _base_, not a whole config")
    return config
