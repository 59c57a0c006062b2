"""The video: times, sizes, colours, what a failure leaves."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pcmoe_det.errors import OutputError, UsageError
from pcmoe_det.streaming import OutputFile, VideoSink
from pcmoe_det.streaming.video_sink import TimeStamps, choose_time_base
from pcmoe_det.structures import FrameResult
from tests.streaming.stand_ins import detections, frame, grey_of, index_of, read_clip


def _result(index: int, pts_seconds: float | None) -> FrameResult:
    return FrameResult(frame=frame(index, pts_seconds=pts_seconds), detections=detections())


def _picture(index: int, height: int = 48, width: int = 64) -> np.ndarray:
    return np.full((height, width, 3), grey_of(index), np.uint8)


def _write(
    path: Path, times: list[float | None], pictures: list[np.ndarray] | None = None, **options
) -> list[Path]:
    sink = VideoSink(OutputFile(path, overwrite=False), **options)
    for index, time in enumerate(times):
        sink.write(_result(index, time), pictures[index] if pictures else _picture(index))
    return sink.close("complete")


@pytest.mark.parametrize(
    ("time_base", "ticks"),
    [
        (Fraction(1, 25), list(range(20))),
        (Fraction(1, 90_000), [index * 3750 + (index % 3) * 90 for index in range(20)]),
        (Fraction(1000, 14_999), list(range(20))),
        (Fraction(1001, 30_000), list(range(20))),
        (Fraction(1, 1000), [0, 40, 50, 200, 210, 700, 1500]),
        (Fraction(1, 200_000), [20_000 * index for index in range(10)]),
        (Fraction(1, 90_000), [45_000 + 3600 * index for index in range(10)]),
    ],
    ids=["25fps", "24fps-jitter", "14.999fps", "ntsc", "variable", "fine", "late-start"],
)
@pytest.mark.parametrize("suffix", [".mp4", ".mkv"])
def test_times_are_the_sources(tmp_path: Path, time_base: Fraction, ticks: list[int], suffix: str) -> None:
    path = tmp_path / f"out{suffix}"
    times = [float(tick * time_base) for tick in ticks]
    assert _write(path, times, frame_rate=Fraction(25), time_base=time_base) == [path]
    written, pictures = read_clip(path)
    # Matroska counts in milliseconds whatever it is given.
    assert written == pytest.approx(times, abs=1e-9 if suffix == ".mp4" else 5.1e-4)
    assert [index_of(picture) for picture in pictures] == list(range(len(ticks)))


def test_rate_and_length_are_the_sources(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    rate = Fraction(30_000, 1001)
    times = [float(index / rate) for index in range(30)]
    _write(path, times, frame_rate=rate, time_base=1 / rate)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.average_rate == rate
        assert stream.frames == 30
        assert stream.duration * stream.time_base == 30 / rate


def test_browsers_can_play_it(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    _write(path, [index / 25 for index in range(5)])
    with av.open(str(path)) as container:
        codec = container.streams.video[0].codec_context
        assert (codec.name, codec.pix_fmt) == ("h264", "yuv420p")
    content = path.read_bytes()
    assert content.index(b"moov") < content.index(b"mdat")


@pytest.mark.parametrize(("height", "width"), [(1, 1), (47, 63), (48, 63), (2, 2), (120, 160)])
def test_odd_sizes_are_padded_by_one_pixel(tmp_path: Path, height: int, width: int) -> None:
    path = tmp_path / "out.mp4"
    _write(path, [0.0, 0.04], [_picture(index, height, width) for index in range(2)])
    pictures = read_clip(path)[1]
    assert pictures[0].shape == (height + height % 2, width + width % 2, 3)
    assert [index_of(picture) for picture in pictures] == [0, 1]


def test_another_size_is_fitted_between_bars(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    _write(path, [0.0, 0.04], [_picture(20, 60, 80), np.full((60, 20, 3), 255, np.uint8)])
    last = read_clip(path)[1][1]
    assert last.shape == (60, 80, 3)
    assert last[:, 32:48].mean() > 240
    assert last[:, :24].mean() < 15
    assert last[:, 56:].mean() < 15


def test_colours_survive_and_are_declared(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    colours = [(0, 159, 230), (233, 180, 86), (115, 158, 0), (255, 255, 255), (0, 0, 0), (0, 0, 255)]
    _write(path, [index / 25 for index in range(6)], [np.full((32, 32, 3), c, np.uint8) for c in colours])
    capture = cv2.VideoCapture(str(path))  # another decoder than the one that wrote it
    for colour in colours:
        assert np.abs(capture.read()[1].mean(axis=(0, 1)) - colour).max() < 6
    with av.open(str(path)) as container:
        picture = next(container.decode(video=0))
        assert (picture.colorspace, picture.color_range) == (5, 1)


def test_the_final_name_appears_only_when_whole(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    sink = VideoSink(OutputFile(path, overwrite=False))
    sink.write(_result(0, 0.0), _picture(0))
    assert not path.exists()
    assert (tmp_path / "out.part.mp4").exists()
    sink.close("complete")
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.mp4"]


def test_after_a_failure_the_part_is_kept_playable_and_the_old_file_stays(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    path.write_bytes(b"an older result")
    sink = VideoSink(OutputFile(path, overwrite=True))
    for index in range(3):
        sink.write(_result(index, index / 25), _picture(index))
    assert sink.close("failed") == [tmp_path / "out.part.mp4"]
    assert path.read_bytes() == b"an older result"
    assert len(read_clip(tmp_path / "out.part.mp4")[0]) == 3


def test_an_interrupted_video_gets_its_name(tmp_path: Path) -> None:
    sink = VideoSink(OutputFile(tmp_path / "out.mp4", overwrite=False))
    sink.write(_result(0, 0.0), _picture(0))
    assert sink.close("interrupted") == [tmp_path / "out.mp4"]
    assert len(read_clip(tmp_path / "out.mp4")[0]) == 1


@pytest.mark.parametrize("outcome", ["complete", "interrupted", "failed"])
def test_without_a_frame_there_is_no_file(tmp_path: Path, outcome) -> None:
    assert VideoSink(OutputFile(tmp_path / "out.mp4", overwrite=False)).close(outcome) == []
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_vanishes_is_an_output_error(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    sink = VideoSink(OutputFile(folder / "out.mp4", overwrite=False))
    folder.rmdir()
    with pytest.raises(OutputError, match="cannot be written after 0 frames"):
        sink.write(_result(0, 0.0), _picture(0))
    assert sink.close("failed") == []


def test_other_containers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"must end in one of \.mp4"):
        VideoSink(OutputFile(tmp_path / "out.gif", overwrite=False))


def test_odd_names_are_written(tmp_path: Path) -> None:
    path = tmp_path / "a:b %03d é.mp4"
    assert _write(path, [0.0]) == [path]
    assert path.exists()


@pytest.mark.parametrize(
    ("source", "chosen"),
    [
        (None, Fraction(1, 90_000)),
        (Fraction(1, 25), Fraction(1, 25)),
        (Fraction(1001, 30_000), Fraction(1, 30_000)),
        (Fraction(1, 10**9), Fraction(1, 90_000)),
    ],
)
def test_time_base(source: Fraction | None, chosen: Fraction) -> None:
    assert choose_time_base(source) == chosen


def _ticks(times: list[float | None]) -> tuple[list[int], int]:
    stamps = TimeStamps(Fraction(1, 1000), Fraction(25))
    return [stamps.next_ticks(time) for time in times], stamps.adjusted


def test_times_that_repeat_or_step_back_stay_increasing() -> None:
    assert _ticks([0.0, 0.04, 0.04, 0.03, 0.08]) == ([0, 40, 41, 42, 80], 2)


def test_a_clock_that_was_reset_continues_one_frame_later() -> None:
    assert _ticks([5.0, 5.04, 0.0, 0.04]) == ([5000, 5040, 5080, 5120], 1)


def test_frames_without_a_time_come_one_frame_apart() -> None:
    assert _ticks([None, None, None]) == ([0, 40, 80], 2)


@pytest.mark.parametrize("start", [-0.5, 95_443.7])
def test_a_start_far_away_becomes_zero(start: float) -> None:
    assert _ticks([start, start + 0.04])[0] == [0, 40]
