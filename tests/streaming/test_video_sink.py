"""The video: times, sizes, colours, what a failure leaves."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import av
import cv2
import numpy as np
import pytest

from pcmoe_det.errors import OutputError, UsageError
from pcmoe_det.streaming import OutputFile, VideoSink, video_sink
from pcmoe_det.structures import FrameResult, Gap
from tests.streaming.stand_ins import detections, frame, grey_of, index_of, read_clip
from tests.streaming.video_boxes import boxes


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
    assert boxes(path) == ["ftyp", "moov", "free", "mdat"]


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
    with pytest.raises(OutputError, match="cannot be written: No such file"):
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
    ("given", "written"),
    [
        ((2160, 3840), (2160, 3840)),
        ((2304, 4096), (2304, 4096)),
        ((1, 20_000), (2, 8688)),
        ((20_000, 100), (8688, 44)),
    ],
)
def test_pictures_are_as_large_as_browsers_play(given: tuple[int, int], written: tuple[int, int]) -> None:
    assert video_sink._video_size(*given) == written


@pytest.mark.timeout(60)
def test_a_picture_of_48_megapixels_is_scaled_down(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    _write(path, [0.0], [_picture(7, 6000, 8000)])
    picture = read_clip(path)[1][0]
    height, width = picture.shape[:2]
    assert height / width == pytest.approx(6000 / 8000, rel=1e-3)
    # The largest frame of level 5.1 (ITU-T H.264, table A-1) has 36,864 macroblocks of 16x16.
    assert 36_000 < -(-height // 16) * -(-width // 16) <= 36_864
    assert index_of(picture[100:-100, 100:-100]) == 7


def test_the_size_may_change_often(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    sizes = [(48, 64), (1, 1), (480, 640), (47, 63), (64, 48), (6, 90)]
    times = [index / 25 for index in range(len(sizes))]
    _write(path, times, [_picture(10, *size) for size in sizes])
    written, pictures = read_clip(path)
    assert written == pytest.approx(times)
    assert {picture.shape for picture in pictures} == {(48, 64, 3)}
    assert [index_of(picture[24, 32]) for picture in pictures] == [10] * len(sizes)


def test_a_gap_takes_the_time_that_it_took(tmp_path: Path) -> None:
    path = tmp_path / "out.mp4"
    sink = VideoSink(OutputFile(path, overwrite=False))
    for index, (pts_seconds, gap) in enumerate(
        [(0.0, None), (0.04, None), (5000.0, Gap("reconnected", 3.0)), (5000.04, None)]
    ):
        result = FrameResult(
            frame=replace(frame(index, pts_seconds=pts_seconds), gap=gap), detections=detections()
        )
        sink.write(result, _picture(index))
    sink.close("complete")
    assert read_clip(path)[0] == pytest.approx([0.0, 0.04, 3.04, 3.08])


@pytest.mark.parametrize("suffix", [".mp4", ".m4v", ".mov", ".mkv"])
def test_a_failed_stream_leaves_every_frame_in_the_part(tmp_path: Path, suffix: str) -> None:
    sink = VideoSink(OutputFile(tmp_path / f"out{suffix}", overwrite=False))
    for index in range(60):
        sink.write(_result(index, index / 25), _picture(index))
    assert sink.close("failed") == [tmp_path / f"out.part{suffix}"]
    times, pictures = read_clip(tmp_path / f"out.part{suffix}")
    assert times == pytest.approx([index / 25 for index in range(60)], abs=5.1e-4)
    assert [index_of(picture) for picture in pictures] == [index % 24 for index in range(60)]


def test_a_part_that_somebody_removed_is_told(tmp_path: Path) -> None:
    sink = VideoSink(OutputFile(tmp_path / "out.mp4", overwrite=False))
    sink.write(_result(0, 0.0), _picture(0))
    (tmp_path / "out.part.mp4").unlink()
    with pytest.raises(OutputError, match="was removed"):
        sink.close("complete")
