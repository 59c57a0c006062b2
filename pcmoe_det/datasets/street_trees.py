"""Trees as upright pictures that always face the camera."""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_camera import Camera
from pcmoe_det.datasets.street_sprites import Patch
from pcmoe_det.datasets.street_weather import Light

__all__ = ["TreePictures"]

Image = NDArray[np.uint8]


class TreePictures:
    """Keeps tree pictures in several resolutions, lit once per change of light.

    Args:
        pictures: ``[h, w, 4]`` premultiplied BGR and coverage, foot at bottom centre.
    """

    def __init__(self, pictures: list[Image]) -> None:
        self._levels: list[list[Image]] = []
        for picture in pictures:
            levels = [picture]
            while levels[-1].shape[0] > 24:
                size = (max(2, levels[-1].shape[1] // 2), levels[-1].shape[0] // 2)
                levels.append(cv2.resize(levels[-1], size, interpolation=cv2.INTER_AREA))
            self._levels.append(levels)
        self._lit: dict[tuple[int, int], Image] = {}
        self._factor = np.ones(3)

    def set_light(self, light: Light) -> None:
        """Light for what is drawn from now on."""
        self._lit.clear()
        self._factor = light.ambient * 0.95 + light.sun * 0.75

    def draw(
        self, kind: int, camera: Camera, *, x: float, z: float, height: float, grow: NDArray[np.float64]
    ) -> Patch | None:
        """Tree ``kind``, ``height`` metres tall, at ``(x, z)``; ``grow`` is further light ``[3]`` on it."""
        foot, crown = camera.image_of(x, 0.0, z), camera.image_of(x, height, z)
        if min(foot[2], crown[2]) < 0.8:
            return None
        middle, ground, peak = foot[0] / foot[2], foot[1] / foot[2], crown[1] / crown[2]
        tall = ground - peak
        levels = self._levels[kind % len(self._levels)]
        wide = tall * levels[0].shape[1] / levels[0].shape[0]
        left, right = math.floor(middle - wide / 2), math.ceil(middle + wide / 2)
        top, bottom = math.floor(peak), math.ceil(ground)
        x0, y0, x1, y1 = max(0, left), max(0, top), min(camera.width, right), min(camera.height, bottom)
        if x1 - x0 < 2 or y1 - y0 < 2 or tall < 3:
            return None
        level = min(len(levels) - 1, math.floor(math.log2(max(1.0, levels[0].shape[0] / tall)) + 0.5))
        picture = self._lit.get((kind, level))
        if picture is None:
            picture = cv2.multiply(levels[level], (*self._factor.tolist(), 1.0))
            self._lit[(kind, level)] = picture
        scale = picture.shape[0] / tall
        matrix = np.array([[scale, 0, (x0 - middle + wide / 2) * scale], [0, scale, (y0 - peak) * scale]])
        patch = cv2.warpAffine(
            picture,
            matrix,
            (x1 - x0, y1 - y0),
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )
        if float(grow.max()) > 0.03:
            more = 1.0 + 0.5 * grow / np.maximum(self._factor, 0.05)
            patch = cv2.multiply(patch, (*more.tolist(), 1.0))
        return Patch(x0, y0, patch, foot[2], [])
