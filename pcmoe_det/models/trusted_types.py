"""What the configuration inside a weights file or a packed model may name.

mmengine's registries import whatever name is not registered and call it with the rest of the dict, mmcv
evaluates the ``type`` of a non-maximum suppression as Python, and a few of mmdet's parts open files when they
are built. A config that the user names may do all that. A description that came with somebody's weights may
only name registered parts, and none of those few: then opening it runs no code of its own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any

import mmcv.ops
import mmengine.registry.registry as registry_module
from mmdet.registry import MODELS, TASK_UTILS, WEIGHT_INITIALIZERS
from mmengine.registry import Registry
from torch import nn

import pcmoe_det.models.registry  # noqa: F401  (registers the model types)

__all__ = ["registered_names_only", "untrusted_type", "without_downloads"]

# What a detector is built of. Registries of other things (hooks, data sets, ...) are out of place in a model.
_REGISTRIES = (MODELS, TASK_UTILS, WEIGHT_INITIALIZERS)
# mmcv looks up this ``type`` by itself, not in a registry.
_SUPPRESSIONS = ("nms", "soft_nms")
# They read configs, checkpoints or tokenizers from paths or the network, or evaluate an argument.
_READS_FILES = (
    "ATSSVLFusionHead",
    "AppearanceFreeLink",
    "BertModel",
    "CameraMotionCompensation",
    "Detectron2Wrapper",
    "KnowledgeDistillationSingleStageDetector",
    "Pretrained",
)


_ONLY_REGISTERED: ContextVar[bool] = ContextVar("_ONLY_REGISTERED", default=False)
_import_by_name = registry_module.get_object_from_string


def _found_by_import(name: str) -> Any:
    return None if _ONLY_REGISTERED.get() else _import_by_name(name)


# Once and for all, and switched by a context variable: other threads may be building from trusted configs.
registry_module.get_object_from_string = _found_by_import


@contextmanager
def registered_names_only() -> Iterator[None]:
    """Within it mmengine's registries find what is registered and import nothing.

    ``type`` is not the only key that they look up: mmcv makes one of a ``padding_mode``, for example.
    """
    token = _ONLY_REGISTERED.set(True)
    try:
        yield
    finally:
        _ONLY_REGISTERED.reset(token)


def without_downloads(config: Any) -> Any:
    """A configuration that fetches no weights, as an ``init_cfg`` of mmdet's configs would: we load ours.

    Args:
        config: As plain data; stays as it is.
    """
    if isinstance(config, Mapping):
        return {key: without_downloads(_loaded_by_us(key, value)) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return type(config)(without_downloads(item) for item in config)
    return config


def _loaded_by_us(key: str, value: Any) -> Any:
    """``value``, without initialisation from files if that is what it is."""
    if key != "init_cfg":
        return value
    if isinstance(value, list | tuple):
        return type(value)(item for item in value if not _is_pretrained(item))
    return None if _is_pretrained(value) else value


def _is_pretrained(value: Any) -> bool:
    return isinstance(value, Mapping) and value.get("type") == "Pretrained"


def untrusted_type(model: Mapping[str, Any]) -> str | None:
    """The first thing in a model's configuration that a description may not name.

    Nothing is imported or built to find out.

    Args:
        model: The configuration, as plain data. What ``without_downloads`` takes out does not count.

    Returns:
        Its place, its value and what is wrong with it, or None.
    """
    for place, key, value in _named(without_downloads(model), "model"):
        if key == "_scope_":
            return f"{place} is {value!r}, and the registry would import a package of that name"
        if value is None:  # how mmdet leaves a part out
            continue
        if not isinstance(value, str):
            return f"{place} is {_shown(value)}, which is no name"
        if "." in value:
            return f"{place} is {_shown(value)}, and a dotted name can be any code"
        if _is_suppression_or_pooling(value):
            continue
        found = _registered(value)
        if found is None:
            return f"{place} is {_shown(value)}, which is no part that mmdet, mmengine or pcmoe_det registers"
        if _reads_files(found):
            return f"{place} is {_shown(value)}, which reads other files when it is built"
    return None


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."


def _named(config: Any, place: str) -> Iterator[tuple[str, str, Any]]:
    """Place, key and value of everything that names something to be looked up."""
    if isinstance(config, Mapping):
        for key, value in config.items():
            here = f"{place}.{key}"
            # ``MoEDetector`` looks up its ``detector``; elsewhere that is a configuration.
            if key in ("type", "_scope_") or (key == "detector" and isinstance(value, str)):
                yield here, key, value
            yield from _named(value, here)
    elif isinstance(config, list | tuple):
        for index, value in enumerate(config):
            yield from _named(value, f"{place}[{index}]")


def _is_suppression_or_pooling(name: str) -> bool:
    layer = getattr(mmcv.ops, name, None)
    return name in _SUPPRESSIONS or (isinstance(layer, type) and issubclass(layer, nn.Module))


def _registered(name: str) -> Any:
    """The registered object; None without one. ``Registry.get`` would import a module of that name."""
    for registry in _REGISTRIES:
        registry.import_from_location()
        level: Registry | None = registry
        while level is not None:
            if name in level.module_dict:
                return level.module_dict[name]
            level = level.parent
    return None


@cache
def _readers() -> tuple[type, ...]:
    found = (_registered(name) for name in _READS_FILES)
    return tuple(part for part in found if isinstance(part, type))


def _reads_files(part: Any) -> bool:
    return isinstance(part, type) and issubclass(part, _readers())
