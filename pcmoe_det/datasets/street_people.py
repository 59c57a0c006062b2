"""People on foot: children and adults in different clothes, with bags, walking."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from pcmoe_det.datasets.street_strokes import (
    PHASES,
    TOPS,
    Clothes,
    Colour,
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

__all__ = ["make_pedestrian"]


@dataclass(frozen=True, slots=True)
class _Body:
    """One person; metres."""

    height: float
    build: float
    kind: str
    wear: Clothes
    rucksack: Colour | None
    bag: Colour | None
    stride: float

    @property
    def half(self) -> float:
        """Half the width of the shoulders."""
        return 0.125 * self.height * self.build


def _draw_leg(pose: Pose, body: _Body, hip_y: float, phase: float, side: int) -> None:
    h, wear = body.height, body.wear
    swing = side * body.stride * math.sin(phase)
    bend = 0.55 * max(0.0, side * math.cos(phase)) + 0.06
    hip = (0.0, hip_y, side * 0.055 * h)
    knee = (0.25 * h * math.sin(swing), hip_y - 0.25 * h * math.cos(swing), side * 0.055 * h)
    foot = (
        knee[0] + 0.25 * h * math.sin(swing - bend),
        knee[1] - 0.25 * h * math.cos(swing - bend),
        side * 0.05 * h,
    )
    tone = 0.92 if side < 0 else 1.0
    shin = wear.skin if body.kind in ("shorts", "skirt") else tone_colour(wear.legs, tone * 0.95)
    widths = [0.092 * h * body.build, 0.068 * h * body.build]
    draw_limb(pose, [hip, knee, foot], widths, [tone_colour(wear.legs, tone), shin])
    heel, toe = (foot[0] - 0.02, foot[1] - 0.005, foot[2]), (foot[0] + 0.11, foot[1] - 0.015, foot[2])
    pose.line(heel, toe, 0.05 * h, wear.shoes)


def _draw_arm(pose: Pose, body: _Body, shoulder_y: float, phase: float, side: int) -> None:
    h, half, wear = body.height, body.half, body.wear
    arm = -0.8 * side * body.stride * math.sin(phase)
    shoulder = (0.0, shoulder_y, side * half * 1.02)
    elbow = (0.17 * h * math.sin(arm), shoulder_y - 0.17 * h * math.cos(arm), side * half * 1.15)
    hand = (
        elbow[0] + 0.15 * h * math.sin(arm + 0.4),
        elbow[1] - 0.15 * h * math.cos(arm + 0.4),
        side * half * 1.12,
    )
    sleeve = [tone_colour(wear.top, 0.88), tone_colour(wear.top, 0.82)]
    draw_limb(pose, [shoulder, elbow, hand], [0.06 * h * body.build, 0.05 * h], sleeve)
    pose.line(hand, (hand[0] + 0.01, hand[1] - 0.03, hand[2]), 0.045 * h, wear.skin)
    if body.bag is not None and side == 1:
        y = hand[1] - 0.2
        pose.line((hand[0] - 0.08, y, hand[2]), (hand[0] + 0.08, y, hand[2]), 0.17, body.bag)


def _draw_trunk(pose: Pose, body: _Body, hip_y: float, shoulder_y: float, phase: float) -> None:
    h, half, wear = body.height, body.half, body.wear
    if body.kind in ("coat", "skirt"):
        hem = 0.30 * h if body.kind == "skirt" else 0.36 * h
        cloth = tone_colour(wear.legs if body.kind == "skirt" else wear.top, 0.9)
        for share in (-1.0, 0.0, 1.0):
            lower = (0.05 * share * math.sin(phase), hem, share * half * 0.85)
            pose.line((0.0, hip_y, share * half * 0.6), lower, half * 0.95, cloth)
    draw_torso(pose, (0.0, hip_y, 0.0), (0.0, shoulder_y, 0.0), half, half, wear.top)
    belt = wear.top if body.kind == "coat" else wear.legs
    pose.line((0.0, hip_y - 0.01, -half * 0.6), (0.0, hip_y - 0.01, half * 0.6), half * 0.95, belt)
    if body.rucksack is not None:
        back = -half * 0.85
        pose.line((back, shoulder_y - 0.24 * h, 0.0), (back, shoulder_y - 0.06, 0.0), 0.19 * h, body.rucksack)
    draw_head(pose, (0.015, 0.925 * h, 0.0), 0.068 * h, wear, helmet=False)


def make_pedestrian(rng: np.random.Generator) -> StrokeModel:
    """A walking person drawn from ``rng``: child or adult; coat, skirt, shorts; rucksack, bag."""
    body = _Body(
        height=float(rng.uniform(1.1, 1.4) if rng.random() < 0.1 else rng.uniform(1.55, 1.92)),
        build=float(rng.uniform(0.9, 1.22)),
        kind=str(rng.choice(["trousers", "coat", "skirt", "shorts"], p=[0.5, 0.25, 0.13, 0.12])),
        wear=dress(rng),
        rucksack=pick_colour(rng, TOPS) if rng.random() < 0.25 else None,
        bag=pick_colour(rng, TOPS) if rng.random() < 0.2 else None,
        stride=float(rng.uniform(0.38, 0.52)),
    )
    poses = []
    for phase in (np.arange(PHASES) * 2 * math.pi / PHASES).tolist():
        pose = Pose()
        hip_y, shoulder_y = 0.51 * body.height + 0.008 * math.cos(2 * phase), 0.80 * body.height
        for side in (-1, 1):
            _draw_leg(pose, body, hip_y, phase, side)
            _draw_arm(pose, body, shoulder_y, phase, side)
        _draw_trunk(pose, body, hip_y, shoulder_y, phase)
        poses.append(pose)
    return finish(poses, (0.55, body.height, 0.5))
