"""What happens between scene and picture: glow of lamps, rain, the car's bonnet, lens and sensor."""

from __future__ import annotations

import math
from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_weather import Light

__all__ = ["Glow", "Lens", "add_glow", "draw_bonnet", "draw_glows"]

Image = NDArray[np.uint8]


def _glow_picture() -> Image:
    y, x = np.mgrid[-1:1:96j, -1:1:96j]
    away = np.hypot(x, y)
    light = np.exp(-((away / 0.14) ** 2)) + 0.42 * np.exp(-away / 0.2) * np.clip(1 - away, 0, 1)
    return np.clip(light * 230, 0, 255).astype(np.uint8)


_GLOW = cv2.merge([_glow_picture()] * 3)


def add_glow(
    image: Image,
    x: float,
    y: float,
    radius: float,
    colour: tuple[float, ...],
    power: float,
    *,
    stretch: float = 1.0,
) -> None:
    """Add a halo of ``radius`` pixels to ``image`` (in place); ``stretch`` makes it taller than wide."""
    wide, tall = max(2, round(radius)), max(2, round(radius * stretch))
    left, top = round(x) - wide, round(y) - tall
    x0, y0, x1, y1 = (
        max(0, left),
        max(0, top),
        min(image.shape[1], left + 2 * wide),
        min(image.shape[0], top + 2 * tall),
    )
    if x1 <= x0 or y1 <= y0:
        return
    halo = cv2.resize(_GLOW, (2 * wide, 2 * tall), interpolation=cv2.INTER_LINEAR)
    part = halo[y0 - top : y1 - top, x0 - left : x1 - left]
    factors = tuple(min(2.0, c / 255 * power) for c in colour[:3])
    area = image[y0:y1, x0:x1]
    cv2.add(area, cv2.multiply(part, (*factors, 0.0)), area)


class Glow(NamedTuple):
    """A lamp that shines towards the camera.

    Attributes:
        x: Image column.
        y: Image row.
        depth: Metres from the image plane.
        strength: About 1.
        kind: 1 head lamp, 2 tail lamp, 3 street lamp, 4-6 signal (green, amber, red).
        number: Number in the picture of movers of what carries it; 0 for standing things.
    """

    x: float
    y: float
    depth: float
    strength: float
    kind: int
    number: int


def draw_glows(
    image: Image,
    ids: NDArray[np.uint16],
    glows: list[Glow],
    light: Light,
    *,
    lamp_colour: tuple[float, float, float],
) -> None:
    """Add halos of the lamps that are not hidden, and their mirror images on a wet road; in place."""
    colours = {1: (215.0, 238.0, 255.0), 2: (40.0, 34.0, 215.0), 3: lamp_colour}
    colours |= {4: (50.0, 190.0, 70.0), 5: (30.0, 170.0, 230.0), 6: (50.0, 40.0, 215.0)}
    height, width = ids.shape
    haze = min(1.0, 14 * light.extinction)
    for x, y, depth, strength, kind, number in glows:
        column, row = int(x), int(y)
        if not (0 <= column < width and 0 <= row < height) or ids[row, column] not in (number, 0):
            continue
        lamps = light.lamps if kind in (1, 3) else max(light.lamps, 0.25)
        size = {1: 0.8, 2: 0.42, 3: 1.3}.get(kind, 0.35) * (1 + 1.5 * haze)
        radius = min(max(size * width / depth, 2.5), width / 9)
        power = (
            strength * lamps * math.exp(-light.extinction * depth * 0.7) * (1.0 if kind in (1, 3) else 0.7)
        )
        if power > 0.03:
            add_glow(image, x, y, radius, colours[kind], power)
            if light.wet > 0.3 and kind != 3:
                mirrored = power * 0.4 * light.wet
                add_glow(image, x, y + radius * 2.6, radius * 0.8, colours[kind], mirrored, stretch=3.0)


def draw_bonnet(
    canvas: Image, ids: NDArray[np.uint16], colour: tuple[float, ...], light: Light, time: float
) -> None:
    """The camera vehicle's own bonnet along the lower edge; hides what is behind it."""
    height, width = ids.shape
    top = round(height * (0.925 + 0.003 * math.sin(time * 9)))
    x = np.linspace(0, width, 25)
    arch = top + (height - top) * 0.85 * ((x - width / 2) / (width * 0.56)) ** 4
    edge = np.stack([x, arch], axis=1)
    corners = np.array([[width, height], [0, height]], np.float64)
    outline = np.concatenate([edge, corners]).astype(np.int32)
    factor = light.ambient + 0.6 * light.sun
    base = np.array(colour[:3]) * factor
    # The bonnet mirrors the sky less and less towards the windscreen.
    for step in range(8):
        gloss = 0.34 * (1 - step / 8) ** 1.6
        lower = edge + np.array([0, (height - top) * step / 8])
        strip = np.concatenate([lower, corners]).astype(np.int32)
        mirrored = base * (0.9 - gloss) + light.horizon * gloss
        cv2.fillPoly(canvas, [strip], (*np.clip(mirrored, 0, 255).tolist(), 255))
    mask = np.zeros(ids.shape, np.uint8)
    cv2.fillPoly(mask, [outline], 255)
    ids[mask > 0] = 0


class Lens:
    """Softness, vignette, tone curve, noise and rain of one camera.

    Args:
        rng: Source of the camera's character.
        width: Image width, pixels.
        height: Image height, pixels.
    """

    def __init__(self, rng: np.random.Generator, width: int, height: int) -> None:
        self._rng = np.random.default_rng(int(rng.integers(2**31)))
        self._size = (width, height)
        self._soft = float(rng.choice([0.0, 0.45, 0.6, 0.8], p=[0.3, 0.3, 0.25, 0.15]))
        y, x = np.mgrid[-1 : 1 : height * 1j, -1 : 1 : width * 1j]
        dark = 1 - rng.uniform(0.02, 0.22) * np.clip((x**2 + y**2) / 2, 0, 1) ** 1.3
        grey = np.rint(dark * 255).astype(np.uint8)
        self._vignette = cv2.merge([grey, grey, grey])
        self._noise_sigma = float(rng.uniform(1.0, 4.5))
        tile = rng.standard_normal((height + 128, width + 128, 3)).astype(np.float32)
        tile = tile * 0.6 + tile[..., :1] * 0.7
        self._noise_tiles = [
            np.clip(128 + tile * self._noise_sigma * gain, 0, 255).astype(np.uint8) for gain in (1.0, 2.2)
        ]
        level = np.linspace(0, 1, 256)
        contrast, gamma = rng.uniform(0.88, 1.22), rng.uniform(0.85, 1.12)
        curve = np.clip(0.5 + (level**gamma - 0.5) * contrast + rng.uniform(-0.02, 0.03), 0, 1)
        tint = rng.normal(1.0, 0.022, 3)
        self._table = (
            np.clip(curve[:, None] * tint[None, :] * 255, 0, 255).astype(np.uint8).reshape(1, 256, 3)
        )
        self._saturation = float(rng.uniform(0.72, 1.25))
        mix = np.eye(3) * self._saturation + (1 - self._saturation) * np.array([[0.114, 0.587, 0.299]] * 3)
        self._mix = mix.astype(np.float32)
        self._streaks = [self._rain_picture(rng, width, height) for _ in range(3)]

    def _rain_picture(self, rng: np.random.Generator, width: int, height: int) -> Image:
        picture = np.zeros((height, width), np.uint8)
        lean = float(rng.uniform(-0.25, 0.25))
        for _ in range(width * height // 900):
            x, y, near = rng.uniform(0, width), rng.uniform(-20, height), rng.random() ** 2
            long = (6 + 30 * near) * height / 360
            end = (int(x + lean * long), int(y + long))
            cv2.line(picture, (int(x), int(y)), end, int(30 + 70 * near), 1, cv2.LINE_AA)
        return cv2.GaussianBlur(picture, (3, 3), 0.7)

    def apply(self, image: Image, light: Light, speed: float) -> Image:
        """The picture as the camera delivers it; ``speed`` of the camera in metres per second."""
        rng = self._rng
        del speed
        if light.rain > 0.05:
            streaks = self._streaks[int(rng.integers(len(self._streaks)))]
            shift_y, shift_x = int(rng.integers(self._size[1])), int(rng.integers(self._size[0]))
            rolled = np.roll(streaks, (shift_y, shift_x), axis=(0, 1))
            bright = light.rain * float(np.clip(light.horizon.mean() / 255, 0.25, 0.8))
            rolled = cv2.convertScaleAbs(rolled, alpha=bright)
            image = cv2.add(image, cv2.merge([rolled, rolled, rolled]))
        if self._soft:
            image = cv2.GaussianBlur(image, (3, 3), self._soft)
        image = cv2.transform(image, self._mix)
        image = cv2.LUT(image, self._table)
        image = cv2.multiply(image, self._vignette, scale=1 / 255)
        y, x = (int(v) for v in rng.integers(0, 128, 2))
        tile = self._noise_tiles[1 if light.lamps > 0.5 else 0][
            y : y + image.shape[0], x : x + image.shape[1]
        ]
        return cv2.addWeighted(image, 1.0, tile, 1.0, -128.0)
