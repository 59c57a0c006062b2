"""A detector for workers without torch, and a folder of tiny clips."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pcmoe_det.errors import CheckpointError, UsageError
from pcmoe_det.structures import Detections
from tests.streaming.stand_ins import StandInDetector, index_of, make_clip

KILLER_FRAME = 20  # the grey value of this frame makes a deadly detector die


@dataclass(frozen=True)
class StandInOpener:
    """Opens a detector in a worker.

    Attributes:
        frame_seconds: How long a frame takes.
        pids: A folder that gets a file named after each worker's process; it holds its thread settings.
        deaths: The worker that sees the killer frame kills itself while this folder has fewer entries.
        most_deaths: See ``deaths``.
        raises_at: The detector raises at this frame.
        fault: Opening fails: ``weights``, ``usage``, ``bug`` or ``death``.
    """

    frame_seconds: float = 0.0
    pids: Path | None = None
    deaths: Path | None = None
    most_deaths: int = 1
    raises_at: int | None = None
    fault: str | None = None

    @contextmanager
    def __call__(self, threads: int) -> Iterator[Detector]:
        if self.pids is not None:
            (self.pids / str(os.getpid())).write_text(f"{threads} {os.environ.get('OMP_NUM_THREADS')}")
        if self.fault == "weights":
            raise CheckpointError("no weights at nowhere.pth; check the path")
        if self.fault == "usage":
            raise UsageError("--expert-budget 7 is more than there is")
        if self.fault == "bug":
            raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
        if self.fault == "death":
            os._exit(3)
        yield Detector(self)
        if self.pids is not None:
            (self.pids / f"{os.getpid()}-closed").touch()


class Detector(StandInDetector):
    """Finds the same box in every frame, and does what its opener says."""

    def __init__(self, opener: StandInOpener) -> None:
        super().__init__()
        self._opener = opener

    def detect(self, images: Sequence[np.ndarray]) -> list[Detections]:
        opener = self._opener
        time.sleep(opener.frame_seconds)
        index = index_of(images[0])
        if index == opener.raises_at:
            raise RuntimeError("the stand-in has had enough")
        if index == KILLER_FRAME and opener.deaths is not None:
            count = len(list(opener.deaths.iterdir()))
            if count < opener.most_deaths:
                (opener.deaths / str(count)).touch()
                os.kill(os.getpid(), signal.SIGKILL)
        return super().detect(images)


def make_videos(folder: Path, names: Sequence[str], *, frames: int = 6, first: int = 0) -> Path:
    """Clips of ``frames`` tiny frames each; ``first`` is the grey index of the first frame."""
    for name in names:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        made = make_clip(folder / "making.mp4", ticks=range(first + frames), width=32, height=32)
        made.rename(path)
    return folder


def is_running(pid: int) -> bool:
    """Whether the process exists and is not a zombie that nobody has waited for."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_until(condition, *, seconds: float = 10.0) -> bool:
    """Poll; the time-out is generous, because the machine may be busy."""
    deadline = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True
