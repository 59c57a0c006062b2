"""Meshes of vehicles: flat polygons with an outward side, a colour and a material, in drawing order.

Local axes of an object: ``a`` forwards, ``y`` up, ``b`` to its right; the origin is on the road below
its middle. Polygons of one group are drawn in the order in which they were added (backs removed),
which is right for the nearly convex parts that vehicles consist of; groups are ordered by distance.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

import numpy as np
from numpy.typing import NDArray

__all__ = ["Material", "Mesh", "MeshBuilder"]

FloatArray = NDArray[np.float64]
Point = tuple[float, float, float]
Colour = Sequence[float]


class Material(IntEnum):
    """How a polygon answers light."""

    MATTE = 0
    PAINT = 1
    GLASS = 2
    HEAD_LAMP = 3
    TAIL_LAMP = 4
    LIT_GLASS = 5
    CHROME = 6


@dataclass(frozen=True, slots=True, eq=False)
class Mesh:
    """A finished mesh of ``n`` polygons.

    Attributes:
        vertices: ``[v, 3]`` (a, y, b), metres; each polygon has its own.
        starts: ``[n + 1]`` first vertex of each polygon.
        normals: ``[n, 3]`` outward unit normals.
        offsets: ``[n]`` normal times a point of the polygon.
        colours: ``[n, 3]`` BGR, 0-255, in white light.
        materials: ``[n]`` values of ``Material``.
        groups: ``[n]`` group of each polygon.
        group_centres: ``[g, 3]``.
        size: Length, height, width, metres.
        head_lamps: ``[<=2, 3]`` their middles.
        tail_lamps: ``[<=2, 3]`` their middles.
        sky_share: ``[n, 1]`` how much of the sky a polygon mirrors.
        ambient_share: ``[n, 1]`` how much of the ambient light reaches it.
        coarser: The same without the finest details, for when it is small.
    """

    vertices: FloatArray
    starts: NDArray[np.int64]
    normals: FloatArray
    offsets: FloatArray
    colours: FloatArray
    materials: NDArray[np.int64]
    groups: NDArray[np.int64]
    group_centres: FloatArray
    size: tuple[float, float, float]
    head_lamps: FloatArray
    tail_lamps: FloatArray
    sky_share: FloatArray
    ambient_share: FloatArray
    coarser: Mesh | None


class MeshBuilder:
    """Collects polygons; ``build`` makes the mesh."""

    def __init__(self, length: float, height: float, width: float) -> None:
        self.size = (length, height, width)
        self._polygons: list[FloatArray] = []
        self._normals: list[Point] = []
        self._colours: list[Colour] = []
        self._tags: list[tuple[int, int, int]] = []
        self._centres: list[Point] = [(0.0, height / 2, 0.0)]

    def group(self, centre: Point) -> None:
        """Start a new group around ``centre``; outward means away from it."""
        if self._polygons:
            self._centres.append(centre)
        else:
            self._centres[0] = centre

    def face(
        self,
        points: Sequence[Point] | FloatArray,
        colour: Colour,
        material: Material = Material.PAINT,
        detail: int = 0,
        *,
        normal: Point | None = None,
    ) -> FloatArray:
        """Add a flat polygon; returns its corners ``[n, 3]``."""
        corners = np.asarray(points, np.float64)
        self._polygons.append(corners)
        self._normals.append(_outward(corners.tolist(), self._centres[-1]) if normal is None else normal)
        self._colours.append(colour)
        self._tags.append((int(material), detail, len(self._centres) - 1))
        return corners

    def inset(
        self,
        face: FloatArray,
        window: tuple[float, float, float, float],
        colour: Colour,
        material: Material = Material.MATTE,
        detail: int = 1,
    ) -> FloatArray:
        """Add ``(u0, v0, u1, v1)`` of a quad: u from corner 0 to 1, v from corner 0 to 3."""
        u0, v0, u1, v1 = window
        shares = [
            ((1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v)
            for u, v in ((u0, v0), (u1, v0), (u1, v1), (u0, v1))
        ]
        corners: FloatArray = np.array(shares) @ face
        return self.face(corners, colour, material, detail)

    def box(
        self,
        centre: Point,
        size: tuple[float, float, float],
        colour: Colour,
        material: Material = Material.PAINT,
        detail: int = 0,
    ) -> dict[str, FloatArray]:
        """Add a box; its sides by name. Corner order: bottom edge first, then up (v runs upwards)."""
        (ca, cy, cb), (la, hy, wb) = centre, size
        a0, a1, y0, y1, b0, b1 = ca - la / 2, ca + la / 2, cy - hy / 2, cy + hy / 2, cb - wb / 2, cb + wb / 2
        sides: dict[str, tuple[list[Point], Point]] = {
            "front": ([(a1, y0, b0), (a1, y0, b1), (a1, y1, b1), (a1, y1, b0)], (1, 0, 0)),
            "rear": ([(a0, y0, b0), (a0, y0, b1), (a0, y1, b1), (a0, y1, b0)], (-1, 0, 0)),
            "right": ([(a0, y0, b1), (a1, y0, b1), (a1, y1, b1), (a0, y1, b1)], (0, 0, 1)),
            "left": ([(a0, y0, b0), (a1, y0, b0), (a1, y1, b0), (a0, y1, b0)], (0, 0, -1)),
            "top": ([(a0, y1, b0), (a1, y1, b0), (a1, y1, b1), (a0, y1, b1)], (0, 1, 0)),
        }
        return {
            name: self.face(points, colour, material, detail, normal=normal)
            for name, (points, normal) in sides.items()
        }

    def wheel(
        self, a: float, half_width: float, radius: float, rim: Colour, *, sides: tuple[int, ...] = (-1, 1)
    ) -> None:
        """A wheel on either side: tread, arch, tyre, rim, spokes."""
        angles = np.linspace(0, 2 * math.pi, 12, endpoint=False)
        for side in sides:
            b = side * half_width
            outward: Point = (0.0, 0.0, float(side))

            def disc(scale: float, shift: float = 0.0, *, b: float = b, side: int = side) -> list[Point]:
                out = b + side * shift
                return [
                    (a + scale * radius * math.cos(t), radius + scale * radius * math.sin(t), out)
                    for t in angles
                ]

            arch = [(p[0], max(p[1], radius * 0.6), p[2]) for p in disc(1.2)]
            self.face(arch, (16, 16, 17), Material.MATTE, normal=outward)
            self.face(disc(1.0, 0.01), (26, 26, 28), Material.MATTE, normal=outward)
            self.face(disc(0.62, 0.015), rim, Material.CHROME, 1, normal=outward)
            self.face(disc(0.2, 0.02), [c * 0.45 for c in rim], Material.MATTE, 2, normal=outward)
            for spoke in range(5):
                t = spoke * 2 * math.pi / 5 + 0.3
                points = [
                    (a + s * radius * math.cos(t + d), radius + s * radius * math.sin(t + d), b + side * 0.02)
                    for s, d in ((0.24, -0.3), (0.56, -0.2), (0.56, 0.2), (0.24, 0.3))
                ]
                self.face(points, (38, 38, 40), Material.MATTE, 2, normal=outward)

    def treads(self, positions: Sequence[float], half_width: float, radius: float) -> None:
        """Wheels as seen from the front, behind or through below the body; add them first."""
        for a in positions:
            for side in (-1, 1):
                centre = (a, radius * 0.9, side * (half_width - 0.13))
                self.box(centre, (radius * 1.6, radius * 1.8, 0.24), (20, 20, 21), Material.MATTE)

    def build(self) -> Mesh:
        """The mesh of what was added, with coarser ones behind it."""
        lamps = (Material.HEAD_LAMP, Material.TAIL_LAMP)
        coarse = [
            i
            for i, t in enumerate(self._tags)
            if t[1] == 0 and (t[0] in lamps or _area(self._polygons[i]) > 0.15)
        ]
        mesh = self._build(coarse, None)
        for detail in (0, 1, 2):
            mesh = self._build([i for i, tag in enumerate(self._tags) if tag[1] <= detail], mesh)
        return mesh

    def _build(self, chosen: list[int], coarser: Mesh | None) -> Mesh:
        tags = np.array([self._tags[i] for i in chosen], np.int64)
        polygons = [self._polygons[i] for i in chosen]
        lengths = [len(p) for p in polygons]
        normals = np.array([self._normals[i] for i in chosen], np.float64)
        first = np.stack([p[0] for p in polygons])
        material, upward = tags[:, 0], normals[:, 1]
        glass = (material == Material.GLASS) | (material == Material.LIT_GLASS)
        sky = np.where(material == Material.PAINT, np.clip(0.055 + 0.165 * upward, 0.01, 0.28), 0.0)
        sky = np.where(glass, 0.16 + 0.42 * np.clip(upward, 0, 1), sky)
        sky = np.where(material == Material.CHROME, 0.2, sky)
        lamps = {
            kind: [p.mean(axis=0) for p, t in zip(self._polygons, self._tags, strict=True) if t[0] == kind]
            for kind in (Material.HEAD_LAMP, Material.TAIL_LAMP)
        }
        return Mesh(
            np.concatenate(polygons),
            np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64),
            normals,
            np.einsum("ij,ij->i", normals, first),
            np.array([list(self._colours[i])[:3] for i in chosen], np.float64),
            tags[:, 0],
            tags[:, 2],
            np.array(self._centres, np.float64),
            self.size,
            np.array(lamps[Material.HEAD_LAMP], np.float64).reshape(-1, 3)[:2],
            np.array(lamps[Material.TAIL_LAMP], np.float64).reshape(-1, 3)[:2],
            sky[:, None],
            (0.80 + 0.22 * upward - 0.07 * np.abs(normals[:, 2]))[:, None],
            coarser,
        )


def _outward(corners: list[list[float]], centre: Point) -> Point:
    """Unit normal of a flat polygon, away from ``centre``; numpy would take ten times as long."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz), (dx, dy, dz) = corners[0], corners[1], corners[2], corners[-1]
    ux, uy, uz, vx, vy, vz = cx - ax, cy - ay, cz - az, dx - bx, dy - by, dz - bz
    x, y, z = uy * vz - uz * vy, uz * vx - ux * vz, ux * vy - uy * vx
    mx, my, mz = (ax + bx + cx + dx) / 4, (ay + by + cy + dy) / 4, (az + bz + cz + dz) / 4
    towards = x * (mx - centre[0]) + y * (my - centre[1]) + z * (mz - centre[2])
    norm = math.copysign(max(math.sqrt(x * x + y * y + z * z), 1e-9), towards)
    return x / norm, y / norm, z / norm


def _area(polygon: FloatArray) -> float:
    """Square metres of a flat convex quadrangle; of other polygons, a lower bound."""
    (ax, ay, az), (bx, by, bz), (cx, cy, cz), (dx, dy, dz) = (polygon[i].tolist() for i in (0, 1, 2, -1))
    ux, uy, uz, vx, vy, vz = cx - ax, cy - ay, cz - az, dx - bx, dy - by, dz - bz
    return math.sqrt((uy * vz - uz * vy) ** 2 + (uz * vx - ux * vz) ** 2 + (ux * vy - uy * vx) ** 2) / 2
