"""What a stream did, as a record, as JSON and as text."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from pcmoe_det.streaming.metrics import LatencyQuantiles
from pcmoe_det.streaming.sinks import SinkOutcome

__all__ = ["SUMMARY_SCHEMA_VERSION", "StreamSummary"]

SUMMARY_SCHEMA_VERSION = 1


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """One stream from its start to its end.

    Attributes:
        source: The source's name.
        outcome: How it ended.
        frames_read: Frames that the source gave.
        frames_detected: Frames that went through the detector.
        frames_written: Results that every sink took; 0 where there is no sink.
        frames_dropped: Frames read but not written, by cause: ``replaced_by_newer`` (freshest policy),
            ``too_late`` (the latency limit could not be kept), ``bad_frame`` (the detector or an output could
            not take it, and the stream is live), ``stopped`` (waiting when the stream was stopped),
            ``failed`` (lost with a failing stage).
        source_faults: What went wrong in reading, by cause, as the source counts it.
        source_seconds_lost: How long the source was lost, in all.
        elapsed_seconds: From the start of the threads to the end of the renderer, closing files included.
        latency: Quantiles by stage.
        outputs: Files that are there now.
        error: What ended the stream, or None.
        accounting: What the detector counted, if it counts; of all streams that shared it.
    """

    source: str
    outcome: SinkOutcome
    frames_read: int
    frames_detected: int
    frames_written: int
    frames_dropped: Mapping[str, int]
    source_faults: Mapping[str, int]
    elapsed_seconds: float
    latency: Mapping[str, LatencyQuantiles]
    outputs: tuple[Path, ...]
    source_seconds_lost: float = 0.0
    error: str | None = None
    accounting: Mapping[str, Any] = field(default_factory=dict)

    @property
    def frames_per_second(self) -> float:
        """Detected frames per second of the whole run."""
        return self.frames_detected / self.elapsed_seconds if self.elapsed_seconds > 0 else 0.0

    def as_record(self) -> dict[str, Any]:
        """The summary as one JSON object with ``schema_version``; milliseconds have three decimals."""
        return {
            "schema_version": SUMMARY_SCHEMA_VERSION,
            "source": self.source,
            "outcome": self.outcome,
            **({} if self.error is None else {"error": self.error}),
            "frames_read": self.frames_read,
            "frames_detected": self.frames_detected,
            "frames_written": self.frames_written,
            "frames_dropped": dict(self.frames_dropped),
            "source_faults": dict(self.source_faults),
            "source_seconds_lost": round(self.source_seconds_lost, 3),
            "elapsed_seconds": round(self.elapsed_seconds, 3),
            "frames_per_second": round(self.frames_per_second, 3),
            "latency_ms": {
                stage: {
                    name.removesuffix("_ms"): round(value, 3) for name, value in asdict(quantiles).items()
                }
                for stage, quantiles in self.latency.items()
            },
            "outputs": [str(path) for path in self.outputs],
            "accounting": dict(self.accounting),
        }

    def as_text(self) -> str:
        """The summary for a terminal, without a final line break."""
        lines = [
            f"{self.source}: {self.outcome}",
            f"frames: {self.frames_read} read, {self.frames_detected} detected, "
            f"{self.frames_written} written, "
            f"{sum(self.frames_dropped.values())} dropped{_causes(self.frames_dropped)}",
            f"{self.frames_per_second:.2f} frames per second over {self.elapsed_seconds:.1f} s",
        ]
        if self.source_faults:
            lines.append(f"faults of the source: {_causes(self.source_faults).strip(' ()')}")
        if self.source_seconds_lost:
            lines.append(f"the source was lost for {self.source_seconds_lost:.1f} s")
        if self.latency:
            lines.append(f"{'stage':<8} {'p50 ms':>9} {'p95 ms':>9} {'max ms':>9}")
            lines += [
                f"{stage:<8} {quantiles.p50_ms:>9.2f} {quantiles.p95_ms:>9.2f} {quantiles.max_ms:>9.2f}"
                for stage, quantiles in self.latency.items()
            ]
        if "summary" in self.accounting:
            lines.append(str(self.accounting["summary"]))
        if self.error is not None:
            lines.append(f"error: {self.error}")
        what = "kept, unfinished:" if self.outcome == "failed" else "wrote"
        lines += [f"{what} {path}" for path in self.outputs]
        return "\n".join(lines)


def _causes(counts: Mapping[str, int]) -> str:
    if not counts:
        return ""
    return " (" + ", ".join(f"{count} {cause.replace('_', ' ')}" for cause, count in counts.items()) + ")"
