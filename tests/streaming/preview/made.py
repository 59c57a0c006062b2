"""Made-up streams, committees and requests for the tests of the preview."""

from __future__ import annotations

import http.client
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from pcmoe_det.streaming.summary import StreamSummary
from pcmoe_det.structures import Detections, Frame, FrameResult, Gap

TOKEN = "correct-horse-battery"


class FakeClock:
    """Seconds that pass when told to."""

    def __init__(self) -> None:
        self.seconds = 1000.0

    def __call__(self) -> float:
        return self.seconds


def result(
    index: int = 0,
    *,
    total_ms: float = 50.0,
    width: int = 64,
    height: int = 48,
    gap: Gap | None = None,
    accounting: Mapping[str, int] | None = None,
) -> FrameResult:
    """A result with one object, 20 ms in the detector."""
    return FrameResult(
        frame=Frame(np.zeros((height, width, 3), np.uint8), "made", index, None, 0.0, gap),
        detections=Detections(
            np.zeros((1, 4), np.float32), np.ones(1, np.float32), np.zeros(1, np.int64), accounting or {}
        ),
        latency_ms={"detect": 20.0, "total": total_ms},
    )


def summary(
    source: str = "made", *, read: int = 7, dropped: Mapping[str, int] | None = None
) -> StreamSummary:
    return StreamSummary(
        source=source,
        outcome="complete",
        frames_read=read,
        frames_detected=read - 1,
        frames_written=read - 2,
        frames_dropped=dropped or {},
        source_faults={"undecodable": 3},
        elapsed_seconds=1.0,
        latency={},
        outputs=(),
    )


def committee_record(
    *, layers: int = 2, experts: int = 8, resident: int = 4, **values: Any
) -> dict[str, Any]:
    """As ``committee.view.committee_view`` gives it; experts 0, 1, ... are resident, 0 and the last used."""
    return {
        "policy": "pcmoe",
        "on_miss": "exchange",
        "frames": 10,
        "budget_bytes": 4 * 2**20,
        "resident_bytes": 3 * 2**20,
        "expert_bytes": 8 * 2**20,
        "hit_tokens": 900 * layers,
        "miss_tokens": 100 * layers,
        "swaps": layers,
        "bytes_read": 5 * 2**20,
        "failed_loads": 0,
        "layers": [
            {
                "name": f"backbone.stages.2.blocks.{2 * layer + 1}.mlp",
                "num_experts": experts,
                "quota": resident,
                "resident": list(range(resident)),
                "incoming": [],
                "outgoing": [],
                "used": [0, experts - 1],
                "hit_tokens": 900,
                "miss_tokens": 100,
                "swaps": 1,
            }
            for layer in range(layers)
        ],
        **values,
    }


@dataclass(frozen=True)
class Reply:
    status: int
    headers: Mapping[str, str]
    body: bytes


def request(port: int, path: str, *, method: str = "GET", body: bytes | None = None, **headers: str) -> Reply:
    """One request over a connection of its own; ``_`` in header names stands for ``-``."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    try:
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        connection.request(method, path, body=body, headers=named)
        answer = connection.getresponse()
        return Reply(answer.status, dict(answer.getheaders()), answer.read())
    finally:
        connection.close()
