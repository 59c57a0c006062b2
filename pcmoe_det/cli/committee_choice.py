"""What the options of a committee ask for: checked, and as settings."""

from __future__ import annotations

import argparse
import re
from typing import TYPE_CHECKING, Any

from pcmoe_det.errors import UsageError

if TYPE_CHECKING:
    from pcmoe_det.committee.settings import CommitteeSettings

__all__ = [
    "COMMITTEE_SETTINGS",
    "DEFAULT_STAND_IN_WEIGHT",
    "LARGEST_SEED",
    "MISS_HANDLINGS",
    "POLICY_NAMES",
    "STAND_IN_WEIGHTS",
    "check_committee_options",
    "committee_settings",
    "given_options",
    "parse_bandwidth",
]

# Named here too, so that --help needs neither torch nor the policies; a test compares the two.
POLICY_NAMES = ("all", "magnitude_keep", "on_demand", "pcmoe", "random_keep")
MISS_HANDLINGS = ("exchange", "skip", "rerank", "load")
STAND_IN_WEIGHTS = ("own", "wanted", "renormalized")
DEFAULT_STAND_IN_WEIGHT = "own"
LARGEST_SEED = 2**32 - 1

# What the committee is, apart from its policy; the other options say how experts are read, and what is told.
COMMITTEE_SETTINGS = (
    "expert_budget", "on_miss", "stand_in_weight", "importance", "margin", "update_period",
    "max_swaps_per_frame", "policy_seed", "loading",
)  # fmt: skip
_OTHERS = ("store_bandwidth", "cold_reads", "trace")
# Their defaults are values like any other: ``committee_options_given`` names those on the command line.
_WITH_DEFAULT = ("stand_in_weight", "update_period", "max_swaps_per_frame", "policy_seed", "loading")


def given_options(arguments: argparse.Namespace, *, settings_only: bool = False) -> list[str]:
    """The options of a committee that were given, beside ``--policy``, as they are written.

    Args:
        arguments: Those of ``add_committee_options``.
        settings_only: Leave out how experts are read and what is recorded.
    """
    names = COMMITTEE_SETTINGS if settings_only else COMMITTEE_SETTINGS + _OTHERS
    return ["--" + name.replace("_", "-") for name in names if _is_given(arguments, name)]


def _is_given(arguments: argparse.Namespace, name: str) -> bool:
    if name in _WITH_DEFAULT:
        return name in getattr(arguments, "committee_options_given", ())
    value = getattr(arguments, name)
    return value is not None and value is not False


def check_committee_options(arguments: argparse.Namespace, *, has_settings: bool = False) -> None:
    """Refuse options of a committee that is not asked for or of another policy, and values that cannot be.

    What a policy makes no use of but shares with others (``--update-period``) is passed over, so that one
    command line serves several policies.

    Args:
        arguments: Those of ``add_committee_options``.
        has_settings: The committee comes from elsewhere (a config), whatever ``--policy`` says.

    Raises:
        UsageError: Names the option.
    """
    if arguments.policy is None and not has_settings:
        for option in given_options(arguments):
            raise UsageError(f"{option} needs --policy; choose one of {', '.join(POLICY_NAMES)}")
    if arguments.policy not in (None, "pcmoe"):
        for name in ("importance", "margin"):
            if getattr(arguments, name) is not None:
                raise UsageError(f"--{name} is an option of --policy pcmoe, not of {arguments.policy}")
    if arguments.policy == "on_demand":
        _check_on_demand(arguments)
    if arguments.store_bandwidth is not None:
        parse_bandwidth(arguments.store_bandwidth)
    if arguments.expert_budget is not None:
        _check_budget(arguments.expert_budget)


def _check_on_demand(arguments: argparse.Namespace) -> None:
    wanted = arguments.on_miss
    handlings = {wanted} if isinstance(wanted, str) else set(wanted or ())
    for option, has_no_effect in (
        ("--on-miss", bool(handlings - {"load"})),
        ("--stand-in-weight", _is_given(arguments, "stand_in_weight")),
    ):
        if has_no_effect:
            raise UsageError(
                f"{option} has no effect with --policy on_demand, which loads every expert that is missing"
            )


def _check_budget(text: str) -> None:
    """What can be known before the model is."""
    from pcmoe_det.committee.budget import parse_budget

    try:
        parse_budget(text, total_bytes=1)
    except OverflowError as error:
        raise UsageError(f"--expert-budget {text}: write a share such as 0.5, or 300MiB") from error


def parse_bandwidth(text: str) -> float:
    """Bytes a second meant by ``--store-bandwidth``, such as ``300MiB`` or ``300MiB/s``.

    Raises:
        UsageError: Not a size above 0.
    """
    from pcmoe_det.committee.budget import parse_budget

    size = text.strip().removesuffix("/s")
    try:
        if not re.search("[A-Za-z]", size):  # a bare number would be taken for a share
            raise UsageError("no unit")
        return float(parse_budget(size, total_bytes=0))
    except (UsageError, OverflowError) as error:
        raise UsageError(
            f"--store-bandwidth {text!r} is not understood; write a size a second above 0, such as 300MiB"
        ) from error


def committee_settings(arguments: argparse.Namespace) -> CommitteeSettings | None:
    """What the options of ``add_committee_options`` ask for; None without a ``--policy``.

    Raises:
        UsageError: Options that do not go together, or a value out of range.
    """
    check_committee_options(arguments)
    if arguments.policy is None:
        return None

    from pcmoe_det.committee.options import CommitteeOptions
    from pcmoe_det.committee.policies import create_policy
    from pcmoe_det.committee.settings import CommitteeSettings

    return CommitteeSettings(
        create_policy(arguments.policy, _policy_options(arguments)),
        "0.5" if arguments.expert_budget is None else arguments.expert_budget,
        CommitteeOptions(
            on_miss=arguments.on_miss,
            stand_in_weight=arguments.stand_in_weight,
            update_period=arguments.update_period,
            max_swaps_per_frame=arguments.max_swaps_per_frame,
            synchronous=arguments.loading == "synchronous",
        ),
    )


def _policy_options(arguments: argparse.Namespace) -> dict[str, Any]:
    options: dict[str, Any] = {"seed": arguments.policy_seed}
    for name in ("importance", "margin"):
        value = getattr(arguments, name)
        if value is not None:
            options[name] = value
    return options
