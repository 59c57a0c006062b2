"""Cameras that go on sending the same picture."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pcmoe_det.streaming.frozen import FrozenWatch


def _image(value: int) -> np.ndarray:
    return np.full((48, 64, 3), value, np.uint8)


def test_the_alarm_comes_after_the_time_and_then_ever_later() -> None:
    watch = FrozenWatch(10.0)
    alarms = [second for second in range(200) if watch.alarm(_image(1), float(second))]
    assert alarms == [10, 30, 70, 150]
    assert (watch.episodes, watch.is_frozen) == (1, True)


def test_a_change_ends_the_episode_and_the_next_one_counts_anew() -> None:
    watch = FrozenWatch(3.0)
    values = [1, 1, 1, 1, 2, 2, 2, 3, 3, 3, 3]
    alarms = [second for second, value in enumerate(values) if watch.alarm(_image(value), float(second))]
    assert alarms == [3, 10]
    assert watch.episodes == 2


def test_one_pixel_of_the_grid_is_a_change() -> None:
    watch = FrozenWatch(1.0)
    changed = _image(1)
    changed[16, 32, 2] += 1
    assert not watch.alarm(_image(1), 0.0)
    assert not watch.alarm(changed, 5.0)


def test_another_size_is_a_change() -> None:
    watch = FrozenWatch(1.0)
    watch.alarm(_image(1), 0.0)
    assert not watch.alarm(np.full((64, 48, 3), 1, np.uint8), 5.0)


def test_what_it_compares_with_is_its_own_copy() -> None:
    watch = FrozenWatch(1.0)
    image = _image(1)
    watch.alarm(image, 0.0)
    image += 1  # a driver that reuses its buffer
    assert not watch.alarm(image, 5.0)


@pytest.mark.parametrize("size", [1, 7])
def test_tiny_pictures_are_compared_too(size: int) -> None:
    watch = FrozenWatch(1.0)
    watch.alarm(np.zeros((size, size, 3), np.uint8), 0.0)
    assert not watch.alarm(np.ones((size, size, 3), np.uint8), 2.0)
    assert watch.alarm(np.ones((size, size, 3), np.uint8), 4.0)


def test_it_can_be_switched_off() -> None:
    watch = FrozenWatch(math.inf)
    assert not any(watch.alarm(_image(1), second * 1e6) for second in range(50))


def test_after_a_reconnection_the_picture_gets_the_whole_time_to_change() -> None:
    watch = FrozenWatch(3.0)
    times = [0.0, 3.0, 50.0, 55.0, 56.0]
    alarms = [at for at in times if watch.alarm(_image(1), at, anew=at == 50.0)]
    assert alarms == [3.0, 56.0]  # in the same episode twice as late
    assert watch.episodes == 1
