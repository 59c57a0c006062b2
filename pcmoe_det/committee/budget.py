"""Budgets: what the user writes, in bytes of experts, and how it is divided among layers."""

from __future__ import annotations

import re
from collections.abc import Sequence
from decimal import Decimal
from fractions import Fraction

from pcmoe_det.committee.layers import MoELayerSpec
from pcmoe_det.errors import UsageError

__all__ = ["divide_budget", "parse_budget", "smallest_budget"]

_UNITS = {"B": 1, "bytes": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "KiB": 2**10, "MiB": 2**20, "GiB": 2**30}
_TOO_MANY_BYTES = 1 << 62


def parse_budget(budget: str | float, *, total_bytes: int) -> int:
    """Bytes meant by ``budget``: a share of all expert bytes (``0.5``, ``50%``) or a size (``300MiB``).

    Raises:
        UsageError: Not a share in (0, 1] nor a positive size that a machine can have.
    """
    text = str(budget)
    allowed = "a share such as 0.5 or 50%, or a size such as 300MiB"
    shown = repr(text if len(text) <= 40 else f"{text[:40]}...")
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z%]*)\s*", text)
    if not match:
        raise UsageError(f"the expert budget {shown} is not understood; write {allowed}")
    # Exact: a float product can fall short of a share's bytes by one, which then lack a whole expert. By way
    # of Decimal, because Python refuses to read whole numbers of thousands of digits.
    number, unit = Fraction(Decimal(match[1])), match[2]
    if unit in ("", "%"):
        share = number / 100 if unit else number
        if not 0 < share <= 1:
            raise UsageError(
                f"the expert budget {shown} must be above 0 and at most 1 (all experts); write {allowed}"
            )
        return int(share * total_bytes)
    if unit not in _UNITS:
        raise UsageError(f"the expert budget {shown} has an unknown unit {unit[:40]!r}; write {allowed}")
    num_bytes = int(number * _UNITS[unit])
    if num_bytes <= 0:
        raise UsageError(f"the expert budget {shown} must be above 0; write {allowed}")
    if num_bytes >= _TOO_MANY_BYTES:
        raise UsageError(f"the expert budget {shown} is more than any machine has; write {allowed}")
    return num_bytes


def smallest_budget(num_bytes: int, *, total_bytes: int) -> str:
    """How a message names the smallest budget, so that what it says can be typed.

    Args:
        num_bytes: What the budget must hold.
        total_bytes: Of all experts.
    """
    thousandths = -(-1000 * num_bytes // total_bytes)  # rounded up: rounded down it would be refused
    if thousandths > 1000:
        return f"{num_bytes} bytes (all experts have {total_bytes})"
    return f"{num_bytes} bytes ({thousandths / 1000:.3f} of all {total_bytes} expert bytes)"


def divide_budget(
    specs: Sequence[MoELayerSpec], budget_bytes: int, *, reserve_bytes: int = 0, least: int = 1
) -> tuple[int, ...]:
    """Resident experts per layer: about the same share of every layer, never over the budget.

    One expert at a time goes to the layer with the smallest resident share whose next expert still
    fits; ties go to the layer with the smaller record, then to the earlier one.

    Args:
        specs: Every MoE layer.
        budget_bytes: For residents and reserve together.
        reserve_bytes: Kept free of residents, for loads under way.
        least: Fewest experts per layer (top-k of the gates).

    Raises:
        UsageError: The budget does not even hold ``least`` experts per layer; names the smallest that does.
    """
    numbers = [least] * len(specs)
    spent = reserve_bytes + sum(spec.layout.record_bytes * least for spec in specs)
    if spent > budget_bytes:
        total = sum(spec.expert_bytes for spec in specs)
        raise UsageError(
            f"an expert budget of {budget_bytes} bytes cannot hold {least} expert(s) of each layer; "
            f"the smallest possible is {smallest_budget(spent, total_bytes=total)}"
        )
    while True:
        candidates = [
            index
            for index, spec in enumerate(specs)
            if numbers[index] < spec.num_experts and spent + spec.layout.record_bytes <= budget_bytes
        ]
        if not candidates:
            return tuple(numbers)
        index = min(
            candidates,
            key=lambda i: (numbers[i] / specs[i].num_experts, specs[i].layout.record_bytes, i),
        )
        numbers[index] += 1
        spent += specs[index].layout.record_bytes
