"""Time stamps of senders that stop, restart and jump."""

from __future__ import annotations

import pytest

from pcmoe_det.streaming.timeline import Timeline


def _placed(*pictures: tuple[float | None, float, bool]) -> list[float]:
    timeline = Timeline()
    return [timeline.place(stamp, captured, anew=anew) for stamp, captured, anew in pictures]


def test_the_senders_stamps_count_from_the_first_picture() -> None:
    assert _placed((33.0, 5.0, False), (33.5, 5.1, False), (33.6, 6.0, False)) == pytest.approx(
        [0.0, 0.5, 0.6]
    )


def test_without_stamps_the_capture_clock_counts() -> None:
    assert _placed((None, 5.0, False), (None, 5.2, False), (None, 6.0, False)) == pytest.approx(
        [0.0, 0.2, 1.0]
    )


@pytest.mark.parametrize("new_stamp", [0.0, 33.04, 34.0, 9e9])
def test_after_a_loss_the_capture_clock_bridges_the_gap(new_stamp: float) -> None:
    placed = _placed(
        (33.0, 5.0, False), (33.04, 5.04, False), (new_stamp, 9.04, True), (new_stamp + 0.5, 9.1, False)
    )
    assert placed == pytest.approx([0.0, 0.04, 4.04, 4.54])


@pytest.mark.parametrize("jump", [-100.0, 0.0, 90000.0])
def test_a_jump_of_the_senders_clock_is_bridged_too(jump: float) -> None:
    # jump 0.0: the same stamp again, which would be two pictures at one time.
    placed = _placed((33.0, 5.0, False), (33.0 + jump, 5.1, False), (33.04 + jump, 5.2, False))
    assert placed == pytest.approx([0.0, 0.1, 0.14])


def test_a_burst_of_what_a_network_held_back_keeps_its_stamps() -> None:
    placed = _placed(*((index * 0.04, 5.0, False) for index in range(60)))
    assert placed == pytest.approx([index * 0.04 for index in range(60)])


def test_stamps_may_come_and_go() -> None:
    placed = _placed((1.0, 5.0, False), (None, 5.5, False), (9.0, 6.0, False), (9.1, 6.5, False))
    assert placed == pytest.approx([0.0, 0.5, 1.0, 1.1])
