"""The committee that a config asks for in its ``custom_hooks``."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from pcmoe_det.cli.committee_choice import given_options
from pcmoe_det.errors import ConfigError, UsageError

if TYPE_CHECKING:
    from mmengine.config import Config

    from pcmoe_det.committee.hook import CommitteeHook

__all__ = ["heeded_hook"]


def heeded_hook(config: Config, arguments: argparse.Namespace) -> CommitteeHook | None:
    """The config's ``CommitteeHook``; None without one, or if ``--policy`` replaces it.

    Raises:
        ConfigError: ``custom_hooks`` is no list of settings, or the hook's do not build.
        UsageError: The command line changes single settings of the hook.
    """
    if arguments.policy is not None:
        return None
    hook = _hook_of(config)
    if hook is not None:
        for option in given_options(arguments, settings_only=True):
            raise UsageError(
                f"{option} has no effect beside the config's CommitteeHook; give --policy to replace the hook"
            )
    return hook


def _hook_of(config: Config) -> CommitteeHook | None:
    from mmengine.hooks import Hook
    from mmengine.registry import HOOKS

    from pcmoe_det.committee.hook import CommitteeHook

    hooks = config.get("custom_hooks") or []
    if not isinstance(hooks, (list, tuple)):
        raise ConfigError(f"custom_hooks is {hooks!r}; it must be a list of dict(type=...)")
    for settings in hooks:
        if isinstance(settings, CommitteeHook):
            return settings
        if isinstance(settings, Hook):
            continue
        if not isinstance(settings, dict):
            raise ConfigError(f"custom_hooks holds {settings!r}; write it as dict(type=...)")
        if settings.get("type") in ("CommitteeHook", CommitteeHook):
            # Its place among other hooks is the runner's business, as in mmengine.
            own = {name: value for name, value in settings.items() if name != "priority"}
            try:
                hook: CommitteeHook = HOOKS.build(own)
            except (TypeError, ValueError, KeyError, AttributeError) as error:
                raise ConfigError(f"the config's CommitteeHook does not build: {error}") from error
            return hook
    return None
