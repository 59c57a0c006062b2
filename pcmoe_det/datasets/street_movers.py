"""What moves: one record per vehicle or person, and the models that they are dressed in."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from pcmoe_det.datasets.street_buses import make_bus
from pcmoe_det.datasets.street_cars import make_car
from pcmoe_det.datasets.street_mesh import Mesh
from pcmoe_det.datasets.street_people import make_pedestrian
from pcmoe_det.datasets.street_riders import make_bicycle, make_motorcycle
from pcmoe_det.datasets.street_strokes import StrokeModel
from pcmoe_det.datasets.street_trucks import make_truck

__all__ = ["BICYCLE", "BUS", "CAR", "MOTORCYCLE", "PEDESTRIAN", "TRUCK", "Mover", "MoverFactory"]

PEDESTRIAN, CAR, TRUCK, BUS, MOTORCYCLE, BICYCLE = range(6)
"""Class ids: indices into ``SHIFT_CLASSES``."""

_MAKERS: tuple[Callable[[np.random.Generator], Mesh | StrokeModel], ...] = (
    make_pedestrian, make_car, make_truck, make_bus, make_motorcycle, make_bicycle,
)  # fmt: skip
_PALETTE_SIZES = (14, 12, 6, 5, 5, 5)


@dataclass(slots=True)
class Mover:
    """Anything with a label.

    Attributes:
        track_id: Constant over the shot, from 1.
        class_id: Index into ``SHIFT_CLASSES``.
        model: What it looks like.
        x: World position of its middle, metres.
        z: World position of its middle, metres.
        heading: Radians to the right of +Z.
        speed: Metres per second.
        cruise: Speed it would like.
        lane: Key of its lane, or -1 for people.
        phase: Cycles of steps, wheels or pedals.
        braking: Whether its brake lamps shine.
        goal_x: People only: X they are walking to across the road, NaN when along it.
        patience: People only: seconds they go on standing.
    """

    track_id: int
    class_id: int
    model: Mesh | StrokeModel
    x: float
    z: float
    heading: float
    speed: float
    cruise: float
    lane: int = -1
    phase: float = 0.0
    braking: bool = False
    goal_x: float = math.nan
    patience: float = 0.0

    @property
    def length(self) -> float:
        """Metres along its heading."""
        return self.model.size[0]


class MoverFactory:
    """Makes movers, each with a track id of its own.

    A few models per class are in use at a time; one is exchanged now and then, so that the mix of looks
    drifts over a shot.

    Args:
        seed: Of the models.
    """

    def __init__(self, seed: int) -> None:
        self._seed = seed
        self._counts = [0] * 6
        self._next_id = 1
        self._models: list[list[Mesh | StrokeModel]] = [[] for _ in range(6)]

    def _make(self, class_id: int) -> Mesh | StrokeModel:
        rng = np.random.default_rng([self._seed, class_id, self._counts[class_id]])
        self._counts[class_id] += 1
        return _MAKERS[class_id](rng)

    def _pick(self, class_id: int, rng: np.random.Generator) -> Mesh | StrokeModel:
        models = self._models[class_id]
        if (len(models) < _PALETTE_SIZES[class_id] and rng.random() < 0.7) or not models:
            models.append(self._make(class_id))
            return models[-1]
        index = int(rng.integers(len(models)))
        if rng.random() < 0.12:
            models[index] = self._make(class_id)
        return models[index]

    def new(
        self,
        class_id: int,
        rng: np.random.Generator,
        *,
        lane: int = -1,
        x: float = 0.0,
        z: float = 0.0,
        heading: float = 0.0,
    ) -> Mover:
        """A mover of ``class_id`` at ``(x, z)`` metres; ``rng`` chooses its look."""
        phase = float(rng.random())
        mover = Mover(
            self._next_id, class_id, self._pick(class_id, rng), x, z, heading, 0.0, 0.0, lane, phase
        )
        self._next_id += 1
        return mover
