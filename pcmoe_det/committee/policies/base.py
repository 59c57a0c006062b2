"""What a residency policy decides. The machinery (slots, loading, routing, counting) is shared."""

from __future__ import annotations

from abc import ABC
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeVar

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.committee.importance import ImportanceKind
from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.committee.miss_handling import MissHandling
from pcmoe_det.errors import UsageError

__all__ = ["LARGEST_SEED", "POLICIES", "Policy", "Swap", "create_policy", "heaviest", "register_policy"]

LARGEST_SEED = 2**32 - 1


@dataclass(frozen=True)
class Swap:
    """Bring ``incoming`` into ``layer``, for ``outgoing`` or (None) beside the others."""

    layer: int
    incoming: int
    outgoing: int | None


class Policy(ABC):
    """Base of all policies: a fixed committee, chosen once.

    A policy is asked, it does not act. Subclasses override what they decide differently; a new one is
    one file in this folder with ``@register_policy``.

    Args:
        seed: Of everything random in the policy, 0 to ``LARGEST_SEED``.

    Raises:
        UsageError: The seed is none.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    uses_budget: ClassVar[bool] = True
    """False: every expert is resident whatever the budget says."""
    adapts: ClassVar[bool] = False
    """Whether ``wanted_swaps`` may ever return something (then importance is measured)."""
    loads_on_miss: ClassVar[bool] = False
    """Whether the slots are a cache that misses load into; results are then exact."""
    importance: ImportanceKind = "eq1"
    default_on_miss: ClassVar[MissHandling] = "exchange"

    def __init__(self, *, seed: int = 0) -> None:
        if isinstance(seed, bool) or not isinstance(seed, int) or not 0 <= seed <= LARGEST_SEED:
            raise UsageError(f"the policy's seed is {seed!r}; it must be a whole number, 0 to {LARGEST_SEED}")
        self.seed = seed

    def initial_residents(self, spec: MoELayerSpec, number: int) -> Sequence[int]:
        """The ``number`` experts of a layer that are resident at the start and after a reset."""
        raise NotImplementedError

    def wanted_swaps(
        self, layer: int, importance: NDArray[np.float64], residents: Sequence[int]
    ) -> list[Swap]:
        """Swaps that would improve a layer, the most useful first. Called when an update is due."""
        del layer, importance, residents
        return []


def heaviest(spec: MoELayerSpec, number: int) -> list[int]:
    """The experts with the largest norm, heaviest first; ties by index."""
    order = sorted(range(spec.num_experts), key=lambda expert: (-spec.norms[expert], expert))
    return order[:number]


POLICIES: dict[str, type[Policy]] = {}
_PolicyClass = TypeVar("_PolicyClass", bound=type[Policy])


def register_policy(policy: _PolicyClass) -> _PolicyClass:
    """Class decorator: make a policy available by its ``name``."""
    POLICIES[policy.name] = policy
    return policy


def create_policy(name: str, options: Mapping[str, object] | None = None) -> Policy:
    """A policy by name.

    Raises:
        UsageError: Unknown name, or an option that the policy does not have or whose value it refuses.
    """
    if name not in POLICIES:
        raise UsageError(f"unknown policy {name!r}; there are {', '.join(sorted(POLICIES))}")
    if options is not None and not isinstance(options, Mapping):  # a config can hold anything
        raise UsageError(f"the options of policy {name!r} are {options!r}; they must be a dict")
    make: Callable[..., Policy] = POLICIES[name]
    given = dict(options or {})
    try:
        return make(**given)
    except TypeError as error:
        raise UsageError(f"policy {name!r} does not take these options {given}: {error}") from error
