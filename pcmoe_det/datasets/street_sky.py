"""Sky, clouds, sun and what stands on the horizon, as one picture larger than the frame.

The picture is also the colour that fog takes on at each pixel, so haze fades into the sky behind it.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_camera import Camera
from pcmoe_det.datasets.street_ground import smooth_noise
from pcmoe_det.datasets.street_layout import StreetLayout
from pcmoe_det.datasets.street_weather import Light

__all__ = ["SkyPicture"]

Image = NDArray[np.uint8]


class SkyPicture:
    """Keeps the layers of the sky and composes them when the light has changed.

    Args:
        rng: Source of clouds and skyline.
        layout: Says what stands on the horizon.
        camera: The unshaken camera; only small deviations from it are allowed for.
    """

    def __init__(self, rng: np.random.Generator, *, layout: StreetLayout, camera: Camera) -> None:
        self._margin = max(16, round(0.06 * camera.width))
        self._base = camera
        width, height = camera.width + 2 * self._margin, camera.height + 2 * self._margin
        self._horizon = camera.horizon_row() + self._margin
        rows = np.arange(height, dtype=np.float64)
        self._elevation: NDArray[np.float64] = np.maximum(
            0.0, np.arctan((self._horizon - rows) / camera.focal)
        )
        self._clouds_shape = (height, width)
        self._small_clouds = np.ascontiguousarray(self._make_clouds(rng, (height, width))[::2, ::2])
        skyline, cover = self._make_skyline(rng, layout, (height, width))
        filled = np.flatnonzero(cover.any(axis=1))
        first, last = (int(filled[0]), int(filled[-1]) + 1) if len(filled) else (0, 1)
        self._skyline_top = first
        self._skyline, self._skyline_cover = skyline[first:last].copy(), cover[first:last].copy()
        self._picture: Image = np.zeros((height, width, 3), np.uint8)

    def _make_clouds(self, rng: np.random.Generator, shape: tuple[int, int]) -> NDArray[np.float32]:
        """Cloud thickness, flattened towards the horizon as a layer at constant height appears."""
        _, width = shape
        plane = smooth_noise(rng, (512, 1024), (128, 64, 28, 12, 5), wrap=True)
        up = np.maximum(self._elevation, 0.012)[:, None]
        across = (np.arange(width)[None, :] - width / 2) / self._base.focal
        v = 34.0 / np.tan(up) + np.zeros((1, width))
        u = 512 + across * np.hypot(34.0 / np.tan(up), 40.0) * 1.3
        warped = cv2.remap(plane, u.astype(np.float32) % 1023, v.astype(np.float32) % 511, cv2.INTER_LINEAR)
        fade = np.clip(self._elevation / 0.09, 0, 1)[:, None]
        return (warped * fade - 2.0 * (1 - fade)).astype(np.float32)

    def _make_skyline(
        self, rng: np.random.Generator, layout: StreetLayout, shape: tuple[int, int]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Colour in white light ``[h, w, 3]`` and coverage ``[h, w]`` of hills, woods and far buildings."""
        height, width = shape
        colour = np.zeros((height, width, 3), np.float32)
        cover = np.zeros((height, width), np.float32)
        base = self._horizon
        layers: list[tuple[float, tuple[float, float, float], float]] = []
        if rng.random() < 0.4:
            layers.append((0.05, (128.0, 118.0, 104.0), 120.0))  # hills
        layers.append((0.028, (70.0, 92.0, 80.0), 24.0))  # woods
        for rise, tone, scale in layers:
            profile = smooth_noise(rng, (width, 2), (int(scale), max(3, int(scale / 4))), wrap=False)[:, 0]
            profile += rng.standard_normal(width).astype(np.float32) * (0.25 if scale < 50 else 0.0)
            top = base - self._base.focal * rise * np.clip(0.6 + 0.35 * profile, 0.05, 2.0)
            inside = (np.arange(height)[:, None] >= top[None, :]) & (np.arange(height)[:, None] <= base + 3)
            colour[inside] = tone
            cover[inside] = 1.0
        if layout.environment in ("city", "shops"):
            place = 0
            while place < width:
                wide = int(rng.integers(6, 30))
                top = round(base - self._base.focal * float(rng.uniform(0.02, 0.11)))
                grey = np.array((1.04, 1.0, 0.97)) * rng.uniform(80, 170)
                area = (slice(max(0, top), round(base) + 3), slice(place, min(width, place + wide)))
                colour[area], cover[area] = grey, 1.0
                windows = colour[area]
                windows[2::4, 1::3] *= 0.75
                place += wide + int(rng.integers(-4, 14))
        grain = rng.normal(1.0, 0.05, (height, width, 1)).astype(np.float32)
        return colour * grain, cv2.GaussianBlur(cover, (3, 3), 0.6)

    def compose(self, light: Light) -> None:
        """Paint the picture for ``light``. All but the skyline is smooth and painted at half resolution."""
        elevation, clouds = self._elevation[::2], self._small_clouds
        up = 1 - np.exp(-elevation * 3.2)
        if light.extinction > 0.01:
            up = up * (0.01 / light.extinction)
        column = light.horizon * (1 - up[:, None]) + light.zenith * up[:, None]
        sky = np.repeat(column.astype(np.float32)[:, None, :], clouds.shape[1], axis=1)
        self._add_sun(sky, light)
        clear = 1.0 if light.extinction < 0.006 else (0.006 / light.extinction) ** 2
        threshold = 1.5 - 2.6 * light.cloud_cover
        over = clouds - np.float32(threshold)
        thick = np.minimum(np.maximum(over * np.float32(0.7), 0), 1) * np.float32(0.9 * clear)
        shade = np.minimum(np.maximum(1.03 - 0.18 * over, 0.6), 1.03)
        cloud = cv2.merge([shade * np.float32(c) for c in light.cloud])
        thick = cv2.merge([thick, thick, thick])
        sky += (cloud - sky) * thick
        height, width = self._clouds_shape
        picture = cv2.resize(
            np.clip(sky, 0, 255).astype(np.uint8), (width, height), interpolation=cv2.INTER_LINEAR
        )
        seen = math.exp(-light.extinction * 240.0)
        glow = ((light.ambient + 0.5 * light.sun) * seen).astype(np.float32)
        rows = slice(self._skyline_top, self._skyline_top + len(self._skyline))
        line = self._skyline * glow + (light.horizon * (1 - seen)).astype(np.float32)
        part = picture[rows].astype(np.float32)
        part += (line - part) * self._skyline_cover[..., None]
        picture[rows] = np.clip(part, 0, 255).astype(np.uint8)
        self._picture = picture

    def _add_sun(self, sky: NDArray[np.float32], light: Light) -> None:
        """Halo around the sun, added to ``sky`` (half resolution)."""
        direction = self._base.rotation @ light.sun_direction
        strength = float(light.sun.max()) * 2.2
        if direction[2] <= 0.05 or strength < 0.05:
            return
        x = self._base.width / 2 + self._base.focal * direction[0] / direction[2] + self._margin
        y = self._base.height / 2 + self._base.focal * direction[1] / direction[2] + self._margin
        rows, columns = np.mgrid[0 : sky.shape[0] : 2, 0 : sky.shape[1] : 2]
        away = np.hypot(columns * 2 - x, rows * 2 - y) / self._base.focal
        halo = np.exp(-away / 0.16) * 110 + np.exp(-((away / 0.035) ** 2)) * 200
        halo = cv2.resize((halo * strength).astype(np.float32), (sky.shape[1], sky.shape[0]))
        sky += halo[..., None] * np.array((0.75, 0.92, 1.0), np.float32)

    def view(self, camera: Camera) -> Image:
        """``[height, width, 3]`` view of it for a slightly deviating ``camera``; not to be written to."""
        dx = round(self._base.focal * (camera.yaw - self._base.yaw))
        dy = round(self._base.horizon_row() - camera.horizon_row())
        x = int(np.clip(self._margin + dx, 0, 2 * self._margin))
        y = int(np.clip(self._margin + dy, 0, 2 * self._margin))
        return self._picture[y : y + camera.height, x : x + camera.width]
