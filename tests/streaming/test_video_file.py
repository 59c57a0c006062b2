"""What a killed process, a full disk or a failing copy leaves of a video."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import replace
from io import FileIO
from pathlib import Path

import numpy as np
import pytest

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming import OutputFile, VideoSink, video_file, video_sink
from pcmoe_det.structures import FrameResult
from tests.streaming.stand_ins import detections, frame, index_of, read_clip
from tests.streaming.video_boxes import boxes

FRAMES_PER_FRAGMENT = 25  # a second at 25 frames per second


def _result(index: int) -> FrameResult:
    return FrameResult(frame=frame(index, pts_seconds=index / 25), detections=detections())


def _noise(index: int, side: int = 64) -> np.ndarray:
    """A picture that takes some kilobytes; its mean tells which it is."""
    noise = np.random.default_rng(index).integers(-5, 5, (side, side, 1))
    return np.broadcast_to(10 + 10 * (index % 24) + noise, (side, side, 3)).astype(np.uint8)


def _write(sink: VideoSink, count: int) -> int:
    """Write up to ``count`` frames; how many were taken before an error."""
    for index in range(count):
        try:
            sink.write(_result(index), _noise(index))
        except OutputError:
            return index
    return count


def _check_frames(path: Path) -> int:
    """How many frames the file has; each must be the one that its place says."""
    times, pictures = read_clip(path)
    assert times == pytest.approx([index / 25 for index in range(len(times))], abs=5.1e-4)
    assert [index_of(picture) for picture in pictures] == [index % 24 for index in range(len(times))]
    return len(times)


KILLED = """
import sys, time
from pathlib import Path
from pcmoe_det.streaming import OutputFile, VideoSink
from tests.streaming.test_video_file import _noise, _result
sink = VideoSink(OutputFile(sys.argv[1], overwrite=False))
for index in range(110):
    sink.write(_result(index), _noise(index))
print("written", flush=True)
time.sleep(60)
"""


@pytest.mark.timeout(60)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_killed_process_loses_a_second_at_most(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    process = subprocess.Popen(
        [sys.executable, "-c", KILLED, str(path)],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).resolve().parents[2],
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "written\n"
    finally:
        process.send_signal(signal.SIGKILL)
        process.communicate()
    assert [entry.name for entry in tmp_path.iterdir()] == [f"out.part{suffix}"]
    assert _check_frames(tmp_path / f"out.part{suffix}") >= 110 - FRAMES_PER_FRAGMENT - 2


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 256 KiB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=256k", "tmpfs", str(folder)], capture_output=True, check=False
    )
    if mounted.returncode != 0:
        pytest.skip("this user may not mount a file system")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)  # lazily: a failed test holds files open


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_a_full_disk_keeps_what_was_written(small_disk: Path, suffix: str) -> None:
    target = OutputFile(small_disk / f"out{suffix}", overwrite=False)
    sink = VideoSink(target)
    taken = _write(sink, 1000)
    assert 100 < taken < 1000
    with pytest.raises(
        OutputError, match=rf"disk/out{suffix} cannot be written after {taken} frames: No space"
    ):
        sink.write(_result(taken), _noise(taken))
    assert sink.close("failed") == [target.partial_path]
    assert _check_frames(target.partial_path) >= taken - 2 * FRAMES_PER_FRAGMENT
    if suffix == ".mp4":
        assert boxes(target.partial_path)[:4] == ["ftyp", "moov", "moof", "mdat"]


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_a_disk_that_is_full_beforehand_is_found_beforehand(small_disk: Path) -> None:
    (small_disk / "other").write_bytes(bytes(200 * 1024))
    with pytest.raises(OutputError, match=r"disk cannot be written to: No space left"):
        OutputFile(small_disk / "out.mp4", overwrite=False)
    assert [entry.name for entry in small_disk.iterdir()] == ["other"]


@pytest.mark.skipif(shutil.which("mount") is None, reason="no mount command")
def test_without_room_for_a_copy_the_fragments_are_the_video(small_disk: Path) -> None:
    path = small_disk / "out.mp4"
    sink = VideoSink(OutputFile(path, overwrite=False))
    index = 0
    while shutil.disk_usage(small_disk).used < 140 * 1024:
        sink.write(_result(index), _noise(index))
        index += 1
    assert sink.close("complete") == [path]
    assert [entry.name for entry in small_disk.iterdir()] == ["out.mp4"]
    assert "moof" in boxes(path)
    assert _check_frames(path) == index


class FullAt(FileIO):
    """A file on a disk with room for ``room`` bytes, which takes part of what does not fit."""

    room = 60_000

    def write(self, data) -> int:
        left = self.room - self.tell()
        if left <= 0:
            raise OSError(28, "No space left on device")
        return super().write(data[:left])


@pytest.mark.parametrize("room", [500, 20_000, 60_000, 100_000])
def test_no_room_at_any_point(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int) -> None:
    """Where the disk fills up decides how many fragments there are: none, the first, or several."""

    class Full(FullAt):
        pass

    Full.room = room
    monkeypatch.setattr("pcmoe_det.streaming.output_files.FileIO", Full)
    target = OutputFile(tmp_path / "out.mp4", overwrite=False)
    sink = VideoSink(target)
    taken = _write(sink, 200)
    assert taken < 200
    with pytest.raises(OutputError) as caught:
        sink.write(_result(taken), _noise(taken))
    kept = sink.close("failed")
    assert ("out.part.mp4" in str(caught.value)) is bool(kept)
    if not kept:
        assert taken <= 2 * FRAMES_PER_FRAGMENT + 2
        assert list(tmp_path.iterdir()) == []
        return
    assert kept == [target.partial_path]
    assert _check_frames(target.partial_path) >= taken - 2 * FRAMES_PER_FRAGMENT


def test_no_room_for_the_last_fragment_fails_in_close(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full(FullAt):
        room = 1_000_000

    monkeypatch.setattr("pcmoe_det.streaming.output_files.FileIO", Full)
    target = OutputFile(tmp_path / "out.mp4", overwrite=False)
    sink = VideoSink(target)
    assert _write(sink, 60) == 60
    Full.room = target.partial_path.stat().st_size
    with pytest.raises(
        OutputError, match=r"cannot be finished: No space left on device; what there is: .*part"
    ):
        sink.close("complete")
    assert not target.path.exists()
    assert _check_frames(target.partial_path) == 50


def test_a_copy_that_fails_costs_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.mp4"
    sink = VideoSink(OutputFile(path, overwrite=False))
    assert _write(sink, 60) == 60
    (tmp_path / "out.part-copy.mp4").mkdir()  # FFmpeg cannot open it
    assert sink.close("complete") == [path]
    assert _check_frames(path) == 60
    assert "moof" in boxes(path)


def test_a_disk_without_room_is_not_tried(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "out.mp4"
    sink = VideoSink(OutputFile(path, overwrite=False))
    _write(sink, 30)
    monkeypatch.setattr(video_file.av, "open", lambda *_, **__: pytest.fail("the copy was begun"))
    monkeypatch.setattr(shutil, "disk_usage", lambda _: shutil._ntuple_diskusage(10**6, 10**6, 0))
    assert sink.close("complete") == [path]


@pytest.mark.parametrize("limit", ["_INTERRUPTED_COPY_FRAMES", "_INTERRUPTED_COPY_BYTES"])
def test_an_interrupted_long_video_is_not_copied(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, limit: str
) -> None:
    """Whoever presses Ctrl-C must not wait for gigabytes to be copied."""
    for outcome, is_copied in (("interrupted", False), ("complete", True)):
        monkeypatch.setattr(video_sink, limit, 20)
        path = tmp_path / f"{outcome}.mp4"
        sink = VideoSink(OutputFile(path, overwrite=False))
        _write(sink, 30)
        assert sink.close(outcome) == [path]
        assert ("moof" not in boxes(path)) is is_copied
        assert _check_frames(path) == 30


@pytest.mark.timeout(60)
@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="counts Linux's resident pages")
def test_memory_stays_flat_while_frames_come(tmp_path: Path) -> None:
    """A plain MP4 keeps 80 bytes a frame until its end; fragments keep none."""
    sink = VideoSink(OutputFile(tmp_path / "out.mp4", overwrite=False))
    picture = np.zeros((16, 16, 3), np.uint8)
    used = []
    same_frame = frame(0)
    for index in range(24_000):
        at = replace(same_frame, pts_seconds=index / 25)
        sink.write(FrameResult(frame=at, detections=detections()), picture)
        if index % 8_000 == 7_999:
            used.append(int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE"))
    sink.close("failed")
    assert used[2] - used[0] < 16_000 * 80 / 2
