"""Figures as bundles of thick rounded strokes, one bundle per phase of motion, and parts of people.

Strokes live in the object's axes (``a`` forwards, ``y`` up, ``b`` right; metres). Seen from anywhere
they are sorted by depth and drawn as lines of their projected thickness: limbs, torso, wheels, tubes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "PHASES",
    "TOPS",
    "Clothes",
    "Colour",
    "Point",
    "Pose",
    "StrokeModel",
    "draw_head",
    "draw_limb",
    "draw_torso",
    "dress",
    "finish",
    "pick_colour",
    "stroke_model",
    "tone_colour",
]

FloatArray = NDArray[np.float64]
Colour = tuple[float, float, float]
Point = tuple[float, float, float]

PHASES = 16
"""Poses kept for one cycle of steps or pedals."""

_SKIN = ((150, 180, 224), (120, 156, 206), (84, 116, 166), (56, 78, 118), (40, 54, 82))
_HAIR = ((24, 26, 30), (36, 48, 66), (60, 90, 120), (90, 140, 176), (150, 156, 160), (30, 44, 90))
TOPS = (
    (34, 34, 36),
    (60, 52, 44),
    (120, 70, 40),
    (40, 40, 160),
    (200, 202, 204),
    (90, 96, 100),
    (60, 110, 60),
    (70, 160, 210),
    (130, 60, 120),
    (150, 130, 90),
    (30, 60, 110),
    (60, 190, 230),
    (50, 110, 235),
)
_LEGS = (
    (32, 32, 34),
    (80, 58, 42),
    (110, 84, 60),
    (60, 60, 62),
    (110, 130, 150),
    (46, 40, 36),
    (150, 152, 155),
)


@dataclass(frozen=True, slots=True, eq=False)
class StrokeModel:
    """A figure in ``PHASES`` poses of ``n`` strokes each.

    Attributes:
        joints: ``[PHASES, 2 n, 3]``: the starts of all strokes, then their ends.
        widths: ``[n]`` metres.
        colours: ``[n, 3]`` BGR in white light.
        glows: ``[n]`` 0 none, 1 head lamp, 2 tail lamp.
        size: Length, height, width, metres, for shadows and culling.
        coarser: The same without thin strokes, for when it is small.
    """

    joints: FloatArray
    widths: FloatArray
    colours: FloatArray
    glows: NDArray[np.int64]
    size: tuple[float, float, float]
    coarser: StrokeModel | None = None


def stroke_model(
    joints: FloatArray,
    widths: FloatArray,
    colours: FloatArray,
    glows: NDArray[np.int64],
    size: tuple[float, float, float],
) -> StrokeModel:
    """A model with a coarser one behind it; the arguments are ``StrokeModel``'s."""
    count = len(widths)
    keep = np.flatnonzero((widths > 0.045) | (glows > 0))
    coarser = None
    if 0 < len(keep) < count:
        both = np.concatenate([keep, keep + count])
        coarser = StrokeModel(
            np.ascontiguousarray(joints[:, both]), widths[keep], colours[keep], glows[keep], size
        )
    return StrokeModel(joints, widths, colours, glows, size, coarser)


class Pose:
    """Collects the strokes of one pose."""

    def __init__(self) -> None:
        self.rows: list[tuple[Point, Point, float, Colour, int]] = []

    def line(self, p: Point, q: Point, width: float, colour: Sequence[float], glow: int = 0) -> None:
        b, g, r = colour
        self.rows.append((p, q, width, (float(b), float(g), float(r)), glow))

    def ring(
        self, centre: Point, radius: float, width: float, colour: Sequence[float], count: int = 12
    ) -> None:
        angles = np.linspace(0, 2 * math.pi, count + 1)
        points = [
            (centre[0] + radius * math.cos(t), centre[1] + radius * math.sin(t), centre[2]) for t in angles
        ]
        for p, q in pairwise(points):
            self.line(p, q, width, colour)


def finish(poses: list[Pose], size: tuple[float, float, float]) -> StrokeModel:
    first = poses[0].rows
    return stroke_model(
        np.array(
            [[row[0] for row in pose.rows] + [row[1] for row in pose.rows] for pose in poses], np.float64
        ),
        np.array([row[2] for row in first], np.float64),
        np.array([row[3] for row in first], np.float64),
        np.array([row[4] for row in first], np.int64),
        size,
    )


def pick_colour(rng: np.random.Generator, palette: Sequence[tuple[int, int, int]]) -> Colour:
    b, g, r = np.clip(
        np.array(palette[int(rng.integers(len(palette)))]) * rng.uniform(0.8, 1.2) + rng.uniform(-8, 8, 3),
        6,
        240,
    )
    return float(b), float(g), float(r)


def tone_colour(colour: Colour, factor: float) -> Colour:
    b, g, r = (min(255.0, c * factor) for c in colour)
    return b, g, r


@dataclass(frozen=True, slots=True)
class Clothes:
    skin: Colour
    hair: Colour
    top: Colour
    legs: Colour
    shoes: Colour
    hat: Colour | None
    long_hair: bool


def dress(rng: np.random.Generator, *, helmet: bool = False) -> Clothes:
    hat = pick_colour(rng, TOPS) if helmet or rng.random() < 0.18 else None
    return Clothes(
        pick_colour(rng, _SKIN),
        pick_colour(rng, _HAIR),
        pick_colour(rng, TOPS),
        pick_colour(rng, _LEGS),
        pick_colour(rng, _LEGS),
        hat,
        bool(rng.random() < 0.4),
    )


def draw_head(pose: Pose, centre: Point, radius: float, wear: Clothes, *, helmet: bool) -> None:
    a, y, b = centre
    pose.line((a, y - radius * 1.6, b), (a, y - radius, b), radius * 0.9, tone_colour(wear.skin, 0.85))
    pose.line((a + 0.015, y - radius * 0.25, b), (a + 0.015, y + radius * 0.1, b), radius * 1.7, wear.skin)
    cover = wear.hat if wear.hat is not None else wear.hair
    pose.line(
        (a - 0.03, y + radius * 0.25, b),
        (a - 0.03, y + radius * 0.3, b),
        radius * (2.15 if helmet else 1.9),
        cover,
    )
    pose.line(
        (a - 0.05, y - radius * (1.3 if wear.long_hair else 0.2), b),
        (a - 0.05, y + radius * 0.2, b),
        radius * 1.6,
        wear.hair if not helmet else cover,
    )


def draw_torso(pose: Pose, hips: Point, shoulders: Point, half: float, depth: float, colour: Colour) -> None:
    (ha, hy, _), (sa, sy, _) = hips, shoulders
    for share, tone in ((-1.0, 0.86), (-0.35, 1.0), (0.35, 1.0), (1.0, 0.86)):
        pose.line(
            (ha, hy, share * half * 0.72), (sa, sy, share * half * 0.8), depth, tone_colour(colour, tone)
        )
    pose.line(
        (sa, sy + 0.01, -half * 0.85), (sa, sy + 0.01, half * 0.85), depth * 0.75, tone_colour(colour, 1.06)
    )
    # Folds and a front seam keep the torso from being one flat patch.
    pose.line(
        (ha + depth * 0.46, hy, 0.0), (sa + depth * 0.46, sy - 0.06, 0.0), 0.03, tone_colour(colour, 0.72)
    )
    pose.line(
        (ha, hy + 0.1, -half * 0.8),
        (ha + depth * 0.3, hy + 0.14, half * 0.8),
        0.025,
        tone_colour(colour, 0.78),
    )


def draw_limb(
    pose: Pose, points: Sequence[Point], widths: Sequence[float], colours: Sequence[Colour]
) -> None:
    for p, q, width, colour in zip(points[:-1], points[1:], widths, colours, strict=True):
        pose.line(p, q, width, colour)
