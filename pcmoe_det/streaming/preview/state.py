"""What the page and ``/healthz`` are told, as plain data."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from pcmoe_det.streaming.preview.history import History, RateMeter, Sample
from pcmoe_det.streaming.preview.metrics_page import metric_families, unique_names
from pcmoe_det.streaming.preview.prometheus import to_text
from pcmoe_det.streaming.preview.sink import PreviewSink, SinkSnapshot
from pcmoe_det.streaming.preview.snapshots import CachedCall
from pcmoe_det.streaming.summary import StreamSummary

__all__ = ["HealthStatus", "PreviewState"]

_log = logging.getLogger(__name__)

HealthStatus = Literal["starting", "ok", "failing", "finished"]
"""Of all streams together: none yet; frames come; at least one is stalled or failed; all have ended."""

# Quantiles of a long run take about 0.4 ms a stream to read off, under the lock of the stream's counters.
_SUMMARIES_MAX_AGE_SECONDS = 1.0
_COMMITTEE_MAX_AGE_SECONDS = 0.25


class PreviewState:
    """Streams, pipeline and committee, brought together.

    ``add`` belongs to whoever builds the streams, ``sample`` to the sampling thread; all else may be called
    by any thread.

    Args:
        summaries: The pipeline's summaries so far.
        committee: The committee so far, or None; see ``PreviewServer``.
        clock: Seconds, monotonic.
    """

    def __init__(
        self,
        *,
        summaries: Callable[[], Sequence[StreamSummary]],
        committee: Callable[[], Mapping[str, Any] | None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._clock = clock
        self._started_seconds = clock()
        self._run_id = secrets.token_hex(4)
        self._summaries: CachedCall[Sequence[StreamSummary]] = CachedCall(
            summaries, default=(), max_age_seconds=_SUMMARIES_MAX_AGE_SECONDS, clock=clock
        )
        self._committee: CachedCall[Mapping[str, Any] | None] = CachedCall(
            committee, default=None, max_age_seconds=_COMMITTEE_MAX_AGE_SECONDS, clock=clock
        )
        self.sinks: tuple[PreviewSink, ...] = ()
        self._sample_number = 0
        self._committee_history = History()
        self._token_rates = RateMeter(2)

    def unique_name(self, source_id: str) -> str:
        """The name under which a further stream of this source is shown."""
        return unique_names([*(sink.name for sink in self.sinks), source_id])[-1]

    def add(self, sink: PreviewSink) -> None:
        """One more stream."""
        self.sinks = (*self.sinks, sink)

    def sample(self) -> None:
        """Take one sample of everything; once a second."""
        number, seconds = self._sample_number + 1, self._clock() - self._started_seconds
        for sink in self.sinks:
            sink.sample(number=number, seconds=seconds)
        committee = self._committee()
        if committee is not None:
            rates = self._token_rates.read(seconds, committee["hit_tokens"], committee["miss_tokens"])
            hits, misses = rates or (0.0, 0.0)
            hit_rate = round(hits / (hits + misses), 4) if hits + misses > 0 else None
            values = (hit_rate, float(committee["resident_bytes"]))
            self._committee_history.add(Sample(number, seconds, values))
        self._sample_number = number

    def health(self) -> tuple[bool, dict[str, Any]]:
        """Whether a monitor should be content, and why: the answer of ``/healthz``."""
        snapshots = [sink.snapshot() for sink in self.sinks]
        status = _status(snapshots)
        streams = [
            {
                "source": snapshot.name,
                "state": snapshot.state,
                "frames": snapshot.frames,
                "silent_seconds": round(snapshot.silent_seconds, 1),
            }
            for snapshot in snapshots
        ]
        return status in ("ok", "finished"), {"status": status, "streams": streams}

    def metrics_text(self) -> str:
        """The answer of ``/metrics``."""
        snapshots = [sink.snapshot() for sink in self.sinks]
        return to_text(metric_families(snapshots, self._summaries(), self._committee()))

    def page_record(self, *, after: int) -> dict[str, Any]:
        """What the page draws.

        Args:
            after: Number of the last sample that the page has; only later ones are sent.
        """
        sinks = self.sinks
        snapshots = [sink.snapshot() for sink in sinks]
        summaries = self._summaries()
        by_name = dict(zip(unique_names([summary.source for summary in summaries]), summaries, strict=True))
        committee = self._committee()
        return {
            "run": self._run_id,
            "sample": self._sample_number,
            "seconds": round(self._clock() - self._started_seconds, 1),
            "status": _status(snapshots),
            "sources": [
                _source_record(snapshot, by_name.get(snapshot.name), sink, after=after)
                for snapshot, sink in zip(snapshots, sinks, strict=True)
            ],
            "committee": (
                None if committee is None else {**committee, "samples": self._committee_history.after(after)}
            ),
        }


def _status(snapshots: Sequence[SinkSnapshot]) -> HealthStatus:
    states = {snapshot.state for snapshot in snapshots}
    if not states:
        return "starting"
    if states & {"stalled", "failed"}:
        return "failing"
    return "ok" if states & {"live", "starting"} else "finished"


def _source_record(
    snapshot: SinkSnapshot, summary: StreamSummary | None, sink: PreviewSink, *, after: int
) -> dict[str, Any]:
    last = sink.history.last
    rate, p50_ms, p99_ms = last.values if last is not None else (None, None, None)
    return {
        "name": snapshot.name,
        "state": snapshot.state,
        "silent_seconds": round(snapshot.silent_seconds, 1),
        "width": snapshot.width,
        "height": snapshot.height,
        "frames": snapshot.frames,
        "detections": snapshot.detections,
        "gaps": snapshot.gaps,
        "frames_per_second": rate,
        "p50_ms": p50_ms,
        "p99_ms": p99_ms,
        "dropped": dict(summary.frames_dropped) if summary is not None else {},
        "faults": dict(summary.source_faults) if summary is not None else {},
        "samples": sink.history.after(after),
    }
