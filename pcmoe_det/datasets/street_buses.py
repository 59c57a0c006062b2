"""Models of buses: city buses, coaches, double-deckers, school buses, minibuses."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_cars import add_plate
from pcmoe_det.datasets.street_mesh import Material, Mesh, MeshBuilder
from pcmoe_det.datasets.street_trucks import add_lamps, fleet_paint

__all__ = ["make_bus"]

FloatArray = NDArray[np.float64]
Paint = tuple[float, float, float]

_GLASS = (44, 40, 36)
_DARK = (24, 24, 26)


def _bus_side(
    mesh: MeshBuilder,
    side: FloatArray,
    paint: Paint,
    accent: Paint,
    *,
    decks: int,
    doors: bool,
    rng: np.random.Generator,
) -> None:
    mesh.inset(side, (0.0, 0.0, 1.0, 0.07), _DARK, Material.MATTE)
    mesh.inset(side, (0.0, 0.1, 1.0, 0.22), accent, Material.PAINT, 0)
    bands = [(0.46, 0.82)] if decks == 1 else [(0.26, 0.46), (0.64, 0.88)]
    count = int(rng.integers(6, 10))
    for v0, v1 in bands:
        mesh.inset(side, (0.015, v0 - 0.015, 0.985, v1 + 0.015), (30, 30, 32), Material.MATTE, 0)
        for index in range(count):
            u0 = 0.02 + index * 0.96 / count
            mesh.inset(side, (u0 + 0.005, v0, u0 + 0.96 / count - 0.008, v1), _GLASS, Material.LIT_GLASS, 0)
            head = u0 + float(rng.uniform(0.2, 0.6)) * 0.96 / count
            if rng.random() < 0.5:  # a passenger's head and shoulders
                mesh.inset(
                    side, (head, v0, head + 0.025, v0 + 0.5 * (v1 - v0)), (40, 44, 56), Material.MATTE, 2
                )
    if doors:
        for u in (0.06, 0.46, 0.86):
            mesh.inset(
                side, (u, 0.05, u + 0.1, 0.82 if decks == 1 else 0.48), (36, 36, 38), Material.MATTE, 0
            )
            for shift in (0.006, 0.053):
                mesh.inset(
                    side,
                    (u + shift, 0.1, u + shift + 0.04, 0.8 if decks == 1 else 0.46),
                    _GLASS,
                    Material.LIT_GLASS,
                    0,
                )
    elif rng.random() < 0.5:
        mesh.inset(side, (0.2, 0.24, 0.8, 0.42), fleet_paint(rng), Material.MATTE, 1)
        mesh.inset(side, (0.28, 0.28, 0.6, 0.38), (230, 232, 232), Material.MATTE, 1)
    mesh.inset(side, (0.0, 0.93, 1.0, 1.0), [c * 0.85 for c in paint], Material.PAINT, 1)


def make_bus(rng: np.random.Generator) -> Mesh:
    """A city bus, coach, double-decker, school bus or minibus drawn from ``rng``."""
    kind = str(rng.choice(["city", "coach", "double", "school", "mini"], p=[0.46, 0.2, 0.12, 0.1, 0.12]))
    length = float(
        {"mini": rng.uniform(6.0, 7.4), "double": rng.uniform(9.5, 11.0)}.get(kind, rng.uniform(10.0, 12.4))
    )
    height = float(
        {"mini": rng.uniform(2.5, 2.8), "double": rng.uniform(4.1, 4.4)}.get(kind, rng.uniform(2.9, 3.5))
    )
    width = float(rng.uniform(2.05, 2.2) if kind == "mini" else rng.uniform(2.4, 2.55))
    paint = (30.0, 170.0, 225.0) if kind == "school" else fleet_paint(rng)
    accent = (30.0, 30.0, 30.0) if kind == "school" else fleet_paint(rng)
    mesh = MeshBuilder(length, height, width)
    radius = 0.48 if kind != "mini" else 0.38
    axles = [0.30 * length, -0.28 * length]
    mesh.group((0.0, height / 2, 0.0))
    mesh.treads(axles, width / 2, radius)
    decks = 2 if kind == "double" else 1
    body = mesh.box((0.0, 0.3 + (height - 0.3) / 2, 0.0), (length, height - 0.3, width), paint)
    _bus_side(mesh, body["left"], paint, accent, decks=decks, doors=False, rng=rng)
    _bus_side(mesh, body["right"], paint, accent, decks=decks, doors=kind in ("city", "double"), rng=rng)
    front, rear = body["front"], body["rear"]
    top = 0.84 if decks == 1 else 0.5
    mesh.inset(front, (0.0, 0.0, 1.0, 0.09), _DARK, Material.MATTE)
    mesh.inset(front, (0.04, 0.30 if decks == 1 else 0.2, 0.96, top), _GLASS, Material.GLASS, 0)
    mesh.inset(front, (0.49, 0.3 if decks == 1 else 0.2, 0.51, top), _DARK, Material.MATTE, 1)
    if decks == 2:
        mesh.inset(front, (0.04, 0.66, 0.96, 0.92), _GLASS, Material.LIT_GLASS, 0)
    mesh.inset(front, (0.12, top + 0.02, 0.88, top + 0.11), (20, 22, 24), Material.MATTE, 0)
    for index in range(7):  # destination in lit letters
        u = 0.2 + index * 0.085
        mesh.inset(front, (u, top + 0.035, u + 0.05, top + 0.095), (40, 170, 250), Material.LIT_GLASS, 1)
    mesh.inset(front, (0.0, 0.1, 1.0, 0.2), accent, Material.PAINT, 1)
    add_lamps(mesh, front, front=True, v=0.13)
    add_plate(mesh, front, (0.38, 0.04, 0.62, 0.09), rng)
    mesh.inset(rear, (0.0, 0.0, 1.0, 0.09), _DARK, Material.MATTE)
    mesh.inset(
        rear, (0.1, 0.55 if decks == 1 else 0.66, 0.9, 0.84 if decks == 1 else 0.9), _GLASS, Material.GLASS, 0
    )
    mesh.inset(rear, (0.15, 0.14, 0.85, 0.38), [c * 0.6 for c in paint], Material.MATTE, 1)
    for v in (0.18, 0.24, 0.30):
        mesh.inset(rear, (0.18, v, 0.82, v + 0.02), _DARK, Material.MATTE, 2)
    add_lamps(mesh, rear, front=False, v=0.2)
    add_plate(mesh, rear, (0.38, 0.08, 0.62, 0.13), rng)
    for a in axles:
        mesh.wheel(a, width / 2 * 1.0, radius, (130.0, 132.0, 134.0))
    if kind == "city" and rng.random() < 0.6:
        mesh.box(
            (0.1 * length, height + 0.12, 0.0),
            (0.3 * length, 0.24, width * 0.7),
            [c * 0.9 for c in paint],
            detail=1,
        )
    for side in (-1, 1):
        mesh.box(
            (length / 2 + 0.1, height * 0.72, side * (width / 2 + 0.12)),
            (0.12, 0.42, 0.18),
            _DARK,
            Material.MATTE,
            1,
        )
    return mesh.build()
