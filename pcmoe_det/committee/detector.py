"""A detector under a committee, as a stream sees it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.committee.committee import Committee
from pcmoe_det.models.inference import Detector
from pcmoe_det.structures import Detections

__all__ = ["CommitteeDetector"]


class CommitteeDetector:
    """Adds to each frame's detections what the frame cost the committee.

    Args:
        detector: Its model is patched with ``committee``.
        committee: Whose counters are reported.
    """

    def __init__(self, detector: Detector, committee: Committee) -> None:
        self._detector = detector
        self._committee = committee

    @property
    def committee(self) -> Committee:
        """Whose experts the model runs with."""
        return self._committee

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id."""
        return self._detector.class_names

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Find objects in ``[height, width, 3]`` uint8 BGR images, one by one."""
        found = []
        for image in images:
            detections = self._detector.detect([image])[0]
            found.append(replace(detections, accounting=dict(self._committee.frame_report)))
        return found

    def select_stream(self, source_id: str) -> None:
        """The following pictures are of this source; importance is kept per source."""
        self._committee.select_stream(source_id)

    def forget_stream(self, source_id: str) -> None:
        """What this source showed so far no longer counts."""
        self._committee.forget_stream(source_id)

    def start_anew(self) -> None:
        """The experts of the beginning, nothing remembered; counters go on."""
        self._committee.reset()

    def failed_loads(self) -> int:
        """Loads of experts that failed so far."""
        return self._committee.accounting.failed_loads

    def accounting(self) -> dict[str, Any]:
        """The committee's totals."""
        return self._committee.report()
