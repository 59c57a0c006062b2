"""Delays between attempts."""

from __future__ import annotations

import random

import pytest

from pcmoe_det.streaming.reconnect import Backoff


class NoJitter(random.Random):
    def uniform(self, a: float, b: float) -> float:
        return (a + b) / 2


def test_delays_double_up_to_the_longest() -> None:
    backoff = Backoff(first_seconds=0.5, longest_seconds=6.0, chance=NoJitter())
    assert [backoff.next_delay_seconds() for _ in range(6)] == [0.5, 1.0, 2.0, 4.0, 6.0, 6.0]


def test_the_jitter_is_a_quarter_at_most_and_differs() -> None:
    delays = []
    for seed in range(200):
        delay = Backoff(first_seconds=1.0, chance=random.Random(seed)).next_delay_seconds()
        assert delay is not None
        delays.append(delay)
    assert 0.75 <= min(delays) < 0.8
    assert 1.2 < max(delays) <= 1.25


def test_the_limit_counts_attempts_in_a_row() -> None:
    backoff = Backoff(2)
    assert backoff.next_delay_seconds() is not None
    assert backoff.next_delay_seconds() is not None
    assert backoff.next_delay_seconds() is None
    backoff.succeeded()
    assert backoff.attempts == 0
    assert backoff.next_delay_seconds() is not None


def test_a_limit_of_zero_never_tries() -> None:
    assert Backoff(0).next_delay_seconds() is None


@pytest.mark.parametrize(("held_seconds", "next_delay"), [(1.0, 2.0), (60.0, 0.5)])
def test_only_a_connection_that_held_brings_short_delays_back(held_seconds: float, next_delay: float) -> None:
    backoff = Backoff(first_seconds=0.5, longest_seconds=10.0, chance=NoJitter())
    backoff.next_delay_seconds()
    backoff.next_delay_seconds()
    backoff.succeeded()
    backoff.lost(after_seconds=held_seconds)
    assert backoff.next_delay_seconds() == next_delay


def test_years_of_attempts_do_not_overflow() -> None:
    backoff = Backoff(longest_seconds=10.0, chance=NoJitter())
    assert [backoff.next_delay_seconds() for _ in range(5000)][-1] == 10.0
