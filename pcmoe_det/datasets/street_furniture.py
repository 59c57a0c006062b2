"""Things that stand beside the road and are no objects to be found: lamps, signals, signs, trees.

They are placed by hashing their position, so nothing has to be remembered while the camera drives on.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pcmoe_det.datasets.street_layout import StreetLayout
from pcmoe_det.datasets.street_strokes import PHASES, StrokeModel, stroke_model

__all__ = ["Furniture", "Standing", "stable_random"]

Rows = list[tuple[tuple[float, float, float], tuple[float, float, float], float, tuple[float, float, float]]]


def stable_random(seed: int, *place: int) -> float:
    """A number in [0, 1) that depends on ``seed`` and ``place`` only."""
    value = seed & 0xFFFFFFFF
    for part in place:
        value = (value ^ (part & 0xFFFFFFFF)) * 0x9E3779B1 & 0xFFFFFFFF
        value ^= value >> 15
        value = value * 0x85EBCA77 & 0xFFFFFFFF
        value ^= value >> 13
    return value / 4294967296.0


def _model(rows: Rows, size: tuple[float, float, float], glows: dict[int, int] | None = None) -> StrokeModel:
    joints = np.array([r[0] for r in rows] + [r[1] for r in rows], np.float64)
    marks = np.zeros(len(rows), np.int64)
    for index, kind in (glows or {}).items():
        marks[index] = kind
    return stroke_model(
        np.broadcast_to(joints, (PHASES, *joints.shape)), np.array([r[2] for r in rows], np.float64),
        np.array([r[3] for r in rows], np.float64), marks, size,
    )  # fmt: skip


def _lamp(rng: np.random.Generator) -> StrokeModel:
    tone = float(rng.uniform(60, 130))
    grey = (tone, tone, tone)
    height, reach = float(rng.uniform(6.0, 8.5)), 1.6
    return _model(
        [
            ((0, 0, 0), (0, 1.0, 0), 0.2, grey),
            ((0, 1.0, 0), (0, height - 0.6, 0), 0.13, grey),
            ((0, height - 0.6, 0), (0, height, -0.5), 0.1, grey),
            ((0, height, -0.5), (0, height + 0.1, -reach), 0.09, grey),
            ((0, height + 0.06, -reach), (0, height + 0.06, -reach - 0.45), 0.2, (110.0, 112.0, 114.0)),
            ((0, height + 0.02, -reach - 0.1), (0, height + 0.02, -reach - 0.4), 0.12, (215.0, 225.0, 230.0)),
        ],
        (0.5, height, 2.0),
        {5: 3},
    )


def _signal(state: int) -> StrokeModel:
    """Traffic light; ``state`` 0 shows green, 1 amber, 2 red. It faces against its heading."""
    dark = (22.0, 22.0, 24.0)
    lit = [(60.0, 220.0, 80.0), (40.0, 190.0, 250.0), (60.0, 50.0, 245.0)]
    off = [(30.0, 50.0, 32.0), (28.0, 46.0, 54.0), (28.0, 26.0, 60.0)]
    rows: Rows = [((0, 0, 0), (0, 3.2, 0), 0.13, (64.0, 66.0, 68.0)), ((0, 2.45, 0), (0, 3.2, 0), 0.34, dark)]
    for index in range(3):
        colour = lit[index] if index == state else off[index]
        y = 2.5 + 0.32 * index
        rows.append(((-0.2, y, 0), (-0.2, y, 0), 0.22, colour))
    return _model(rows, (0.4, 3.4, 0.4), {2 + state: 4 + state})


def _sign(rng: np.random.Generator) -> StrokeModel:
    kind = int(rng.integers(4))
    pole: Rows = [((0, 0, 0), (0, 2.3, 0), 0.07, (150.0, 152.0, 154.0))]
    if kind == 0:  # round, red rim
        pole += [
            ((-0.05, 2.4, 0), (-0.05, 2.4, 0), 0.62, (40.0, 36.0, 190.0)),
            ((-0.08, 2.4, 0), (-0.08, 2.4, 0), 0.44, (230.0, 232.0, 232.0)),
            ((-0.1, 2.32, 0), (-0.1, 2.48, 0), 0.08, (30.0, 30.0, 30.0)),
        ]
    elif kind == 1:  # blue board
        pole += [
            ((-0.05, 2.3, -0.16), (-0.05, 2.3, 0.16), 0.42, (180.0, 100.0, 30.0)),
            ((-0.08, 2.3, -0.1), (-0.08, 2.3, 0.1), 0.1, (230.0, 232.0, 232.0)),
        ]
    elif kind == 2:  # direction board
        pole += [
            ((-0.05, 2.5, -0.7), (-0.05, 2.5, 0.7), 0.5, (70.0, 110.0, 40.0)),
            ((-0.08, 2.55, -0.6), (-0.08, 2.55, 0.5), 0.08, (226.0, 230.0, 230.0)),
            ((-0.08, 2.4, -0.6), (-0.08, 2.4, 0.1), 0.08, (226.0, 230.0, 230.0)),
        ]
    else:  # yellow diamond
        pole += [
            ((-0.05, 2.2, 0), (-0.05, 2.6, 0), 0.3, (40.0, 190.0, 235.0)),
            ((-0.05, 2.4, -0.2), (-0.05, 2.4, 0.2), 0.3, (40.0, 190.0, 235.0)),
        ]
    return _model(pole, (0.3, 2.7, 0.6))


def _bin(rng: np.random.Generator) -> StrokeModel:
    b, g, r = (float(c) for c in rng.uniform(20, 110, 3))
    rows: Rows = [
        ((0, 0.25, 0), (0, 0.85, 0), 0.5, (b, g, r)),
        ((0, 0.95, 0), (0, 0.97, 0), 0.42, (b * 0.7, g * 0.7, r * 0.7)),
    ]
    return _model(rows, (0.5, 1.0, 0.5))


def _bollard(rng: np.random.Generator) -> StrokeModel:
    tone = float(rng.uniform(40, 110))
    rows: Rows = [
        ((0, 0.05, 0), (0, 0.85, 0), 0.16, (tone, tone, tone)),
        ((0, 0.72, 0), (0, 0.76, 0), 0.17, (220.0, 222.0, 222.0)),
    ]
    return _model(rows, (0.2, 0.95, 0.2))


def _key(code: int, index: int, side: int) -> int:
    """A number below 0 for a standing thing; movers have numbers above."""
    return -(((index + 1_000_000) * 2 + (side > 0)) * 64 + code) - 1


@dataclass(frozen=True, slots=True, eq=False)
class Standing:
    """One thing at its place; ``tree`` is an index of a tree picture, or -1 for ``model``."""

    x: float
    z: float
    heading: float
    model: StrokeModel | None
    tree: int
    height: float
    key: int


class Furniture:
    """Lists what stands in a range of the road.

    Args:
        rng: Source of the looks.
        seed: Of the places.
        layout: The street.
        tree_kinds: Number of tree pictures to choose from.
        clear_x: X of a standing camera, before which nothing must stand close; or None.
    """

    def __init__(
        self,
        rng: np.random.Generator,
        *,
        seed: int,
        layout: StreetLayout,
        tree_kinds: int,
        clear_x: float | None,
    ) -> None:
        self._layout, self._seed, self._tree_kinds = layout, seed, tree_kinds
        self._lamp = _lamp(rng)
        self._signals = [_signal(state) for state in range(3)]
        self._small = [_sign(rng), _sign(rng), _bin(rng), _bollard(rng), _sign(rng)]
        count = max(1, round(layout.block_metres / layout.lamp_spacing))
        self._lamp_step = layout.block_metres / count
        self._clear_x = clear_x
        self._listed: list[Standing] = []
        self._listed_for: tuple[float, float, tuple[tuple[int, int], ...]] | None = None
        self._back_trees = layout.environment in ("suburb", "park", "highway")

    def _clear_of_crossing(self, z: float, margin: float) -> bool:
        layout = self._layout
        if not layout.side_half_width:
            return True
        away = abs(z - round(z / layout.block_metres) * layout.block_metres)
        return away > layout.side_half_width + margin

    def _in_the_way(self, x: float, z: float, camera_z: float) -> bool:
        """Whether something at ``(x, z)`` would fill the picture of a standing camera."""
        return self._clear_x is not None and abs(x - self._clear_x) < 9.0 and abs(z - camera_z) < 22.0

    def between(self, first: float, last: float, signal_states: dict[int, int]) -> list[Standing]:
        """What stands from Z ``first`` to ``last``; ``signal_states`` by side street (2 is red)."""
        # Listed a little at a time: most frames move by less than a metre.
        first = math.floor(first / 3.0) * 3.0
        last = math.ceil(last / 3.0) * 3.0
        key = (first, last, tuple(signal_states.items()))
        if key != self._listed_for:
            self._listed, self._listed_for = self._list(first, last, signal_states), key
        return self._listed

    def _list(self, first: float, last: float, signal_states: dict[int, int]) -> list[Standing]:
        layout = self._layout
        found: list[Standing] = []
        camera_z = first + 12.0
        step = self._lamp_step
        for index in range(math.ceil(first / step), math.floor(min(last, first + 130.0) / step) + 1):
            for side, shift in ((1, 0.5), (-1, 0.0)):
                z = (index + shift) * step
                if self._clear_of_crossing(z, 0.8):
                    x = side * (layout.kerb_x + 0.5)
                    found.append(
                        Standing(
                            x, z, 0.0 if side > 0 else math.pi, self._lamp, -1, 8.0, _key(1, index, side)
                        )
                    )
        for crossing, state in signal_states.items():
            reach = layout.side_half_width + 4.4
            for side in (1, -1):
                z = crossing * layout.block_metres - side * reach
                if first < z < last:
                    heading = 0.0 if side > 0 else math.pi
                    found.append(
                        Standing(
                            side * (layout.kerb_x + 0.6),
                            z,
                            heading,
                            self._signals[state],
                            -1,
                            3.4,
                            _key(2, crossing, side),
                        )
                    )
        self._add_small(found, first, min(last, first + 75.0))
        self._add_trees(found, first, last)
        return [s for s in found if not self._in_the_way(s.x, s.z, camera_z)]

    def _add_small(self, found: list[Standing], first: float, last: float) -> None:
        layout, step = self._layout, 11.0
        for index in range(math.ceil(first / step), math.floor(last / step) + 1):
            for side in (1, -1):
                chance = stable_random(self._seed, 3, index, side)
                z = (index + 0.7 * stable_random(self._seed, 4, index, side)) * step
                if chance < 0.45 and self._clear_of_crossing(z, 1.0):
                    model = self._small[int(chance / 0.45 * len(self._small))]
                    heading = 0.0 if side > 0 else math.pi
                    found.append(
                        Standing(
                            side * (layout.kerb_x + 0.55), z, heading, model, -1, 2.7, _key(3, index, side)
                        )
                    )

    def _add_trees(self, found: list[Standing], first: float, last: float) -> None:
        layout = self._layout
        rows: list[tuple[float, float, int]] = []
        if layout.tree_spacing:
            rows.append((layout.tree_spacing, layout.kerb_x + 1.0, 5))
        if self._back_trees:
            rows += [(10.0, layout.wall_x + 5.0, 6), (15.0, layout.wall_x + 16.0, 7)]
        for step, x, code in rows:
            end = last if code == 5 else min(last, first + 100.0)
            for index in range(math.ceil(first / step), math.floor(end / step) + 1):
                for side in (1, -1):
                    chance = stable_random(self._seed, code, index, side)
                    z = (index + 0.5 * stable_random(self._seed, code + 20, index, side)) * step
                    if chance > 0.78 or not self._clear_of_crossing(z, 3.0):
                        continue
                    kind = int(chance / 0.78 * self._tree_kinds)
                    height = 4.0 + 6.0 * stable_random(self._seed, code + 40, index, side)
                    spread = 0.0 if code == 5 else 5.0 * stable_random(self._seed, code + 60, index, side)
                    found.append(
                        Standing(side * (x + spread), z, 0.0, None, kind, height, _key(code, index, side))
                    )
