"""Models of cars: hatchbacks, saloons, estates, off-roaders, vans, pickups, taxis."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_mesh import Material, Mesh, MeshBuilder

__all__ = ["CAR_PAINTS", "add_plate", "make_car", "paint_colour"]

FloatArray = NDArray[np.float64]

CAR_PAINTS = (
    ((228, 228, 226), 0.20), ((30, 30, 32), 0.17), ((112, 112, 110), 0.13), ((178, 180, 180), 0.13),
    ((120, 66, 34), 0.10), ((38, 36, 150), 0.09), ((64, 58, 52), 0.06), ((150, 170, 186), 0.04),
    ((62, 84, 46), 0.03), ((50, 170, 220), 0.02), ((30, 90, 190), 0.015), ((160, 130, 60), 0.015),
)  # fmt: skip
"""Paints (BGR) and how often they are seen."""

_GLASS = (46, 42, 38)
_DARK = (22, 22, 24)
_LAMP = (224, 226, 228)
_TAIL = (32, 28, 150)


def paint_colour(rng: np.random.Generator) -> tuple[float, float, float]:
    """A paint as cars have them, BGR, with its own small deviation."""
    weights = np.array([w for _, w in CAR_PAINTS])
    base = np.array(CAR_PAINTS[rng.choice(len(CAR_PAINTS), p=weights / weights.sum())][0], np.float64)
    b, g, r = np.clip(base * rng.uniform(0.8, 1.15) + rng.uniform(-12, 12, 3), 8, 240)
    return float(b), float(g), float(r)


@dataclass(frozen=True, slots=True)
class _Shape:
    """Side view of a car in fractions of its length (from the front) and metres of height."""

    length: tuple[float, float]
    width: tuple[float, float]
    height: tuple[float, float]
    belt: float
    hood: float
    screen: float
    roof_start: float
    roof_end: float
    rear_screen: float
    boot: float


_SHAPES: dict[str, _Shape] = {
    "hatch": _Shape((3.6, 4.3), (1.66, 1.82), (1.42, 1.54), 0.60, 0.86, 0.24, 0.42, 0.88, 0.985, 0.97),
    "saloon": _Shape((4.4, 5.0), (1.76, 1.9), (1.38, 1.5), 0.60, 0.86, 0.28, 0.44, 0.72, 0.86, 0.96),
    "estate": _Shape((4.4, 4.9), (1.76, 1.88), (1.44, 1.56), 0.60, 0.86, 0.27, 0.42, 0.93, 0.985, 0.98),
    "suv": _Shape((4.2, 4.9), (1.8, 2.0), (1.62, 1.86), 0.60, 0.90, 0.26, 0.40, 0.92, 0.985, 0.99),
    "van": _Shape((4.4, 5.3), (1.8, 2.02), (1.8, 2.15), 0.56, 0.88, 0.14, 0.30, 0.975, 0.995, 1.0),
    "coupe": _Shape((4.0, 4.6), (1.74, 1.9), (1.25, 1.36), 0.62, 0.84, 0.31, 0.48, 0.68, 0.92, 0.97),
    "pickup": _Shape((4.9, 5.6), (1.82, 2.02), (1.7, 1.88), 0.60, 0.90, 0.26, 0.38, 0.58, 0.62, 0.98),
}


def add_plate(
    mesh: MeshBuilder, face: FloatArray, window: tuple[float, float, float, float], rng: np.random.Generator
) -> None:
    """A number plate with strokes for letters."""
    u0, v0, u1, v1 = window
    ground = (70, 200, 225) if rng.random() < 0.25 else (222, 226, 226)
    mesh.inset(face, window, ground, Material.MATTE, 1)
    step = (u1 - u0) / 8
    for index in range(1, 7):
        if index != 3:
            u = u0 + step * (index + 0.1)
            mesh.inset(
                face,
                (u, v0 + (v1 - v0) * 0.22, u + step * 0.6, v1 - (v1 - v0) * 0.22),
                _DARK,
                Material.MATTE,
                2,
            )


def _lower_body(
    mesh: MeshBuilder, shape: _Shape, size: tuple[float, float, float], paint: tuple[float, ...]
) -> tuple[FloatArray, FloatArray]:
    """Sides, bonnet, boot, ends; returns front and rear faces."""
    length, height, width = size
    belt = shape.belt * height
    clearance = 0.13 * height
    crease = clearance + 0.55 * (belt - clearance)
    nose_y, hood_y, tail_y = 0.72 * belt * shape.hood + 0.08, belt * shape.hood, belt * shape.boot
    stations = [
        (0.0, nose_y, 0.80),
        (0.035, hood_y * 0.93, 0.92),
        (0.10, hood_y * 0.97, 0.985),
        (shape.screen, belt, 1.0),
        (0.55, belt * 1.01, 1.0),
        (shape.rear_screen, belt, 0.99),
        (0.965, tail_y * 0.985, 0.94),
        (1.0, tail_y * 0.86, 0.84),
    ]
    stations = sorted(stations)
    rows = [(length * (0.5 - f), y, w * width / 2) for f, y, w in stations]
    low = [c * 0.78 for c in paint]
    for (a0, t0, w0), (a1, t1, w1) in pairwise(rows):
        for side in (-1, 1):
            bottom = [(a0, clearance, side * w0 * 0.95), (a1, clearance, side * w1 * 0.95)]
            middle = [(a1, crease, side * w1), (a0, crease, side * w0)]
            mesh.face([*bottom, *middle], low)
            mesh.face(
                [
                    (a0, crease, side * w0),
                    (a1, crease, side * w1),
                    (a1, t1, side * w1 * 0.94),
                    (a0, t0, side * w0 * 0.94),
                ],
                paint,
            )
        mesh.face(
            [(a0, t0, -w0 * 0.94), (a0, t0, w0 * 0.94), (a1, t1, w1 * 0.94), (a1, t1, -w1 * 0.94)], paint
        )
    (af, tf, wf), (ar, tr, wr) = rows[0], rows[-1]
    front = mesh.face(
        [(af, clearance, -wf), (af, clearance, wf), (af, tf, wf * 0.96), (af, tf, -wf * 0.96)], paint
    )
    rear = mesh.face(
        [(ar, clearance, -wr), (ar, clearance, wr), (ar, tr, wr * 0.96), (ar, tr, -wr * 0.96)], paint
    )
    for side in (-1, 1):  # sill
        sill_b = side * width / 2 * 0.965
        mesh.face(
            [
                (length * 0.3, clearance, sill_b),
                (-length * 0.28, clearance, sill_b),
                (-length * 0.28, clearance * 1.5, sill_b),
                (length * 0.3, clearance * 1.5, sill_b),
            ],
            _DARK,
            Material.MATTE,
            1,
        )
    return front, rear


def _ends(
    mesh: MeshBuilder, front: FloatArray, rear: FloatArray, rng: np.random.Generator, paint: tuple[float, ...]
) -> None:
    style = rng.random(4)
    lamp_v, lamp_u = 0.52 + 0.12 * style[0], 0.20 + 0.1 * style[1]
    mesh.inset(front, (0.0, 0.0, 1.0, 0.16), _DARK, Material.MATTE)
    mesh.inset(front, (0.12, 0.10, 0.88, 0.34), (34, 34, 36), Material.MATTE)
    mesh.inset(front, (0.30, lamp_v - 0.05, 0.70, 0.92), (30, 30, 32), Material.MATTE)
    for row in range(3):
        v = lamp_v + row * 0.1
        mesh.inset(front, (0.32, v, 0.68, v + 0.03), (150, 150, 150), Material.CHROME, 2)
    mesh.inset(front, (0.46, 0.72, 0.54, 0.86), (190, 190, 190), Material.CHROME, 1)
    for u in (0.01, 0.99 - lamp_u):
        mesh.inset(front, (u, lamp_v, u + lamp_u, 0.93), _LAMP, Material.HEAD_LAMP, 0)
        mesh.inset(
            front,
            (u + lamp_u * 0.35, lamp_v + 0.06, u + lamp_u * 0.75, 0.86),
            (120, 120, 122),
            Material.MATTE,
            2,
        )
    for u in (0.06, 0.84):
        mesh.inset(front, (u, 0.14, u + 0.1, 0.28), (170, 172, 175), Material.CHROME, 2)
    add_plate(mesh, front, (0.36, 0.30, 0.64, 0.42), rng)
    tail_v, tail_u = 0.5 + 0.14 * style[2], 0.16 + 0.16 * style[3]
    mesh.inset(rear, (0.0, 0.0, 1.0, 0.2), _DARK, Material.MATTE)
    mesh.inset(rear, (0.0, 0.34, 1.0, 0.37), [c * 0.5 for c in paint], Material.MATTE, 1)
    for u in (0.01, 0.99 - tail_u):
        mesh.inset(rear, (u, tail_v, u + tail_u, 0.95), _TAIL, Material.TAIL_LAMP, 0)
        mesh.inset(
            rear,
            (u + tail_u * 0.3, tail_v + 0.05, u + tail_u * 0.6, tail_v + 0.15),
            (190, 195, 210),
            Material.MATTE,
            2,
        )
    add_plate(mesh, rear, (0.36, 0.46, 0.64, 0.60), rng)
    mesh.inset(rear, (0.16, 0.03, 0.26, 0.1), (110, 110, 112), Material.CHROME, 2)


def _cabin(
    mesh: MeshBuilder,
    shape: _Shape,
    size: tuple[float, float, float],
    paint: tuple[float, ...],
    *,
    blind: bool,
) -> None:
    """Roof, pillars and glass."""
    length, height, width = size
    belt, base, roof = (
        shape.belt * height * 0.99,
        0.465 * width,
        0.375 * width if height < 1.75 else 0.42 * width,
    )
    a_screen, a_rear = length * (0.5 - shape.screen), length * (0.5 - shape.rear_screen)
    a_front, a_back = length * (0.5 - shape.roof_start), length * (0.5 - shape.roof_end)
    dip = height * 0.985
    screen = mesh.face(
        [(a_screen, belt, -base), (a_screen, belt, base), (a_front, dip, roof), (a_front, dip, -roof)], paint
    )
    rear = mesh.face(
        [(a_rear, belt, -base), (a_rear, belt, base), (a_back, dip, roof), (a_back, dip, -roof)], paint
    )
    mesh.inset(screen, (0.05, 0.05, 0.95, 0.93), _GLASS, Material.GLASS, 0)
    mesh.inset(screen, (0.08, 0.05, 0.46, 0.16), (20, 20, 20), Material.MATTE, 2)
    mesh.inset(rear, (0.07, 0.1, 0.93, 0.9), _GLASS, Material.GLASS, 0)
    for side in (-1, 1):
        panel = mesh.face(
            [
                (a_screen, belt, side * base),
                (a_rear, belt, side * base),
                (a_back, dip, side * roof),
                (a_front, dip, side * roof),
            ],
            paint,
        )
        spans = [(0.10, 0.44), (0.47, 0.74), (0.77, 0.95)] if length > 4.2 else [(0.10, 0.5), (0.54, 0.92)]
        for index, (u0, u1) in enumerate(spans):
            if blind and index > 0:
                continue
            mesh.inset(panel, (u0, 0.10, u1, 0.88), _GLASS, Material.GLASS, 0)
    middle = (a_front + a_back) / 2
    for a0, a1, y0, y1 in ((a_front, middle, dip, height), (middle, a_back, height, dip)):
        mesh.face([(a0, y0, -roof), (a0, y0, roof), (a1, y1, roof), (a1, y1, -roof)], paint)
    for side in (-1, 1):
        mesh.box((a_screen - 0.25, belt + 0.08, side * (base + 0.12)), (0.12, 0.13, 0.2), paint, detail=1)


def _doors(
    mesh: MeshBuilder, size: tuple[float, float, float], belt: float, paint: tuple[float, ...]
) -> None:
    length, height, width = size
    seam = [c * 0.45 for c in paint]
    for side in (-1, 1):
        b = side * width / 2 * 0.995
        for f in (0.02, -0.22, 0.24):
            a = f * length
            mesh.face(
                [
                    (a, 0.2 * height, b),
                    (a - 0.025, 0.2 * height, b),
                    (a - 0.025, belt * 0.97, b * 0.95),
                    (a, belt * 0.97, b * 0.95),
                ],
                seam,
                Material.MATTE,
                2,
            )
        for f in (-0.02, -0.26):
            a = f * length
            mesh.face(
                [
                    (a, belt * 0.86, b),
                    (a - 0.2, belt * 0.86, b),
                    (a - 0.2, belt * 0.89, b),
                    (a, belt * 0.89, b),
                ],
                [min(255.0, c * 0.6 + 30) for c in paint],
                Material.CHROME,
                2,
            )


def make_car(rng: np.random.Generator) -> Mesh:
    """A car drawn from ``rng``."""
    kind = str(rng.choice(list(_SHAPES), p=[0.26, 0.25, 0.12, 0.20, 0.08, 0.04, 0.05]))
    shape = _SHAPES[kind]
    length, width, height = (float(rng.uniform(*r)) for r in (shape.length, shape.width, shape.height))
    size = (length, height, width)
    paint = paint_colour(rng)
    taxi = kind == "saloon" and rng.random() < 0.15
    if taxi:
        paint = (40.0, 178.0, 226.0) if rng.random() < 0.6 else (226.0, 228.0, 228.0)
    mesh = MeshBuilder(length, height, width)
    mesh.group((0.0, 0.35 * height, 0.0))
    radius = 0.225 * height if kind != "van" else 0.17 * height
    axles = (0.30 * length, -0.29 * length)
    mesh.treads(axles, width / 2, radius)
    front, rear = _lower_body(mesh, shape, size, paint)
    _ends(mesh, front, rear, rng, paint)
    _doors(mesh, size, shape.belt * height, paint)
    rim = tuple(float(c) for c in np.full(3, rng.choice([60, 120, 165, 185])))
    for a in axles:
        mesh.wheel(a, width / 2 * 0.985, radius, rim)
    if kind == "pickup":
        bed = shape.belt * height
        mesh.face(
            [
                (-0.14 * length, bed, -0.42 * width),
                (-0.14 * length, bed, 0.42 * width),
                (-0.47 * length, bed, 0.42 * width),
                (-0.47 * length, bed, -0.42 * width),
            ],
            (34, 34, 36),
            Material.MATTE,
        )
    _cabin(mesh, shape, size, paint, blind=kind == "van" and rng.random() < 0.5)
    if taxi:
        mesh.box((0.0, height + 0.06, 0.0), (0.2, 0.14, 0.6), (120, 220, 240), Material.LIT_GLASS, 1)
    elif kind in ("suv", "estate") and rng.random() < 0.5:
        for side in (-1, 1):
            mesh.box(
                (-0.1 * length, height + 0.03, side * 0.32 * width),
                (0.4 * length, 0.05, 0.05),
                (40, 40, 42),
                Material.MATTE,
                1,
            )
    return mesh.build()
