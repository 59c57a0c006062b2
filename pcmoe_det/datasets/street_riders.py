"""Bicycles, motorcycles and scooters with their riders."""

from __future__ import annotations

import math

import numpy as np

from pcmoe_det.datasets.street_strokes import (
    PHASES,
    TOPS,
    Clothes,
    Point,
    Pose,
    StrokeModel,
    draw_head,
    draw_limb,
    draw_torso,
    dress,
    finish,
    pick_colour,
    tone_colour,
)

__all__ = ["make_bicycle", "make_motorcycle"]


def _rider(
    pose: Pose,
    seat: Point,
    grip: Point,
    feet: tuple[Point, Point],
    wear: Clothes,
    *,
    lean: float,
    helmet: bool,
) -> None:
    """A seated person from saddle to handlebar."""
    a, y, _ = seat
    shoulders = (a + lean, y + 0.50, 0.0)
    for side, foot in zip((-1, 1), feet, strict=True):
        hip = (a, y + 0.02, side * 0.1)
        middle = ((hip[0] + foot[0]) / 2 + 0.2, (hip[1] + foot[1]) / 2 + 0.1, side * 0.12)
        draw_limb(pose, [hip, middle, foot], [0.15, 0.11], [wear.legs, tone_colour(wear.legs, 0.9)])
        pose.line(
            (foot[0] - 0.04, foot[1] - 0.02, foot[2]),
            (foot[0] + 0.12, foot[1] - 0.02, foot[2]),
            0.09,
            wear.shoes,
        )
        elbow = ((shoulders[0] + grip[0]) / 2, (shoulders[1] + grip[1]) / 2 - 0.08, side * 0.27)
        hand = (grip[0], grip[1], side * 0.24)
        draw_limb(
            pose,
            [(shoulders[0], shoulders[1], side * 0.2), elbow, hand],
            [0.1, 0.085],
            [tone_colour(wear.top, 0.9), tone_colour(wear.top, 0.84)],
        )
        pose.line(hand, hand, 0.085, wear.skin)
    draw_torso(pose, (a, y + 0.06, 0.0), shoulders, 0.21, 0.22, wear.top)
    draw_head(pose, (shoulders[0] + 0.05, shoulders[1] + 0.24, 0.0), 0.115, wear, helmet=helmet)


def make_bicycle(rng: np.random.Generator) -> StrokeModel:
    """A bicycle with its rider, pedalling; drawn from ``rng``."""
    wear = dress(rng, helmet=bool(rng.random() < 0.6))
    frame = pick_colour(rng, TOPS)
    tyre, radius, wheelbase = (34.0, 34.0, 36.0), float(rng.uniform(0.31, 0.35)), 1.05
    saddle_y, lean = float(rng.uniform(0.88, 1.0)), float(rng.uniform(0.12, 0.42))
    basket = rng.random() < 0.3
    poses = []
    for phase in np.arange(PHASES) * 2 * math.pi / PHASES:
        pose = Pose()
        rear, front = (-wheelbase / 2, radius, 0.0), (wheelbase / 2, radius, 0.0)
        for centre in (rear, front):
            pose.ring(centre, radius, 0.045, tyre)
            for spoke in range(3):
                t = phase + spoke * math.pi / 3
                d = (radius * math.cos(t), radius * math.sin(t))
                pose.line(
                    (centre[0] - d[0], centre[1] - d[1], 0.0),
                    (centre[0] + d[0], centre[1] + d[1], 0.0),
                    0.008,
                    (120, 120, 122),
                )
        crank, saddle, head = (-0.05, radius, 0.0), (-0.22, saddle_y - 0.1, 0.0), (0.38, 0.82, 0.0)
        for p, q in (
            (rear, crank),
            (crank, saddle),
            (crank, head),
            (saddle, head),
            (rear, saddle),
            (head, front),
        ):
            pose.line(p, q, 0.042, frame)
        pose.line((saddle[0] - 0.1, saddle_y, 0.0), (saddle[0] + 0.12, saddle_y, 0.0), 0.07, (30, 30, 32))
        pose.line((0.40, 1.0, -0.27), (0.40, 1.0, 0.27), 0.03, (50, 50, 52))
        pose.line(head, (0.38, 1.0, 0.0), 0.03, (50, 50, 52))
        if basket:
            pose.line((0.56, 0.82, -0.12), (0.56, 0.82, 0.12), 0.22, (70, 90, 110))
        pose.line((0.5, 0.8, 0.0), (0.5, 0.8, 0.0), 0.06, (210, 214, 216), 1)
        pose.line((-0.55, 0.66, 0.0), (-0.55, 0.66, 0.0), 0.06, (40, 30, 190), 2)
        feet = []
        for side in (-1, 1):
            t = phase + (math.pi if side > 0 else 0.0)
            pedal = (crank[0] + 0.17 * math.cos(t), crank[1] - 0.17 * math.sin(t), side * 0.13)
            pose.line((crank[0], crank[1], side * 0.06), pedal, 0.03, (90, 90, 92))
            feet.append((pedal[0], pedal[1] + 0.05, pedal[2]))
        _rider(
            pose,
            (-0.22, saddle_y, 0.0),
            (0.42, 1.02, 0.0),
            (feet[0], feet[1]),
            wear,
            lean=lean,
            helmet=wear.hat is not None,
        )
        poses.append(pose)
    return finish(poses, (1.75, saddle_y + 0.9, 0.6))


def make_motorcycle(rng: np.random.Generator) -> StrokeModel:
    """A motorcycle or scooter with its rider; drawn from ``rng``."""
    wear = dress(rng, helmet=True)
    paint, scooter = pick_colour(rng, TOPS), rng.random() < 0.4
    radius, wheelbase = (0.24, 1.25) if scooter else (0.31, 1.4)
    pillion = dress(rng, helmet=True) if rng.random() < 0.15 else None
    box = pick_colour(rng, TOPS) if rng.random() < 0.3 else None
    poses = []
    for phase in np.arange(PHASES) * 2 * math.pi / PHASES:
        pose = Pose()
        rear, front = (-wheelbase / 2, radius, 0.0), (wheelbase / 2, radius, 0.0)
        for centre in (rear, front):
            pose.ring(centre, radius * 0.82, 0.13, (24, 24, 26), 10)
            pose.ring(centre, radius * 0.45, 0.04, (120, 120, 124), 6)
            pose.line(
                (centre[0] - 0.1 * math.cos(phase), centre[1] - 0.1 * math.sin(phase), 0.0),
                (centre[0] + 0.1 * math.cos(phase), centre[1] + 0.1 * math.sin(phase), 0.0),
                0.04,
                (90, 90, 92),
            )
        for side in (-0.09, 0.09):
            pose.line(front, (0.42, 0.86, side), 0.05, (110, 110, 114))
        pose.line((-0.15, 0.42, 0.0), (0.25, 0.45, 0.0), 0.34, (60, 60, 64))
        if scooter:
            pose.line((0.40, 0.32, 0.0), (0.46, 0.9, 0.0), 0.3, paint)
            pose.line((-0.55, 0.55, 0.0), (-0.1, 0.5, 0.0), 0.32, paint)
            pose.line((-0.2, 0.26, 0.0), (0.4, 0.26, 0.0), 0.16, tone_colour(paint, 0.7))
        else:
            pose.line((0.0, 0.76, 0.0), (0.32, 0.8, 0.0), 0.27, paint)
            pose.line((0.42, 0.78, 0.0), (0.52, 0.95, 0.0), 0.26, tone_colour(paint, 1.1))
            pose.line((-0.3, 0.36, 0.14), (-0.8, 0.42, 0.14), 0.1, (150, 150, 154))
        pose.line((-0.62, 0.72, 0.0), (0.0, 0.74, 0.0), 0.17, (30, 30, 32))
        pose.line((-0.75, 0.72, 0.0), (-0.6, 0.7, 0.0), 0.14, tone_colour(paint, 0.85))
        pose.line((0.36, 1.02, -0.33), (0.36, 1.02, 0.33), 0.04, (40, 40, 42))
        for side in (-0.33, 0.33):
            pose.line((0.40, 1.12, side), (0.40, 1.14, side), 0.09, (50, 50, 52))
        pose.line((0.58, 0.86, 0.0), (0.58, 0.87, 0.0), 0.15, (222, 226, 228), 1)
        pose.line((-0.8, 0.74, -0.05), (-0.8, 0.74, 0.05), 0.07, (36, 28, 180), 2)
        pose.line((-0.84, 0.52, -0.06), (-0.84, 0.52, 0.06), 0.12, (200, 204, 206))
        if box is not None and pillion is None:
            pose.line((-0.72, 0.95, -0.1), (-0.72, 0.95, 0.1), 0.34, box)
        feet = ((0.1, 0.33, -0.2), (0.1, 0.33, 0.2))
        _rider(pose, (-0.18, 0.8, 0.0), (0.36, 1.04, 0.0), feet, wear, lean=0.18, helmet=True)
        if pillion is not None:
            _rider(
                pose,
                (-0.52, 0.84, 0.0),
                (-0.2, 1.1, 0.0),
                ((-0.2, 0.4, -0.2), (-0.2, 0.4, 0.2)),
                pillion,
                lean=0.05,
                helmet=True,
            )
        poses.append(pose)
    return finish(poses, (2.1, 1.68, 0.75))
