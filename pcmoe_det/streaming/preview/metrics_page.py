"""What ``/metrics`` tells: the names, units and labels of every metric."""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pcmoe_det.streaming.preview.prometheus import MetricFamily
from pcmoe_det.streaming.preview.sink import SinkSnapshot
from pcmoe_det.streaming.summary import StreamSummary

__all__ = ["metric_families", "unique_names"]

_UP_STATES = frozenset({"live", "finished", "interrupted"})


def unique_names(names: Sequence[str]) -> list[str]:
    """The names with ``(2)``, ``(3)``, ... behind those that came before, so that each is there once."""
    found: list[str] = []
    for name in names:
        candidate, number = name, 1
        while candidate in found:
            number += 1
            candidate = f"{name} ({number})"
        found.append(candidate)
    return found


def metric_families(
    sinks: Sequence[SinkSnapshot],
    summaries: Sequence[StreamSummary],
    committee: Mapping[str, Any] | None,
) -> list[MetricFamily]:
    """Everything there is now.

    Args:
        sinks: Streams as their preview outputs know them.
        summaries: Streams as the pipeline knows them.
        committee: See ``PreviewServer``; None without one.
    """
    return [
        *_stream_families(sinks),
        *_summary_families(summaries),
        *(_committee_families(committee) if committee is not None else ()),
        *_process_families(),
    ]


def _stream_families(sinks: Sequence[SinkSnapshot]) -> list[MetricFamily]:
    up = MetricFamily("pcmoe_stream_up", "gauge", "1 while frames come or after an orderly end, else 0.")
    silent = MetricFamily("pcmoe_stream_silent_seconds", "gauge", "Time since the last result.")
    results = MetricFamily("pcmoe_results_total", "counter", "Frames that reached the outputs.")
    objects = MetricFamily("pcmoe_detections_total", "counter", "Objects found in them.")
    gaps = MetricFamily("pcmoe_stream_gaps_total", "counter", "Frames that came after a loss, by its cause.")
    latency = MetricFamily(
        "pcmoe_frame_latency_seconds",
        "histogram",
        "Time in each stage; stage total is from capture to the preview output.",
    )
    read_bytes = MetricFamily(
        "pcmoe_frame_expert_read_bytes", "histogram", "Bytes of experts read from the store for a frame."
    )
    for sink in sinks:
        up.add(float(sink.state in _UP_STATES), source=sink.name)
        silent.add(sink.silent_seconds, source=sink.name)
        results.add(sink.frames, source=sink.name)
        objects.add(sink.detections, source=sink.name)
        for cause, count in sink.gaps.items():
            gaps.add(count, source=sink.name, cause=cause)
        for stage, histogram in sink.latency.items():
            latency.add(histogram, source=sink.name, stage=stage)
        if sink.expert_read_bytes is not None:
            read_bytes.add(sink.expert_read_bytes, source=sink.name)
    return [up, silent, results, objects, gaps, latency, read_bytes]


def _summary_families(summaries: Sequence[StreamSummary]) -> list[MetricFamily]:
    read = MetricFamily("pcmoe_frames_read_total", "counter", "Frames that the source gave.")
    detected = MetricFamily("pcmoe_frames_detected_total", "counter", "Frames that the detector saw.")
    written = MetricFamily("pcmoe_frames_written_total", "counter", "Results that every output took.")
    dropped = MetricFamily("pcmoe_frames_dropped_total", "counter", "Frames read but not written, by cause.")
    faults = MetricFamily(
        "pcmoe_source_faults_total", "counter", "What went wrong in reading without ending the stream."
    )
    names = unique_names([summary.source for summary in summaries])
    for name, summary in zip(names, summaries, strict=True):
        read.add(summary.frames_read, source=name)
        detected.add(summary.frames_detected, source=name)
        written.add(summary.frames_written, source=name)
        for cause, count in summary.frames_dropped.items():
            dropped.add(count, source=name, cause=cause)
        for cause, count in summary.source_faults.items():
            faults.add(count, source=name, cause=cause)
    return [read, detected, written, dropped, faults]


def _committee_families(committee: Mapping[str, Any]) -> list[MetricFamily]:
    families: list[MetricFamily] = []

    def one(name: str, kind: Literal["counter", "gauge"], key: str, text: str) -> None:
        family = MetricFamily(name, kind, text)
        if committee.get(key) is not None:
            family.add(committee[key])
        families.append(family)

    one("pcmoe_expert_resident_bytes", "gauge", "resident_bytes", "Memory of experts, spare slots included.")
    one("pcmoe_expert_budget_bytes", "gauge", "budget_bytes", "Most memory that experts may take.")
    one("pcmoe_expert_model_bytes", "gauge", "expert_bytes", "Size of all experts of the model.")
    one("pcmoe_expert_read_bytes_total", "counter", "bytes_read", "Bytes of experts read from the store.")
    one("pcmoe_expert_failed_loads_total", "counter", "failed_loads", "Reads that the store refused.")
    one("pcmoe_committee_frames_total", "counter", "frames", "Frames that the committee ran.")
    hits = MetricFamily(
        "pcmoe_expert_hit_tokens_total", "counter", "Choices of tokens whose expert was resident."
    )
    misses = MetricFamily("pcmoe_expert_miss_tokens_total", "counter", "Choices whose expert was absent.")
    swaps = MetricFamily("pcmoe_expert_swaps_total", "counter", "Experts that came in while frames ran.")
    resident = MetricFamily("pcmoe_experts_resident", "gauge", "Experts in memory.")
    experts = MetricFamily("pcmoe_experts", "gauge", "Experts of the layer.")
    for layer in committee.get("layers", ()):
        hits.add(layer["hit_tokens"], layer=layer["name"])
        misses.add(layer["miss_tokens"], layer=layer["name"])
        swaps.add(layer["swaps"], layer=layer["name"])
        resident.add(len(layer["resident"]), layer=layer["name"])
        experts.add(layer["num_experts"], layer=layer["name"])
    return [*families, hits, misses, swaps, resident, experts]


def _process_families() -> list[MetricFamily]:
    """The names that every Prometheus client library uses."""
    processor = MetricFamily("process_cpu_seconds_total", "counter", "Processor time of this process.")
    processor.add(time.process_time())
    memory = MetricFamily("process_resident_memory_bytes", "gauge", "Memory of this process, file pages too.")
    try:
        pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])
        memory.add(pages * os.sysconf("SC_PAGE_SIZE"))
    except (OSError, ValueError, IndexError):  # not on Linux: the family is left out
        pass
    return [processor, memory]
