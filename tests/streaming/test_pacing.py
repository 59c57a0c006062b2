"""Pictures of a burst, given at the pace of their stamps."""

from __future__ import annotations

import pytest

from pcmoe_det.streaming.pacing import Pacer


class FakeTime:
    def __init__(self) -> None:
        self.now = 100.0

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        assert seconds > 0
        self.now += seconds


def _given_at(*pictures: tuple[float, float]) -> list[float]:
    """When each picture is given, of pairs of stamp and seconds that it took to come."""
    fake = FakeTime()
    pacer = Pacer(fake.clock, sleep=fake.sleep)
    times = []
    for stamp, took_seconds in pictures:
        fake.now += took_seconds
        pacer.wait_for(stamp)
        times.append(fake.now - 100.0)
    return times


def test_a_burst_is_spread_as_the_stamps_say() -> None:
    assert _given_at(*((5 + n * 0.04, 0.0) for n in range(6))) == pytest.approx([n * 0.04 for n in range(6)])


def test_what_is_a_little_late_is_caught_up_with() -> None:
    times = _given_at((0.0, 0.0), (0.1, 0.5), (0.2, 0.0), (0.9, 0.0), (1.0, 0.0))
    assert times == pytest.approx([0.0, 0.5, 0.5, 0.9, 1.0])


@pytest.mark.parametrize("stamp", [-50.0, 0.3, 90000.0])
def test_a_jump_or_a_long_wait_is_a_new_start(stamp: float) -> None:
    times = _given_at((0.0, 0.0), (stamp, 7.0), (stamp + 0.5, 0.0))
    assert times == pytest.approx([0.0, 7.0, 7.5])
