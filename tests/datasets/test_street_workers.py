"""Drawing by several processes: the same bytes in the same order."""

from __future__ import annotations

from pathlib import Path

import pytest

from pcmoe_det.datasets.street_video import StreetVideo
from pcmoe_det.datasets.street_workers import encoded_frames
from pcmoe_det.datasets.street_writer import write_shift_split
from pcmoe_det.errors import UsageError


def _videos(count: int) -> list[StreetVideo]:
    return [StreetVideo(seed, width=96, height=64, num_frames=2 + seed) for seed in range(count)]


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
