"""Who moves through the street: vehicles that follow each other and obey lights, people, the own car.

The number of movers is bounded by the visible range, and a step costs the same however long the shot
is. Vehicles follow the Intelligent Driver Model (Treiber, Hennecke, Helbing: Congested traffic states
in empirical observations and microscopic simulations, Phys. Rev. E 62, 2000, eq. 3-4).
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pcmoe_det.datasets.street_layout import CameraMount, StreetLayout
from pcmoe_det.datasets.street_movers import BICYCLE, BUS, CAR, MOTORCYCLE, TRUCK, Mover, MoverFactory
from pcmoe_det.datasets.street_walkers import Walkers

__all__ = ["FAR_METRES", "Traffic"]

FAR_METRES = 165.0
"""Movers exist up to this distance along the road ahead of the camera."""

_BEHIND_METRES = 45.0
_SIDE_METRES = 46.0


@dataclass(slots=True)
class _Lane:
    """A lane along Z (``crossing`` None) or along X at the side street of index ``crossing``."""

    key: int
    direction: int
    offset: float
    crossing: int | None
    cycle: bool
    movers: list[Mover]
    next_gap: float = 10.0


class Traffic:
    """Everything that moves, and the camera's own vehicle.

    Args:
        seed: Of all its choices.
        layout: The street.
        mount: The camera.
        density: Factor on the number of movers.
    """

    def __init__(self, seed: int, *, layout: StreetLayout, mount: CameraMount, density: float) -> None:
        self.layout, self.mount, self.density = layout, mount, density
        self._rng = np.random.default_rng([seed, 11])
        self._factory = MoverFactory(seed)
        self.time = 0.0
        rng = self._rng
        self.camera_z = float(rng.uniform(0.2, 0.5)) * layout.block_metres
        highway = layout.environment == "highway"
        self._cruise = float(rng.uniform(20, 28) if highway else rng.uniform(8, 14))
        self._busy = float(rng.uniform(0.6, 1.5)) * density
        self._mix_phase, self._mix_period = rng.uniform(0, 2 * math.pi, 8), rng.uniform(50, 140, 8)
        self._light_cycle = float(rng.uniform(22, 34))
        self._walkers = Walkers(seed, layout=layout, density=density, factory=self._factory)
        self._lanes: dict[int, _Lane] = {}
        self._parked: dict[tuple[int, int, int], Mover] = {}
        self._ego: Mover | None = None
        self._make_lanes()
        self._populate()

    # -- what the renderer reads -------------------------------------------------------------------

    def movers(self) -> list[Mover]:
        """All movers but the camera's own vehicle."""
        found = [m for lane in self._lanes.values() for m in lane.movers if m is not self._ego]
        return found + self._walkers.people + list(self._parked.values())

    @property
    def ego_speed(self) -> float:
        """Metres per second; 0 for a roadside camera."""
        return self._ego.speed if self._ego is not None else 0.0

    @property
    def ego_x(self) -> float:
        """Lateral position of the camera, metres."""
        if self._ego is None:
            return self.mount.x
        return self.layout.lane_x(self.mount.lane) + 0.12 * math.sin(self.camera_z / 31.0)

    def green(self, crossing: int, *, main: bool) -> bool:
        """Whether the main road, or else the side street, may drive at side street ``crossing``."""
        return self._signal(crossing) == (0 if main else 2)

    # -- building ----------------------------------------------------------------------------------

    def _make_lanes(self) -> None:
        layout = self.layout
        for side in (1, -1):
            for lane in range(layout.lanes):
                self._add_lane(side, side * layout.lane_x(lane), None, cycle=False)
            if layout.environment != "highway" or self._rng.random() < 0.5:
                self._add_lane(side, side * layout.cycle_x, None, cycle=True)

    def _add_lane(self, direction: int, offset: float, crossing: int | None, *, cycle: bool) -> _Lane:
        key = max(self._lanes, default=-1) + 1
        lane = _Lane(key, direction, offset, crossing, cycle, [])
        lane.next_gap = self._gap(lane)
        self._lanes[key] = lane
        return lane

    def _gap(self, lane: _Lane) -> float:
        busy = self._busy * (
            1 + 0.5 * math.sin(self.time * 2 * math.pi / self._mix_period[6] + self._mix_phase[6])
        )
        mean = 30.0 / max(0.15, busy) * (1.9 if lane.cycle else 1.0)
        if lane.crossing is not None:
            mean *= 0.8
        return 5.0 + float(self._rng.exponential(mean))

    def _class_for(self, lane: _Lane) -> int:
        if lane.cycle:
            return BICYCLE
        base = np.array([0.0, 0.56, 0.15, 0.13, 0.16, 0.0])
        sway = np.sin(self.time * 2 * math.pi / self._mix_period[:6] + self._mix_phase[:6])
        weights = base * np.exp(0.9 * sway)
        return int(self._rng.choice(6, p=weights / weights.sum()))

    def _place(self, lane: _Lane, along: float) -> Mover:
        """New vehicle with its middle at ``along`` (world Z or X)."""
        class_id = self._class_for(lane)
        mover = self._factory.new(class_id, self._rng, lane=lane.key)
        slow = {TRUCK: 0.85, BUS: 0.8, BICYCLE: 0.42}.get(class_id, 1.0)
        limit = self._cruise if lane.crossing is None else 8.0
        if class_id == BICYCLE:
            limit = min(limit, 11.0)
        mover.cruise = limit * slow * float(self._rng.uniform(0.8, 1.18))
        mover.speed = mover.cruise * 0.8
        wobble = float(self._rng.uniform(-0.3, 0.3)) * (0.5 if class_id in (TRUCK, BUS, BICYCLE) else 1.0)
        if lane.crossing is None:
            mover.x, mover.z, mover.heading = (
                lane.offset + wobble,
                along,
                0.0 if lane.direction > 0 else math.pi,
            )
        else:
            mover.x, mover.z, mover.heading = along, lane.offset + wobble * 0.5, lane.direction * math.pi / 2
        lane.movers.append(mover)
        return mover

    def _populate(self) -> None:
        mount = self.mount
        if mount.kind == "dashcam":
            lane = self._lanes[mount.lane]
            ego = self._factory.new(CAR, self._rng, lane=lane.key)
            ego.x, ego.z, ego.cruise = lane.offset, self.camera_z - 0.4, self._cruise * 1.0
            ego.speed = ego.cruise * 0.7
            lane.movers.append(ego)
            self._ego = ego
        for lane in self._lanes.values():
            along = self.camera_z - _BEHIND_METRES + float(self._rng.uniform(0, 20))
            while along < self.camera_z + FAR_METRES:
                if not (
                    self._ego is not None and lane.key == self._ego.lane and abs(along - self._ego.z) < 14
                ):
                    self._place(lane, along)
                along += 8.0 + self._gap(lane)
        self._walkers.populate(self.camera_z)
        self._update_sides()

    # -- one step ----------------------------------------------------------------------------------

    def step(self, seconds: float) -> None:
        """Move everything by ``seconds``."""
        self.time += seconds
        in_road = [
            p
            for p in self._walkers.people
            if not math.isnan(p.goal_x) and abs(p.x) < self.layout.kerb_x + 0.4
        ]
        for lane in self._lanes.values():
            self._drive(lane, seconds, in_road)
        if self._ego is not None:
            self.camera_z = self._ego.z + 0.4
        self._walkers.step(seconds, side_green=lambda k: self.green(k, main=False), danger=self._danger)
        self._walkers.renew(self.camera_z, standing=self.ego_speed < 1.0)
        self._renew()

    def _signal(self, crossing: int) -> int:
        """0 main green, 1 and 3 all red, 2 side green."""
        cycle = self._light_cycle
        place = (self.time + 7.3 * (crossing % 5)) % cycle
        return 0 if place < 0.52 * cycle else 1 if place < 0.62 * cycle else 2 if place < 0.90 * cycle else 3

    def _obstacle(self, lane: _Lane, mover: Mover, in_road: list[Mover]) -> float:
        """Distance from the vehicle's front to whatever but a leader makes it stop; infinite if nothing."""
        layout, nearest = self.layout, math.inf
        front_shift = mover.length / 2
        if lane.crossing is None:
            front = mover.z + lane.direction * front_shift
            if layout.side_half_width:
                block, d = layout.block_metres, lane.direction
                clear = layout.side_half_width + 4.6
                crossing = (
                    math.ceil((front + clear) / block - 1e-6)
                    if d > 0
                    else math.floor((front - clear) / block + 1e-6)
                )
                away = d * (crossing * block - d * clear - front)
                stoppable = away > mover.speed**2 / 9.0 - 0.5
                if away > -0.5 and stoppable and not self.green(crossing, main=True):
                    nearest = min(nearest, away)
            for person in in_road:
                away = lane.direction * (person.z - front) - 1.2
                if -0.5 < away < 30 and abs(person.x - lane.offset) < 2.6:
                    nearest = min(nearest, away)
        else:
            front = mover.x + lane.direction * front_shift
            away = lane.direction * (-lane.direction * (layout.kerb_x + 3.4) - front)
            if (
                away > -0.5
                and away > mover.speed**2 / 9.0 - 0.5
                and not self.green(lane.crossing, main=False)
            ):
                nearest = away
            for person in self._walkers.people:
                gap = lane.direction * (person.x - front) - 0.8
                if -0.5 < gap < 12 and abs(person.z - lane.offset) < 2.2:
                    nearest = min(nearest, gap)
        return nearest

    def _danger(self, z: float) -> bool:
        """Whether somebody who steps onto the main road at ``z`` would be in a vehicle's way."""
        for lane in self._lanes.values():
            if lane.crossing is None:
                for mover in lane.movers:
                    arriving = lane.direction * (z - mover.z)
                    if -4 < arriving < 6 + 2.5 * mover.speed and mover.speed > 0.5:
                        return True
        return False

    def _drive(self, lane: _Lane, seconds: float, in_road: list[Mover]) -> None:
        along_z = lane.crossing is None
        d = lane.direction
        lane.movers.sort(key=lambda m: -d * (m.z if along_z else m.x))
        leader: Mover | None = None
        for mover in lane.movers:
            gap, approach = self._obstacle(lane, mover, in_road), mover.speed
            if leader is not None:
                between = d * ((leader.z - mover.z) if along_z else (leader.x - mover.x))
                free = between - (leader.length + mover.length) / 2
                if free < gap:
                    gap, approach = free, mover.speed - leader.speed
            limit = 1.6 if mover.class_id in (CAR, MOTORCYCLE) else 1.0
            wanted = 2.0 + max(0.0, 1.3 * mover.speed + mover.speed * approach / (2 * math.sqrt(limit * 2.5)))
            push = limit * (1 - (mover.speed / mover.cruise) ** 4 - (wanted / max(gap, 0.3)) ** 2)
            push = max(push, -7.0)
            mover.braking = push < -0.7 or mover.speed < 0.4
            mover.speed = max(0.0, mover.speed + push * seconds)
            step = min(mover.speed * seconds, max(0.0, gap - 0.4))
            if along_z:
                mover.z += d * step
            else:
                mover.x += d * step
            mover.phase += step / (2.1 if mover.class_id == MOTORCYCLE else 5.2)
            leader = mover

    # -- coming and going --------------------------------------------------------------------------

    def _renew(self) -> None:
        near, far = self.camera_z - _BEHIND_METRES, self.camera_z + FAR_METRES
        for lane in self._lanes.values():
            if lane.crossing is None:
                lane.movers = [m for m in lane.movers if near - 25 < m.z < far + 25 or m is self._ego]
                self._refill(lane, near, far)
            else:
                d = lane.direction
                lane.movers = [m for m in lane.movers if d * m.x < _SIDE_METRES + 8]
                last = min((d * m.x - m.length / 2 for m in lane.movers), default=math.inf)
                if last + _SIDE_METRES > lane.next_gap:
                    self._place(lane, -d * (_SIDE_METRES + 6))
                    lane.next_gap = self._gap(lane)
        self._update_sides()

    def _refill(self, lane: _Lane, near: float, far: float) -> None:
        d, ego = lane.direction, self.ego_speed
        typical = self._cruise * (0.42 if lane.cycle else 0.9) * d
        if typical - ego < 0.5:  # arrives from ahead
            edge = max((m.z + m.length / 2 for m in lane.movers), default=-math.inf)
            if far - edge > lane.next_gap:
                self._place(lane, far + 8)
                lane.next_gap = self._gap(lane)
        if typical - ego > -0.5:  # arrives from behind
            edge = min((m.z - m.length / 2 for m in lane.movers), default=math.inf)
            if edge - near > lane.next_gap:
                self._place(lane, near - 8)
                lane.next_gap = self._gap(lane)

    def _update_sides(self) -> None:
        """Lanes of side streets and parked cars exist only within the range."""
        layout, block = self.layout, self.layout.block_metres
        first, last = (
            math.floor((self.camera_z - 25) / block),
            math.ceil((self.camera_z + FAR_METRES) / block),
        )
        if layout.side_half_width:
            present = {lane.crossing for lane in self._lanes.values() if lane.crossing is not None}
            wanted = {k for k in range(first, last + 1) if -25 < k * block - self.camera_z < FAR_METRES}
            for key in [
                k
                for k, lane in self._lanes.items()
                if lane.crossing is not None and lane.crossing not in wanted
            ]:
                del self._lanes[key]
            for crossing in sorted(wanted - present):
                for direction in (1, -1):
                    # Traffic keeps to the right: towards +X it drives at the lower Z.
                    offset = crossing * block - direction * layout.side_half_width / 2
                    lane = self._add_lane(direction, offset, crossing, cycle=False)
                    if self._rng.random() < 0.7 * min(1.5, self._busy):
                        self._place(
                            lane, -direction * float(self._rng.uniform(layout.kerb_x + 9, _SIDE_METRES))
                        )
        if layout.parking_width:
            self._update_parked(first - 1, last)

    def _update_parked(self, first: int, last: int) -> None:
        layout, block = self.layout, self.layout.block_metres
        clear = layout.side_half_width + 9.0
        for key in [k for k, m in self._parked.items() if not -30 < m.z - self.camera_z < FAR_METRES]:
            del self._parked[key]
        slots = int((block - 2 * clear) / 6.0)
        for index in range(first, last + 1):
            for slot in range(slots):
                z = index * block + clear + 3.0 + slot * 6.0
                if not -30 < z - self.camera_z < FAR_METRES:
                    continue
                for side in (1, -1):
                    key = (index, slot, side)
                    # Which slots are taken must not depend on when they come into view: hash the place.
                    chance = (
                        math.sin(index * 12.9898 + slot * 78.233 + side * 37.719 + self._mix_phase[7])
                        * 43758.5453
                        % 1.0
                    )
                    if key not in self._parked and chance < 0.45 * min(1.4, self.density):
                        x = side * (layout.kerb_x - layout.parking_width / 2 + 0.1)
                        car = self._factory.new(
                            CAR, self._rng, x=x, z=z, heading=0.0 if side > 0 else math.pi
                        )
                        car.lane = -2
                        self._parked[key] = car
