"""Frozen records that cross threads or modules, and the protocol that joins stream and model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "SHIFT_CLASSES",
    "AccountingDetector",
    "Detections",
    "Frame",
    "FrameDetector",
    "FrameResult",
    "Gap",
    "RestartableDetector",
    "StreamAwareDetector",
]

SHIFT_CLASSES: tuple[str, ...] = ("pedestrian", "car", "truck", "bus", "motorcycle", "bicycle")
"""SHIFT's six classes in SHIFT's order; a class id is an index into this tuple."""


@dataclass(frozen=True, slots=True)
class Gap:
    """A stretch of a live source that was lost before a frame. No frames are made up for it.

    Attributes:
        cause: ``reconnected`` (the source was lost and came back) or ``size_changed`` (it went on with
            pictures of another size).
        seconds: How long nothing came, on the capture clock; 0.0 where nothing is missing.
    """

    cause: str
    seconds: float


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """One picture of one source.

    Attributes:
        image: ``[height, width, 3]`` uint8, BGR. Not to be written to.
        source_id: Which source it came from; printable, without credentials.
        frame_index: 0-based position in the source, counting dropped frames too.
        pts_seconds: Presentation time in the source, or None where the source has none.
        captured_at_seconds: When the reader got it, on the clock of ``time.monotonic``.
        gap: What was lost just before this frame, or None. Whatever follows objects from frame to frame
            (importance, tracks) starts anew at a gap.
    """

    image: NDArray[np.uint8]
    source_id: str
    frame_index: int
    pts_seconds: float | None
    captured_at_seconds: float
    gap: Gap | None = None

    def __post_init__(self) -> None:
        if self.image.ndim != 3 or self.image.shape[2] != 3 or self.image.dtype != np.uint8:
            raise ValueError(
                f"a frame is a [height, width, 3] uint8 array, not {self.image.shape} {self.image.dtype}"
            )


@dataclass(frozen=True, slots=True, eq=False)
class Detections:
    """What was found in one image, best score first.

    Attributes:
        boxes_xyxy: ``[n, 4]`` float32 in pixels of the image, clipped to it.
        scores: ``[n]`` float32 in [0, 1].
        class_ids: ``[n]`` int64, indices into the detector's ``class_names``.
        accounting: What the detector counted for this image (hits, misses, swaps, bytes), if it counts.
        track_ids: ``[n]`` int64, the same object's number in every frame, -1 for an object that is not (yet)
            tracked; None where nobody tracks.
    """

    boxes_xyxy: NDArray[np.float32]
    scores: NDArray[np.float32]
    class_ids: NDArray[np.int64]
    accounting: Mapping[str, int | float] = field(default_factory=dict)
    track_ids: NDArray[np.int64] | None = None

    def __post_init__(self) -> None:
        count = len(self.scores)
        if self.track_ids is not None and self.track_ids.shape != (count,):
            raise ValueError(f"detections need one track id each: {self.track_ids.shape} for {count}")
        if self.boxes_xyxy.shape != (count, 4) or self.class_ids.shape != (count,):
            raise ValueError(
                "detections need as many boxes and classes as scores: "
                f"boxes {self.boxes_xyxy.shape}, scores {self.scores.shape}, classes {self.class_ids.shape}"
            )

    def __len__(self) -> int:
        return len(self.scores)


@dataclass(frozen=True, slots=True, eq=False)
class FrameResult:
    """A frame and what was found in it.

    Attributes:
        frame: The frame; its image is what the detector saw.
        detections: In pixels of ``frame.image``.
        latency_ms: Milliseconds by stage: ``read``, ``wait`` (queued before the detector), ``detect``.
    """

    frame: Frame
    detections: Detections
    latency_ms: Mapping[str, float] = field(default_factory=dict)


@runtime_checkable
class FrameDetector(Protocol):
    """What the stream needs of a model. Called from one thread at a time."""

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id."""
        ...

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Find objects in ``[height, width, 3]`` uint8 BGR images of any, also different, sizes."""
        ...


@runtime_checkable
class AccountingDetector(FrameDetector, Protocol):
    """A detector that counts what it does over the whole run."""

    def accounting(self) -> dict[str, Any]:
        """Totals since the start, as plain data; ``summary``, if there, is a sentence for people."""
        ...


@runtime_checkable
class StreamAwareDetector(FrameDetector, Protocol):
    """A detector that keeps something per stream, such as which experts matter to it."""

    def select_stream(self, source_id: str) -> None:
        """The pictures of the following ``detect`` calls are of this source."""
        ...

    def forget_stream(self, source_id: str) -> None:
        """The source ended, or what it shows after a gap has nothing to do with what it showed before."""
        ...


@runtime_checkable
class RestartableDetector(FrameDetector, Protocol):
    """A detector whose results depend on what it has seen, and which may miss parts of its model."""

    def start_anew(self) -> None:
        """Be as if just opened: nothing of earlier streams shows in what follows."""
        ...

    def failed_loads(self) -> int:
        """Reads of parts of the model that failed so far; detection went on without them."""
        ...
