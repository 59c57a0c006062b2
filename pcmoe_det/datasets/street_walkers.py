"""People on foot: along the pavements, standing, and across the road when they may."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from pcmoe_det.datasets.street_layout import StreetLayout
from pcmoe_det.datasets.street_movers import PEDESTRIAN, Mover, MoverFactory

__all__ = ["Walkers"]

_AHEAD_METRES, _BEHIND_METRES = 105.0, 14.0


class Walkers:
    """The people near the camera; as many as the place usually has.

    Args:
        seed: Of their choices.
        layout: The street.
        density: Factor on their number.
        factory: Makes them.
    """

    def __init__(self, seed: int, *, layout: StreetLayout, density: float, factory: MoverFactory) -> None:
        self._rng = np.random.default_rng([seed, 12])
        self._layout, self._factory = layout, factory
        usual = {"city": 15, "shops": 22, "suburb": 8, "park": 10, "highway": 2}[layout.environment]
        self._target = max(1, round(usual * density * self._rng.uniform(0.6, 1.3)))
        self.people: list[Mover] = []

    def populate(self, camera_z: float) -> None:
        """Put the first people beside the road ahead of ``camera_z``."""
        for _ in range(self._target):
            self._add_person(camera_z + float(self._rng.uniform(-5, _AHEAD_METRES)))

    def renew(self, camera_z: float, *, standing: bool) -> None:
        """Forget who is out of range and let others come; ``standing`` says the camera does not drive."""
        first, last = camera_z - _BEHIND_METRES, camera_z + _AHEAD_METRES
        self.people = [p for p in self.people if first - 3 < p.z < last + 3]
        while len(self.people) < self._target:
            at_far = self._rng.random() < 0.75
            person = self._add_person(last if at_far else first + 1)
            person.patience = 0.0
            if standing:
                person.heading = math.pi if at_far else 0.0

    def _add_person(self, z: float) -> Mover:
        rng, layout = self._rng, self._layout
        side = 1 if rng.random() < 0.5 else -1
        x = side * (layout.kerb_x + float(rng.uniform(1.1, max(1.3, layout.pavement_width - 0.4))))
        person = self._factory.new(PEDESTRIAN, rng, x=x, z=z, heading=0.0 if rng.random() < 0.5 else math.pi)
        person.cruise = float(rng.uniform(0.9, 1.7))
        person.speed = person.cruise
        if rng.random() < 0.12:
            person.patience = float(rng.uniform(5, 40))
            person.heading = float(rng.uniform(0, 2 * math.pi))
        self.people.append(person)
        return person

    def step(
        self, seconds: float, *, side_green: Callable[[int], bool], danger: Callable[[float], bool]
    ) -> None:
        """Walk on for ``seconds``; ``side_green`` by side street, ``danger`` by Z on the main road."""
        layout, rng = self._layout, self._rng
        for person in self.people:
            if person.patience > 0:
                person.patience -= seconds
                person.speed = 0.0
                if person.patience <= 0:
                    person.heading = 0.0 if rng.random() < 0.5 else math.pi
                continue
            person.speed = person.cruise
            if not math.isnan(person.goal_x):
                self._cross(person, seconds, side_green, danger)
            else:
                before = person.z
                person.z += math.cos(person.heading) * person.speed * seconds
                self._consider_crossing(person, before)
            # One cycle of PHASES poses is two steps, about 1.45 m.
            person.phase += person.speed * seconds / (0.85 * person.model.size[1])
        if layout.environment == "highway":
            return
        for person in self.people:  # now and then somebody crosses between junctions
            if math.isnan(person.goal_x) and rng.random() < 0.004 * seconds * 10 / max(1, len(self.people)):
                person.goal_x = -math.copysign(layout.kerb_x + 1.5, person.x)

    def _consider_crossing(self, person: Mover, before: float) -> None:
        layout = self._layout
        if not layout.side_half_width:
            return
        block = layout.block_metres
        nearest = round(person.z / block) * block
        for place in (nearest - layout.side_half_width - 2.1, nearest + layout.side_half_width + 2.1):
            if (before - place) * (person.z - place) <= 0 and before != person.z and self._rng.random() < 0.4:
                person.z = place + float(self._rng.uniform(-1.0, 1.0))
                person.goal_x = -math.copysign(abs(person.x), person.x)
                return

    def _cross(
        self,
        person: Mover,
        seconds: float,
        side_green: Callable[[int], bool],
        danger: Callable[[float], bool],
    ) -> None:
        layout = self._layout
        side = math.copysign(1.0, person.goal_x)
        at_kerb = (
            abs(person.x) < layout.kerb_x + 0.7
            and person.x * side < 0
            and abs(person.x) > layout.kerb_x + 0.2
        )
        crossing = round(person.z / layout.block_metres)
        at_zebra = abs(person.z - crossing * layout.block_metres) < layout.side_half_width + 4.5
        waits = at_zebra and layout.side_half_width > 0 and not side_green(crossing)
        person.heading = side * math.pi / 2
        if at_kerb and (waits or danger(person.z)):
            person.speed = 0.0
            return
        person.x += side * person.speed * seconds
        if (person.goal_x - person.x) * side <= 0:
            person.goal_x = math.nan
            person.heading = 0.0 if self._rng.random() < 0.5 else math.pi
