"""Painted house fronts, trees and skylines: the pictures that stand beside the road.

A facade comes as two pictures: its surface in white light and what its windows give off at night.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_ground import smooth_noise

__all__ = ["FACADE_PIXELS_PER_METRE", "Facade", "make_facade", "make_plain_wall", "make_tree"]

FACADE_PIXELS_PER_METRE = 14.0

Image = NDArray[np.uint8]

_WALLS = (
    (120, 140, 168), (96, 112, 150), (70, 86, 140), (172, 182, 190), (196, 204, 208), (150, 158, 160),
    (118, 122, 126), (140, 170, 188), (160, 186, 204), (92, 100, 108), (180, 176, 160), (128, 150, 196),
)  # fmt: skip
_SIGNS = (
    (40, 40, 190),
    (180, 90, 30),
    (40, 140, 60),
    (30, 30, 34),
    (50, 170, 230),
    (150, 40, 120),
    (220, 220, 224),
)


@dataclass(frozen=True, slots=True, eq=False)
class Facade:
    """One front; rows from the eaves down to the ground.

    Attributes:
        surface: ``[h, w, 3]`` BGR, in white light.
        glow: ``[h, w, 3]`` BGR, added at night; black but for lit windows and signs.
    """

    surface: Image
    glow: Image


def _texture(rng: np.random.Generator, image: Image, style: str) -> None:
    """Bricks, panels or plaster, dirt running down; in place."""
    height, width = image.shape[:2]
    noise = smooth_noise(rng, (height, width), (60, 14), wrap=False) * 3.5
    noise += rng.standard_normal((height, width)).astype(np.float32) * (5.0 if style == "brick" else 2.5)
    noise -= np.linspace(0, 14, height, dtype=np.float32)[:, None] ** 1.0 * 0.7
    if style == "brick":
        noise[::3] -= 11
        noise[:, ::7] -= 5
    elif style == "panel":
        noise[:: int(FACADE_PIXELS_PER_METRE * 1.5)] -= 26
        noise[:, :: int(FACADE_PIXELS_PER_METRE * 2.2)] -= 22
    image[:] = np.clip(image + noise[..., None], 0, 255).astype(np.uint8)


def _window(
    rng: np.random.Generator, facade: Facade, x: int, y: int, w: int, h: int, frame: tuple[int, ...]
) -> None:
    surface, glow = facade.surface, facade.glow
    if w < 3 or h < 3 or x < 0 or y < 0 or x + w > surface.shape[1] or y + h > surface.shape[0]:
        return
    sky = rng.uniform(0.3, 1.0)
    rows = np.linspace(1.0, 0.45, h, dtype=np.float32)[:, None, None]
    glass = rows * np.array((118, 100, 84), np.float32) * sky + np.array((30, 28, 26), np.float32)
    tilt = np.linspace(0.85, 1.15, w, dtype=np.float32)[None, :, None]
    pane = np.clip(glass * tilt, 0, 255)
    kind = rng.random()
    if kind < 0.3:  # curtains
        cloth = rng.uniform(120, 210) * np.array((0.92, 0.97, 1.0), np.float32)
        edge = max(1, round(w * rng.uniform(0.15, 0.3)))
        pane[:, :edge], pane[:, w - edge :] = cloth * 0.8, cloth * 0.75
    elif kind < 0.5:  # blind, partly down
        pane[: round(h * rng.uniform(0.2, 0.8))] = rng.uniform(130, 205)
    surface[y : y + h, x : x + w] = pane.astype(np.uint8)
    if rng.random() < 0.42:
        warm = np.array((90, 175, 235) if rng.random() < 0.75 else (215, 225, 225), np.float32)
        lit = np.clip(warm * rng.uniform(0.35, 0.95) * (0.5 + pane.mean(axis=2, keepdims=True) / 220), 0, 255)
        glow[y : y + h, x : x + w] = lit.astype(np.uint8)
    for target, colour in ((surface, frame), (glow, (0, 0, 0))):
        cv2.rectangle(target, (x, y), (x + w - 1, y + h - 1), colour, 1)
        cv2.line(target, (x + w // 2, y), (x + w // 2, y + h - 1), colour, 1)
    cv2.line(surface, (x, y + h), (x + w - 1, y + h), tuple(int(c * 0.6) for c in frame), 1)


def _shop(rng: np.random.Generator, facade: Facade, top: int, frame: tuple[int, ...]) -> None:
    """Shop fronts along the ground floor: plinth, big panes, a sign with letters, an awning."""
    surface, glow = facade.surface, facade.glow
    height, width = surface.shape[:2]
    x = 0
    while x < width - 20:
        w = min(int(rng.integers(50, 110)), width - x)
        sign = tuple(int(c) for c in _SIGNS[rng.integers(len(_SIGNS))])
        band = top + max(8, round(0.16 * (height - top)))
        cv2.rectangle(surface, (x, top), (x + w - 2, band), sign, -1)
        inverse = (235, 240, 242) if sum(sign) < 420 else (30, 30, 36)
        letter = x + 8
        while letter < x + w - 12:
            size = int(rng.integers(3, 7))
            for target in (surface, glow):
                cv2.line(target, (letter, top + 3), (letter + size // 2, band - 3), inverse, 1, cv2.LINE_AA)
            cv2.rectangle(surface, (letter, top + 3), (letter + size, band - 3), inverse, 1)
            letter += size + 3
        glow[top:band, x : x + w - 2] = np.maximum(
            glow[top:band, x : x + w - 2], np.array(sign) * 0.55
        ).astype(np.uint8)
        pane_top, pane_bottom = band + 2, height - max(4, round(0.1 * (height - top)))
        pane = surface[pane_top:pane_bottom, x + 3 : x + w - 5]
        if pane.size:
            inside = smooth_noise(rng, pane.shape[:2], (12, 5), wrap=False)[..., None] * np.array(
                (24, 26, 30)
            )
            pane[:] = np.clip(inside + rng.uniform(55, 110), 10, 235).astype(np.uint8)
            warm = np.array((0.72, 0.88, 1.0)) * rng.uniform(0.9, 1.7)
            glow[pane_top:pane_bottom, x + 3 : x + w - 5] = np.clip(pane * warm, 0, 255).astype(np.uint8)
        for post in np.linspace(x + 2, x + w - 5, max(2, w // 28)).astype(int):
            cv2.line(surface, (post, pane_top), (post, height - 1), frame, 2)
        if rng.random() < 0.4:
            awning = np.array(
                [[x, band], [x + w - 2, band], [x + w + 2, band + 10], [x - 4, band + 10]], np.int32
            )
            cv2.fillConvexPoly(surface, awning, tuple(int(c * 0.85) for c in sign), cv2.LINE_AA)
            cv2.fillConvexPoly(glow, awning, (0, 0, 0))
        x += w


def make_facade(rng: np.random.Generator, width_metres: float, height_metres: float, *, kind: str) -> Facade:
    """Paint a front of the given size; ``kind`` is ``block``, ``shop``, ``glass`` or ``house``."""
    ppm = FACADE_PIXELS_PER_METRE
    width, height = max(24, round(width_metres * ppm)), max(24, round(height_metres * ppm))
    wall = np.array(_WALLS[rng.integers(len(_WALLS))], np.float32) * rng.uniform(0.75, 1.12)
    surface = np.empty((height, width, 3), np.uint8)
    surface[:] = np.clip(wall + rng.uniform(-10, 10), 0, 235)
    facade = Facade(surface, np.zeros_like(surface))
    _texture(rng, surface, str(rng.choice(["brick", "plaster", "panel", "plaster"])))
    storey = round(rng.uniform(2.8, 3.4) * ppm)
    ground = round(rng.uniform(3.4, 4.4) * ppm) if kind == "shop" else storey
    light_frame = rng.random() < 0.6
    level = int(rng.integers(190, 235) if light_frame else rng.integers(30, 80))
    frame = (level, level, level)
    pitch = round((rng.uniform(1.6, 2.2) if kind == "glass" else rng.uniform(2.2, 3.6)) * ppm)
    share_w = 0.92 if kind == "glass" else rng.uniform(0.38, 0.6)
    share_h = 0.85 if kind == "glass" else rng.uniform(0.45, 0.62)
    columns = max(1, width // pitch)
    margin = (width - columns * pitch) // 2
    bottom = height - ground
    while bottom - storey >= -2:
        top = bottom - storey
        for column in range(columns):
            x = margin + round((column + 0.5 - share_w / 2) * pitch)
            _window(
                rng,
                facade,
                x,
                top + round(storey * 0.2),
                round(pitch * share_w),
                round(storey * share_h),
                frame,
            )
        if kind != "glass" and rng.random() < 0.8:
            cv2.line(surface, (0, bottom), (width, bottom), tuple(int(c * 0.8) for c in wall), 1)
        bottom = top
    if kind == "shop":
        _shop(rng, facade, height - ground, frame)
    else:
        for column in range(columns):
            x = margin + round((column + 0.5) * pitch)
            if rng.random() < 0.25:
                w, h = round(1.2 * ppm), round(2.2 * ppm)
                door = tuple(int(c) for c in rng.uniform(25, 110, 3))
                cv2.rectangle(surface, (x - w // 2, height - h), (x + w // 2, height), door, -1)
                cv2.rectangle(surface, (x - w // 2, height - h), (x + w // 2, height), frame, 1)
            else:
                _window(
                    rng,
                    facade,
                    x - round(pitch * share_w / 2),
                    height - round(storey * 0.8),
                    round(pitch * share_w),
                    round(storey * 0.5),
                    frame,
                )
    cv2.rectangle(
        surface, (0, 0), (width, max(2, round(0.35 * ppm))), tuple(float(c * 0.72) for c in wall), -1
    )
    cv2.rectangle(
        surface, (0, height - round(0.5 * ppm)), (width, height), tuple(float(c * 0.6) for c in wall), -1
    ) if kind != "shop" else None
    return facade


def make_plain_wall(rng: np.random.Generator, facade: Facade, width_metres: float) -> Facade:
    """The windowless end of the building that has ``facade``, as high, ``width_metres`` wide."""
    height = facade.surface.shape[0]
    width = max(16, round(width_metres * FACADE_PIXELS_PER_METRE))
    colour = np.median(facade.surface[: height // 2].reshape(-1, 3), axis=0)
    surface = np.empty((height, width, 3), np.uint8)
    surface[:] = np.clip(colour * 0.92, 0, 255)
    _texture(rng, surface, str(rng.choice(["brick", "plaster"])))
    wall = Facade(surface, np.zeros_like(surface))
    for row in range(round(2 * FACADE_PIXELS_PER_METRE), height - 40, round(3.2 * FACADE_PIXELS_PER_METRE)):
        if rng.random() < 0.6:
            _window(rng, wall, int(width * rng.uniform(0.2, 0.6)), row, 14, 18, (200, 200, 200))
    return wall


def make_tree(rng: np.random.Generator, *, height_pixels: int = 260) -> Image:
    """A tree as a ``[h, w, 4]`` sprite of premultiplied BGR and coverage; trunk foot at bottom centre."""
    height = height_pixels
    width = round(height * rng.uniform(0.6, 0.95))
    sprite = np.zeros((height, width, 4), np.uint8)
    conifer = rng.random() < 0.2
    green = (
        np.array((40, 88, 72))
        + rng.uniform(-14, 14, 3)
        + (np.array((-8, 6, 52)) if rng.random() < 0.12 else 0)
    )
    bark = np.array((52, 64, 78)) + rng.uniform(-14, 14)
    middle, crown_bottom = width / 2, height * (0.88 if conifer else rng.uniform(0.58, 0.72))
    _draw_trunk(rng, sprite, middle, width * rng.uniform(0.022, 0.04), crown_bottom, bark)
    for clump, light in _clumps(rng, width, crown_bottom, conifer=conifer):
        _draw_leaves(rng, sprite, clump, green * light)
    grain = rng.normal(1.0, 0.1, (height, width, 1))
    colour = sprite[..., :3] * grain
    sprite[..., :3] = np.minimum(np.clip(colour, 0, 255), sprite[..., 3:]).astype(np.uint8)
    return sprite


def _draw_trunk(
    rng: np.random.Generator,
    sprite: Image,
    middle: float,
    half: float,
    crown_bottom: float,
    bark: NDArray[np.float64],
) -> None:
    height, width = sprite.shape[:2]
    top = crown_bottom * 0.45
    points = [
        (middle - half * 1.3, height),
        (middle + half * 1.3, height),
        (middle + half * 0.6, top),
        (middle - half * 0.6, top),
    ]
    cv2.fillConvexPoly(sprite, np.array(points, np.int32), (*bark.tolist(), 255), cv2.LINE_AA)
    right = np.array([(middle, height), points[1], points[2], (middle, top)], np.int32)
    cv2.fillConvexPoly(sprite, right, (*(bark * 0.75).tolist(), 255), cv2.LINE_AA)
    for _ in range(9):
        start = (int(middle), int(rng.uniform(0.7, 1.0) * crown_bottom))
        end = (int(middle + rng.uniform(-0.36, 0.36) * width), int(rng.uniform(0.25, 0.7) * crown_bottom))
        cv2.line(sprite, start, end, (*(bark * 0.7).tolist(), 255), max(1, round(half * 0.6)), cv2.LINE_AA)


def _clumps(
    rng: np.random.Generator, width: int, crown_bottom: float, *, conifer: bool
) -> list[tuple[tuple[float, float, float], float]]:
    """Clumps of leaves ``(x, y, radius)`` with their light, back ones (dark) first."""
    clumps = []
    for _ in range(70 if conifer else 56):
        along = rng.random() ** 0.75
        reach = 0.42 * along if conifer else 0.40 * math.sqrt(max(0.0, 1 - (2 * along - 1.05) ** 2))
        aside = rng.uniform(-1, 1)
        radius = width * (rng.uniform(0.05, 0.085) if conifer else rng.uniform(0.08, 0.15))
        y = radius * 0.7 + along * (crown_bottom - radius)
        # Lit from above and left: lower, right and inner clumps are darker, and are drawn first.
        light = 1.15 - 0.5 * along - 0.12 * aside + rng.normal(0, 0.1)
        clumps.append(((width * (0.5 + reach * aside), y, radius), float(np.clip(light, 0.4, 1.45))))
    return sorted(clumps, key=lambda c: c[1])


def _draw_leaves(
    rng: np.random.Generator, sprite: Image, clump: tuple[float, float, float], colour: NDArray[np.float64]
) -> None:
    x, y, radius = clump
    count = 46
    angle, away = rng.uniform(0, 2 * math.pi, count), np.sqrt(rng.random(count)) * radius
    px, py = x + away * np.cos(angle), y + away * np.sin(angle) * 0.85
    light = 1.0 - 0.28 * (py - y) / radius + rng.normal(0, 0.13, count)
    sizes = np.clip(rng.normal(2.6, 0.9, count), 1.2, 5.0)
    tones = np.minimum(np.maximum(colour * light[:, None], 0), 255).tolist()
    centres = (np.stack([px, py], axis=1) * 4).astype(int).tolist()
    radii = (sizes * 4).astype(int).tolist()
    for index in np.argsort(light).tolist():
        cv2.circle(sprite, centres[index], radii[index], (*tones[index], 255), -1, cv2.LINE_8, 2)
