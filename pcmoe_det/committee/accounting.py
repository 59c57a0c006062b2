"""Counters of a committee. Counted, not estimated; every number has its unit in its name."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec

__all__ = ["Accounting", "LayerCounts", "LoadReason", "anonymous_memory_bytes", "merge_reports"]

LoadReason = Literal["fill", "swap", "miss"]
"""Why an expert was read: for the start, to adapt, or because a token wanted it now."""


def anonymous_memory_bytes() -> int | None:
    """Anonymous memory of this process (RssAnon), without file pages; None where unknown."""
    status = Path("/proc/self/status")
    if not status.is_file():
        return None
    for line in status.read_text(encoding="ascii").splitlines():
        if line.startswith("RssAnon:"):
            return int(line.split()[1]) * 1024
    return None


@dataclass
class LayerCounts:
    """Of one MoE layer since the last reset.

    Attributes:
        hit_tokens: Choices (tokens x top-k) whose expert was resident.
        miss_tokens: Choices whose expert was not.
        hit_experts: Experts that a frame wanted and that were resident, summed over frames.
        miss_experts: Experts that a frame wanted and that were not.
        swaps: Experts that came in for another, or into a free place, while frames ran.
        fills: Experts loaded before a first frame or after a reset.
        miss_loads: Experts loaded because a token had missed them.
        evictions: Experts that went out.
    """

    hit_tokens: int = 0
    miss_tokens: int = 0
    hit_experts: int = 0
    miss_experts: int = 0
    swaps: int = 0
    fills: int = 0
    miss_loads: int = 0
    evictions: int = 0


@dataclass
class Accounting:
    """Of a whole committee since the last reset.

    Attributes:
        specs: Every MoE layer.
        frames: Frames run.
        layers: Counts per layer.
        bytes_read: From the store, failed and discarded reads excluded.
        useful_bytes: Of loaded experts that a token used before they left.
        wasted_bytes: Of loaded experts that left unused.
        failed_loads: Reads that the store refused; each is retried when the expert is wanted again.
        swap_wait_seconds: From the decision to swap until the expert was usable, summed over swaps.
        swap_wait_frames: The same in frames.
        load_seconds: Time inside the store.
        peak_anonymous_bytes: Largest RssAnon seen at the end of a frame.
    """

    specs: Sequence[MoELayerSpec]
    frames: int = 0
    layers: list[LayerCounts] = field(default_factory=list)
    bytes_read: int = 0
    useful_bytes: int = 0
    wasted_bytes: int = 0
    failed_loads: int = 0
    swap_wait_seconds: float = 0.0
    swap_wait_frames: int = 0
    load_seconds: float = 0.0
    peak_anonymous_bytes: int = 0
    _unused: set[ExpertKey] = field(default_factory=set)

    def __post_init__(self) -> None:
        self.layers = [LayerCounts() for _ in self.specs]

    def loaded(self, key: ExpertKey, *, seconds: float, reason: LoadReason) -> None:
        """An expert was read."""
        layer = self.layers[key.layer]
        layer.fills += reason == "fill"
        layer.swaps += reason == "swap"
        layer.miss_loads += reason == "miss"
        self.bytes_read += self.specs[key.layer].record_bytes
        self.load_seconds += seconds
        self._unused.add(key)

    def forgotten(self, key: ExpertKey) -> None:
        """An expert that was read for one use is gone; that is no eviction."""
        self._unused.discard(key)

    def used(self, key: ExpertKey) -> None:
        """A token ran through a resident expert."""
        if key in self._unused:
            self._unused.remove(key)
            self.useful_bytes += self.specs[key.layer].record_bytes

    def evicted(self, key: ExpertKey) -> None:
        """A resident expert left."""
        self.layers[key.layer].evictions += 1
        if key in self._unused:
            self._unused.remove(key)
            self.wasted_bytes += self.specs[key.layer].record_bytes

    def frame_done(self) -> None:
        """A frame was run. Asking for the memory takes some 20 microseconds."""
        self.frames += 1
        self.peak_anonymous_bytes = max(self.peak_anonymous_bytes, anonymous_memory_bytes() or 0)

    def totals(self) -> dict[str, int]:
        """Sums over layers, and bytes read."""
        sums = {
            name: sum(getattr(layer, name) for layer in self.layers)
            for name in LayerCounts.__dataclass_fields__
        }
        return {**sums, "bytes_read": self.bytes_read}

    def to_json_dict(self) -> dict[str, Any]:
        """Plain data: totals, and a list of layers."""
        totals = self.totals()
        choices = totals["hit_tokens"] + totals["miss_tokens"]
        return {
            "frames": self.frames,
            **totals,
            "hit_rate": totals["hit_tokens"] / choices if choices else None,
            "useful_bytes": self.useful_bytes,
            "wasted_bytes": self.wasted_bytes,
            "failed_loads": self.failed_loads,
            "load_seconds": self.load_seconds,
            "swap_wait_seconds": self.swap_wait_seconds,
            "swap_wait_frames": self.swap_wait_frames,
            "peak_anonymous_bytes": self.peak_anonymous_bytes or None,
            "layers": [
                {"name": spec.name, **vars(layer)}
                for spec, layer in zip(self.specs, self.layers, strict=True)
            ],
        }


def merge_reports(reports: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """One report of the committees of several processes, each with its own videos: counts are added.

    Bytes in memory are those of one process (every process has a committee of its own).
    """
    merged = dict(reports[0])
    if len(reports) == 1:
        return merged
    merged.pop("summary", None)
    for name in ("frames", "bytes_read", "useful_bytes", "wasted_bytes", "failed_loads", *_COUNTS, *_WAITS):
        merged[name] = sum(report[name] for report in reports)
    choices = merged["hit_tokens"] + merged["miss_tokens"]
    merged["hit_rate"] = merged["hit_tokens"] / choices if choices else None
    merged["layers"] = [
        {**layers[0], **{name: sum(layer[name] for layer in layers) for name in _COUNTS}}
        for layers in zip(*(report["layers"] for report in reports), strict=True)
    ]
    merged["processes"] = len(reports)
    return merged


_COUNTS = tuple(LayerCounts.__dataclass_fields__)
_WAITS = ("load_seconds", "swap_wait_seconds", "swap_wait_frames")
