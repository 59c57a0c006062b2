"""A committee at one moment, as plain data for a page that shows it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from pcmoe_det.committee.layers import ExpertKey

if TYPE_CHECKING:
    from pcmoe_det.committee.committee import Committee

__all__ = ["committee_view"]

_ATTEMPTS = 3


def committee_view(committee: Committee) -> dict[str, Any]:
    """What is resident, used and on its way, and the counters so far.

    Any thread may call it while another one runs the model; nothing is locked and the model never waits.
    Residents of all layers are of one generation of the map, unless a cache changes them all the time. Takes
    some tens of microseconds.

    Returns:
        ``policy``, ``on_miss``, ``frames``, ``budget_bytes``, ``resident_bytes`` (slots of any use),
        ``expert_bytes`` (of the whole model), ``hit_tokens``, ``miss_tokens``, ``swaps``, ``bytes_read``,
        ``failed_loads``, and ``layers``: ``name``, ``num_experts``, ``quota`` (residents it may have),
        ``resident``, ``incoming`` and ``outgoing`` (experts of swaps under way), ``used`` (experts that
        tokens of the last frame chose, resident or not; None before the first frame),
        ``hit_tokens``, ``miss_tokens``, ``swaps``.
    """
    residents, in_flight = _one_generation(committee)
    frame_tokens = committee.frame_tokens
    totals = committee.accounting.totals()
    return {
        "policy": committee.policy.name,
        "on_miss": committee.on_miss_text,
        "frames": committee.accounting.frames,
        "budget_bytes": committee.residency.budget_bytes,
        "resident_bytes": committee.residency.mapped_bytes,
        "expert_bytes": committee.total_bytes,
        "hit_tokens": totals["hit_tokens"],
        "miss_tokens": totals["miss_tokens"],
        "swaps": totals["swaps"],
        "bytes_read": totals["bytes_read"],
        "failed_loads": committee.accounting.failed_loads,
        "layers": [
            {
                "name": spec.name,
                "num_experts": spec.num_experts,
                "quota": quota,
                "resident": list(residents[spec.index]),
                "incoming": [key.expert for key, _ in in_flight if key.layer == spec.index],
                "outgoing": [out for key, out in in_flight if key.layer == spec.index and out is not None],
                "used": _used(frame_tokens, spec.index),
                "hit_tokens": counts.hit_tokens,
                "miss_tokens": counts.miss_tokens,
                "swaps": counts.swaps,
            }
            for spec, quota, counts in zip(
                committee.specs, committee.quotas, committee.accounting.layers, strict=True
            )
        ],
    }


def _one_generation(
    committee: Committee,
) -> tuple[list[tuple[int, ...]], list[tuple[ExpertKey, int | None]]]:
    """Residents by layer and swaps under way, read again if the map changed meanwhile."""
    residency = committee.residency
    for _ in range(_ATTEMPTS):
        generation = residency.generation
        residents = [residency.residents(spec.index) for spec in committee.specs]
        in_flight = list(committee.memory.in_flight)
        if residency.generation == generation:
            break
    return residents, in_flight


def _used(frame_tokens: Sequence[Sequence[int]], layer: int) -> list[int] | None:
    """Experts that some token chose; None before the first frame."""
    if layer >= len(frame_tokens):
        return None
    return [expert for expert, number in enumerate(frame_tokens[layer]) if number]
