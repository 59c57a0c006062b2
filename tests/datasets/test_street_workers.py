"""Drawing by several processes: the same bytes in the same order."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pcmoe_det.datasets.street_video import StreetFrame, StreetVideo
from pcmoe_det.datasets.street_workers import encoded_frames
from pcmoe_det.datasets.street_writer import write_shift_split
from pcmoe_det.errors import OutputError, UsageError


def _videos(count: int) -> list[StreetVideo]:
    return [StreetVideo(seed, width=96, height=64, num_frames=2 + seed) for seed in range(count)]


class KilledVideo(StreetVideo):
    """Its worker ends as if memory had run out."""

    def __iter__(self) -> Iterator[StreetFrame]:
        os.kill(os.getpid(), signal.SIGKILL)
        return super().__iter__()


class SlowVideo(StreetVideo):
    """Leaves its worker's number in a folder and takes half a minute."""

    pids: Path

    def __iter__(self) -> Iterator[StreetFrame]:
        (self.pids / str(os.getpid())).touch()
        time.sleep(30)
        return super().__iter__()


@pytest.mark.timeout(120)
def test_a_worker_that_is_killed_is_told(tmp_path: Path) -> None:
    shots = [KilledVideo(0, width=96, height=64, num_frames=2), *_videos(3)[1:]]
    with pytest.raises(OutputError, match=r"one of 2 processes that draw has died; .* fewer --workers"):
        write_shift_split(tmp_path / "out", videos=shots, workers=2)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == []


@pytest.mark.timeout(120)
def test_ctrl_c_does_not_wait_for_the_videos_that_are_drawn(tmp_path: Path) -> None:
    pids = tmp_path / "pids"
    pids.mkdir()
    shots = [SlowVideo(seed, width=96, height=64, num_frames=2) for seed in range(3)]
    for shot in shots:
        shot.pids = pids
    pressed_seconds: list[float] = []

    def press() -> None:
        for _ in range(1200):
            if len(list(pids.iterdir())) == 2:
                break
            time.sleep(0.05)
        pressed_seconds.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=press, daemon=True).start()
    with pytest.raises(KeyboardInterrupt):
        write_shift_split(tmp_path / "out", videos=shots, workers=2)
    assert time.monotonic() - pressed_seconds[0] < 5  # seconds; the machine may be busy
    assert not any(Path("/proc", path.name).exists() for path in pids.iterdir())
    assert [path for path in (tmp_path / "out").rglob("*") if path.is_file()] == []


@pytest.mark.timeout(120)
def test_two_processes_write_the_same_bytes_as_one(tmp_path: Path) -> None:
    one = write_shift_split(tmp_path / "one", videos=_videos(3))
    two = write_shift_split(tmp_path / "two", videos=_videos(3), workers=2)
    names = sorted(path.name for path in one.iterdir())
    assert names == sorted(path.name for path in two.iterdir()) == ["det_2d.json", "img_decompressed.zip"]
    for name in names:
        assert (one / name).read_bytes() == (two / name).read_bytes()


def test_each_frame_counts_once(tmp_path: Path) -> None:
    counted: list[int] = []
    write_shift_split(tmp_path, videos=_videos(2), on_frame=lambda: counted.append(1))
    assert len(counted) == 2 + 3


def test_frames_come_in_the_order_of_videos_and_frames(tmp_path: Path) -> None:
    videos = _videos(2)
    members = [
        frame.member for frame in encoded_frames(videos, jpeg_quality=90, workers=1, spool_folder=tmp_path)
    ]
    assert members == [
        f"{video.name}/{index:08d}_img_front.jpg" for video in videos for index in range(len(video))
    ]


def test_no_workers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="0 workers"):
        write_shift_split(tmp_path, videos=_videos(1), workers=0)
