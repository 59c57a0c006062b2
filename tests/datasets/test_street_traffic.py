"""Motion: vehicles keep apart, obey lights, and their number stays bounded in long shots."""

from __future__ import annotations

import math
from collections import defaultdict
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from pcmoe_det.datasets.street_layout import make_camera_mount, make_layout
from pcmoe_det.datasets.street_movers import PEDESTRIAN, Mover
from pcmoe_det.datasets.street_traffic import Traffic


def traffic(seed: int, kind: Any = "dashcam", density: float = 1.0) -> Traffic:
    rng = np.random.default_rng([seed, 1])
    layout = make_layout(rng)
    return Traffic(seed, layout=layout, mount=make_camera_mount(rng, layout, kind), density=density)


def by_lane(movers: list[Mover]) -> dict[int, list[Mover]]:
    lanes: dict[int, list[Mover]] = defaultdict(list)
    for mover in movers:
        if mover.lane >= 0:
            lanes[mover.lane].append(mover)
    return lanes


@pytest.mark.parametrize("seed", range(4))
def test_vehicles_do_not_drive_through_each_other(seed: int) -> None:
    street = traffic(seed, "roadside", 1.5)
    worst = math.inf
    for _ in range(600):
        street.step(0.1)
        for movers in by_lane(street.movers()).values():
            along = [(m.x if abs(math.sin(m.heading)) > 0.5 else m.z, m.length / 2) for m in movers]
            along.sort()
            for (place, half), (next_place, next_half) in pairwise(along):
                worst = min(worst, next_place - place - half - next_half)
    assert worst > -0.3


def test_crossing_vehicles_do_not_meet() -> None:
    """Nobody of the main road stands on the crossing while side traffic drives over it."""
    meetings = 0
    for seed in range(3):
        street = traffic(seed, "roadside")
        if not street.layout.side_half_width:
            continue
        for _ in range(500):
            street.step(0.1)
            vehicles = [m for m in street.movers() if m.lane >= 0]
            across = [
                m for m in vehicles if abs(math.sin(m.heading)) > 0.5 and abs(m.x) < street.layout.kerb_x
            ]
            for one in across:
                for other in vehicles:
                    if abs(math.sin(other.heading)) < 0.5:
                        apart_z = abs(one.z - other.z) - other.length / 2 - one.model.size[2] / 2
                        apart_x = abs(one.x - other.x) - one.length / 2 - other.model.size[2] / 2
                        meetings += apart_z < -0.5 and apart_x < -0.3
    assert meetings < 15


def test_long_shots_keep_their_size() -> None:
    street = traffic(3)
    counts, seen = [], set()
    for _ in range(3000):
        street.step(0.1)
        counts.append(len(street.movers()))
        seen.update(m.track_id for m in street.movers())
    assert max(counts) < 160
    assert min(counts[50:]) > 5
    assert len(seen) > 2 * max(counts)
    assert street.camera_z > 300


def test_people_walk_and_some_cross() -> None:
    on_road, furthest = 0, 0.0
    for seed in range(5):
        street = traffic(seed, "roadside")
        start = {m.track_id: m.z for m in street.movers() if m.class_id == PEDESTRIAN}
        for _ in range(600):
            street.step(0.1)
            people = [m for m in street.movers() if m.class_id == PEDESTRIAN]
            on_road += sum(abs(m.x) < street.layout.kerb_x for m in people)
            furthest = max([furthest, *(abs(m.z - start[m.track_id]) for m in people if m.track_id in start)])
    assert on_road > 50
    assert furthest > 20


def test_traffic_is_reproducible() -> None:
    def run() -> list[tuple[int, float, float]]:
        street = traffic(5)
        for _ in range(100):
            street.step(0.1)
        return [(m.track_id, m.x, m.z) for m in street.movers()]

    assert run() == run()
