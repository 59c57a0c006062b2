"""Models of lorries: box vans, tippers, tankers, articulated lorries, ambulances."""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_cars import add_plate, paint_colour
from pcmoe_det.datasets.street_mesh import Material, Mesh, MeshBuilder

__all__ = ["add_lamps", "fleet_paint", "make_truck"]

FloatArray = NDArray[np.float64]
Paint = tuple[float, float, float]

_GLASS = (44, 40, 36)
_DARK = (24, 24, 26)
_FLEET = (
    (226, 228, 228),
    (200, 120, 40),
    (40, 40, 170),
    (50, 150, 60),
    (40, 190, 225),
    (30, 110, 225),
    (130, 130, 132),
    (120, 70, 30),
)


def fleet_paint(rng: np.random.Generator) -> Paint:
    """A paint as firms have them on lorries and buses, BGR."""
    if rng.random() < 0.25:
        return paint_colour(rng)
    b, g, r = np.clip(np.array(_FLEET[rng.integers(len(_FLEET))]) * rng.uniform(0.8, 1.1), 10, 240)
    return float(b), float(g), float(r)


def add_lamps(mesh: MeshBuilder, face: FloatArray, *, front: bool, v: float = 0.12) -> None:
    """Two head or tail lamps on the quad ``face``, ``v`` of its height above its lower edge."""
    colour, material = ((224, 226, 228), Material.HEAD_LAMP) if front else ((32, 28, 150), Material.TAIL_LAMP)
    height = 0.08 if front else 0.07
    for u in (0.03, 0.83):
        mesh.inset(face, (u, v, u + 0.14, v + height), colour, material, 0)


def _cab(
    mesh: MeshBuilder,
    a_rear: float,
    length: float,
    height: float,
    width: float,
    paint: Paint,
    rng: np.random.Generator,
) -> None:
    """A driver's cab in front of ``a_rear``: sloped screen, doors, grille, bumper."""
    a0, a1, half = a_rear, a_rear + length, width / 2
    y0, sill, top = 0.5, 0.5 + 0.42 * (height - 0.5), height
    bonnet = 0.06 * length + float(rng.uniform(0.0, 0.2))
    mesh.group((a_rear + length / 2, height / 2, 0.0))
    front = mesh.face([(a1, y0, -half), (a1, y0, half), (a1, sill, half), (a1, sill, -half)], paint)
    screen = mesh.face(
        [
            (a1, sill, -half),
            (a1, sill, half),
            (a1 - bonnet, top, half * 0.95),
            (a1 - bonnet, top, -half * 0.95),
        ],
        paint,
    )
    mesh.face(
        [
            (a0, top, -half * 0.95),
            (a1 - bonnet, top, -half * 0.95),
            (a1 - bonnet, top, half * 0.95),
            (a0, top, half * 0.95),
        ],
        paint,
    )
    mesh.face([(a0, y0, -half), (a0, y0, half), (a0, top, half * 0.95), (a0, top, -half * 0.95)], paint)
    for side in (-1, 1):
        low = mesh.face(
            [(a0, y0, side * half), (a1, y0, side * half), (a1, sill, side * half), (a0, sill, side * half)],
            paint,
        )
        high = mesh.face(
            [
                (a0, sill, side * half),
                (a1, sill, side * half),
                (a1 - bonnet, top, side * half * 0.95),
                (a0, top, side * half * 0.95),
            ],
            paint,
        )
        mesh.inset(high, (0.30, 0.05, 0.92, 0.72), _GLASS, Material.GLASS, 0)
        mesh.inset(low, (0.26, 0.0, 0.28, 1.0), [c * 0.5 for c in paint], Material.MATTE, 2)
        mesh.inset(low, (0.30, 0.0, 0.90, 0.2), _DARK, Material.MATTE, 1)
        mesh.inset(low, (0.32, 0.78, 0.45, 0.84), (60, 60, 62), Material.CHROME, 2)
    mesh.inset(screen, (0.05, 0.06, 0.95, 0.74), _GLASS, Material.GLASS, 0)
    mesh.inset(screen, (0.0, 0.86, 1.0, 1.0), [c * 0.6 for c in paint], Material.PAINT, 1)
    mesh.inset(front, (0.0, 0.0, 1.0, 0.22), (52, 52, 54) if rng.random() < 0.6 else paint, Material.MATTE)
    mesh.inset(front, (0.2, 0.36, 0.8, 0.85), (36, 36, 38), Material.MATTE)
    for v in (0.44, 0.56, 0.68, 0.78):
        mesh.inset(front, (0.22, v, 0.78, v + 0.035), (120, 120, 122), Material.CHROME, 2)
    add_lamps(mesh, front, front=True, v=0.24)
    add_plate(mesh, front, (0.38, 0.06, 0.62, 0.18), rng)
    for side in (-1, 1):
        mesh.box(
            (a1 - 0.15, sill + 0.35 * (top - sill), side * (half + 0.16)),
            (0.12, 0.5, 0.2),
            _DARK,
            Material.MATTE,
            1,
        )


def _cargo_box(
    mesh: MeshBuilder,
    a_rear: float,
    length: float,
    base: float,
    height: float,
    width: float,
    rng: np.random.Generator,
) -> None:
    """A closed body with lettering, ribs and rear doors."""
    paint = fleet_paint(rng) if rng.random() < 0.55 else (224.0, 226.0, 226.0)
    mesh.group((a_rear + length / 2, base + height / 2, 0.0))
    sides = mesh.box((a_rear + length / 2, base + height / 2, 0.0), (length, height, width), paint)
    logo = fleet_paint(rng)
    band = rng.random(3)
    for name in ("left", "right"):
        side = sides[name]
        mesh.inset(side, (0.0, 0.0, 1.0, 0.05), (60, 60, 62), Material.MATTE)
        mesh.inset(side, (0.0, 0.95, 1.0, 1.0), [c * 0.75 for c in paint], Material.MATTE, 1)
        if band[0] < 0.6:
            v = 0.12 + 0.5 * band[1]
            mesh.inset(side, (0.0, v, 1.0, v + 0.06 + 0.14 * band[2]), logo, Material.PAINT, 0)
        if band[2] < 0.8:
            u = 0.12
            while u < 0.85:
                w = float(rng.uniform(0.03, 0.07))
                mesh.inset(
                    side,
                    (u, 0.58, u + w, 0.80),
                    [255 - c for c in paint] if band[0] > 0.5 else logo,
                    Material.MATTE,
                    1,
                )
                u += w + 0.02
        for u in np.linspace(0.0, 0.97, 9):
            mesh.inset(
                side, (float(u), 0.05, float(u) + 0.008, 0.95), [c * 0.82 for c in paint], Material.MATTE, 2
            )
    rear = sides["rear"]
    mesh.inset(rear, (0.03, 0.08, 0.97, 0.96), [c * 0.92 for c in paint], Material.PAINT, 1)
    mesh.inset(rear, (0.49, 0.06, 0.51, 0.96), (70, 70, 72), Material.MATTE, 1)
    for u in (0.2, 0.36, 0.63, 0.79):
        mesh.inset(rear, (u, 0.06, u + 0.015, 0.96), (140, 140, 142), Material.CHROME, 2)
    if rng.random() < 0.5:
        mesh.inset(rear, (0.12, 0.5, 0.88, 0.72), logo, Material.PAINT, 1)
    mesh.inset(rear, (0.0, 0.0, 1.0, 0.06), (50, 50, 52), Material.MATTE)
    add_lamps(mesh, rear, front=False, v=0.0)


def _chassis(
    mesh: MeshBuilder,
    length: float,
    width: float,
    radius: float,
    axles: list[float],
    rng: np.random.Generator,
) -> None:
    mesh.group((0.0, 0.6, 0.0))
    mesh.treads(axles, width / 2, radius)
    sides = mesh.box(
        (-0.02 * length, 0.72, 0.0), (length * 0.94, 0.42, width * 0.8), (34, 34, 36), Material.MATTE
    )
    mesh.inset(sides["rear"], (-0.1, 0.0, 1.1, 0.35), (60, 60, 66), Material.MATTE)
    add_plate(mesh, sides["rear"], (0.36, 0.4, 0.64, 0.8), rng)
    add_lamps(mesh, sides["rear"], front=False, v=0.42)
    for a in axles:
        mesh.wheel(a, width / 2 * 0.99, radius, (120.0, 122.0, 124.0))


def _tank(
    mesh: MeshBuilder, a_rear: float, length: float, base: float, radius: float, rng: np.random.Generator
) -> None:
    colour = (200.0, 204.0, 206.0) if rng.random() < 0.6 else fleet_paint(rng)
    mesh.group((a_rear + length / 2, base + radius, 0.0))
    angles = np.linspace(0, 2 * math.pi, 15)
    ring = [(base + radius + radius * math.sin(t), radius * math.cos(t)) for t in angles]
    for (y0, b0), (y1, b1) in pairwise(ring):
        face = mesh.face(
            [(a_rear, y0, b0), (a_rear + length, y0, b0), (a_rear + length, y1, b1), (a_rear, y1, b1)],
            colour,
            Material.CHROME,
        )
        for u in (0.25, 0.5, 0.75):
            mesh.inset(face, (u, 0.0, u + 0.012, 1.0), [c * 0.7 for c in colour], Material.MATTE, 1)
    for a, n in ((a_rear, (-1.0, 0.0, 0.0)), (a_rear + length, (1.0, 0.0, 0.0))):
        mesh.face([(a, y, b) for y, b in ring[:-1]], [c * 0.9 for c in colour], Material.CHROME, normal=n)


def _tipper(
    mesh: MeshBuilder,
    a_rear: float,
    length: float,
    base: float,
    height: float,
    width: float,
    rng: np.random.Generator,
) -> None:
    paint = fleet_paint(rng)
    mesh.group((a_rear + length / 2, base + height / 2, 0.0))
    load = (86.0, 104.0, 120.0) if rng.random() < 0.6 else (60.0, 66.0, 70.0)
    sides = mesh.box((a_rear + length / 2, base + height / 2, 0.0), (length, height, width), paint)
    mesh.inset(sides["top"], (0.03, 0.05, 0.97, 0.95), load, Material.MATTE, 0)
    for name in ("left", "right", "rear"):
        for u in np.linspace(0.02, 0.92, 6):
            mesh.inset(
                sides[name],
                (float(u), 0.0, float(u) + 0.03, 1.0),
                [c * 0.75 for c in paint],
                Material.MATTE,
                1,
            )
    add_lamps(mesh, sides["rear"], front=False, v=0.02)


def _ambulance(rng: np.random.Generator) -> Mesh:
    length, height, width = (
        float(rng.uniform(5.6, 6.6)),
        float(rng.uniform(2.5, 2.9)),
        float(rng.uniform(2.0, 2.2)),
    )
    paint: Paint = (226.0, 228.0, 228.0) if rng.random() < 0.6 else (40.0, 215.0, 232.0)
    mesh = MeshBuilder(length, height, width)
    _chassis(mesh, length, width, 0.36, [0.33 * length, -0.3 * length], rng)
    nose = 0.26 * length
    mesh.group((-nose / 2, height / 2, 0.0))
    body = mesh.box(
        (-nose / 2, 0.45 + (height - 0.45) / 2, 0.0), (length - nose, height - 0.45, width), paint
    )
    for name in ("left", "right", "rear"):
        stripe = ((40, 40, 200), (40, 150, 40), (190, 90, 20))[rng.integers(3)]
        mesh.inset(body[name], (0.0, 0.32, 1.0, 0.48), stripe, Material.PAINT, 0)
        mesh.inset(body[name], (0.3, 0.6, 0.7, 0.88), _GLASS, Material.GLASS, 0)
        for u in np.arange(0.0, 1.0, 0.2):
            mesh.inset(body[name], (float(u), 0.18, float(u) + 0.1, 0.32), stripe, Material.PAINT, 1)
    add_lamps(mesh, body["rear"], front=False, v=0.15)
    _cab(mesh, length / 2 - nose, nose, height * 0.86, width * 0.96, paint, rng)
    mesh.box(
        (length / 2 - nose - 0.3, height + 0.08, 0.0),
        (0.3, 0.16, width * 0.8),
        (220, 90, 40),
        Material.LIT_GLASS,
        0,
    )
    return mesh.build()


def make_truck(rng: np.random.Generator) -> Mesh:
    """A lorry drawn from ``rng``."""
    kind = str(
        rng.choice(
            ["box", "semi", "tipper", "tank", "ambulance", "flat"], p=[0.42, 0.16, 0.14, 0.08, 0.12, 0.08]
        )
    )
    if kind == "ambulance":
        return _ambulance(rng)
    semi = kind == "semi"
    length = float(rng.uniform(12.5, 15.5) if semi else rng.uniform(5.8, 9.5))
    height, width = (
        float(rng.uniform(3.3, 3.9) if semi else rng.uniform(2.6, 3.6)),
        float(rng.uniform(2.1, 2.5)),
    )
    cab_length = float(rng.uniform(1.7, 2.3))
    cab_height = min(height, float(rng.uniform(2.5, 3.2)))
    mesh = MeshBuilder(length, height, width)
    rear_axle = -0.34 * length
    axles = [length / 2 - cab_length * 0.55, rear_axle]
    if length > 8.0:
        axles.append(rear_axle + 1.25)
    if semi:
        axles += [rear_axle - 1.2, length / 2 - cab_length - 1.2]
    _chassis(mesh, length, width, 0.48, axles, rng)
    cargo_length, start = length - cab_length - 0.25, -length / 2
    if kind == "tipper":
        _tipper(mesh, start, cargo_length, 0.95, min(1.7, height - 1.2), width, rng)
    elif kind == "tank":
        _tank(mesh, start, cargo_length, 0.95, min(1.1, (height - 1.0) / 2), rng)
    elif kind == "flat":
        _tipper(mesh, start, cargo_length, 0.9, 0.5, width, rng)
    else:
        _cargo_box(mesh, start, cargo_length, 0.9, height - 0.9, width, rng)
    _cab(mesh, length / 2 - cab_length, cab_length, cab_height, width * 0.97, fleet_paint(rng), rng)
    return mesh.build()
