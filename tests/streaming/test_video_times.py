"""Times of a written video: the source's, kept increasing."""

from __future__ import annotations

from fractions import Fraction

import pytest

from pcmoe_det.streaming.video_times import TimeStamps, choose_time_base


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


def _gap_ticks(
    *steps: tuple[float | None, float | None], time_base: Fraction = Fraction(1, 1000)
) -> list[int]:
    stamps = TimeStamps(time_base, Fraction(25))
    return [stamps.next_ticks(time, gap_seconds=gap) for time, gap in steps]


def test_a_gap_that_the_clock_counted_stays_as_it_is() -> None:
    assert _gap_ticks((1.0, None), (1.04, None), (4.54, 3.0), (4.58, None)) == [1000, 1040, 4540, 4580]


@pytest.mark.parametrize("restart", [0.0, 0.5, 1e6])
def test_a_clock_that_starts_anew_in_a_gap_is_moved(restart: float) -> None:
    ticks = _gap_ticks((1.0, None), (1.04, None), (restart, 3.0), (restart + 0.04, None))
    assert ticks == [1000, 1040, 4040, 4080]


def test_a_gap_without_times_takes_its_time() -> None:
    assert _gap_ticks((None, None), (None, 2.5), (None, None)) == [0, 2500, 2540]


def test_a_gap_in_which_nothing_is_missing_makes_one_frame() -> None:
    assert _gap_ticks((1.0, None), (0.0, 0.0), (0.04, None)) == [1000, 1040, 1080]


def test_a_whole_night_becomes_an_hour() -> None:
    assert _gap_ticks((0.0, None), (30_000.0, None), (30_000.04, None)) == [0, 3_600_000, 3_600_040]
    assert _gap_ticks((0.0, None), (5.0, 30_000.0), (5.04, None)) == [0, 5000, 5040]
    assert _gap_ticks((9.0, None), (5.0, 30_000.0), (5.04, None)) == [9000, 3_609_000, 3_609_040]


def test_a_clock_reset_is_followed_where_a_frame_is_one_tick() -> None:
    stamps = TimeStamps(Fraction(1, 25), Fraction(25))
    assert [stamps.next_ticks(time) for time in (5.0, 5.04, 0.0, 0.04, 0.16)] == [125, 126, 127, 128, 131]
