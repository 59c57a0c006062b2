"""Light on the road: shadows, the dark below cars, pools of street lamps, beams of headlights.

All of it is drawn into a small picture in image space, a third as large as the frame, by which the
ground is multiplied. Objects ask for the lamp light at their place.
"""

from __future__ import annotations

import math

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_camera import NEAR_METRES, Camera, cut_near
from pcmoe_det.datasets.street_ground import GroundTexture
from pcmoe_det.datasets.street_layout import StreetLayout
from pcmoe_det.datasets.street_mesh import Mesh
from pcmoe_det.datasets.street_movers import Mover
from pcmoe_det.datasets.street_weather import Light

__all__ = ["GroundLighting"]

FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]

_REDUCTION = 3
_SHADOW_METRES, _BEAM_METRES = 95.0, 75.0


class GroundLighting:
    """Computes the light on the ground of one street.

    Args:
        ground: Has the lamps' pools.
        layout: The street.
        own_beams: Whether the camera's vehicle has headlights.
    """

    def __init__(self, ground: GroundTexture, *, layout: StreetLayout, own_beams: bool) -> None:
        self._ground, self._layout, self._own_beams = ground, layout, own_beams
        self._lamp_colour = np.array(layout.lamp_colour) / 255.0
        self._beams: Image | None = None
        self._beams_top = 0

    def lamp_light_at(self, x: float, z: float, light: Light) -> FloatArray:
        """``[3]`` light of street lamps at a place on the ground."""
        if light.lamps < 0.02:
            return np.zeros(3)
        level, block = self._ground.lamp_light, self._layout.block_metres
        row = int(((z % block) + self._ground.lead_metres) * level.pixels_per_metre)
        column = int((x + level.half_width) * level.pixels_per_metre)
        rows, columns = level.texture.shape[:2]
        if not 0 <= column < columns:
            return np.zeros(3)
        return self._lamp_colour * (
            0.62 * light.lamps * float(level.texture[min(row, rows - 1), column]) / 255
        )

    def own_beam_at(self, camera: Camera, x: float, z: float, light: Light) -> FloatArray:
        """``[3]`` light of the camera's own headlights on something upright at ``(x, z)``."""
        if not self._own_beams or light.lamps < 0.02:
            return np.zeros(3)
        ahead = z - camera.position[2]
        if ahead < 1:
            return np.zeros(3)
        aside = (x - camera.position[0]) / (1.6 + 0.2 * ahead)
        strength = 0.62 * light.lamps * math.exp(-aside * aside) * math.exp(-((ahead / 34.0) ** 2))
        return np.array((0.86, 0.97, 1.0)) * strength

    def picture(
        self,
        camera: Camera,
        top: int,
        light: Light,
        movers: list[Mover],
        building_shadows: list[FloatArray],
        tree_shadows: list[tuple[float, float, float]],
    ) -> NDArray[np.uint8]:
        """``[height - top, width, 3]`` light on the ground's rows below ``top``; 128 is full white light."""
        height, width = math.ceil((camera.height - top) / _REDUCTION), math.ceil(camera.width / _REDUCTION)
        sunny = np.full((height, width), 255, np.uint8)
        contact = np.full((height, width), 255, np.uint8)
        shaded = float(light.sun.max()) > 0.03
        matrix = camera.matrix / np.array([[_REDUCTION], [_REDUCTION], [1.0]])
        matrix = matrix - np.outer((0.0, top / _REDUCTION, 0.0), matrix[2])
        if shaded:
            for polygon in building_shadows:
                self._fill(sunny, matrix, camera, polygon, 0)
            for x, z, radius in tree_shadows:
                self._fill(sunny, matrix, camera, _disc(x, z, radius), 60)
        near = [m for m in movers if camera.depth_of(m.x, 0.0, m.z) < _SHADOW_METRES]
        if near:
            outlines, heights = _outlines(near), np.array([m.model.size[1] for m in near])
            if shaded:
                sx, sy, sz = light.sun_direction
                shift = np.array([-sx, -sz]) / max(sy, 0.2) * 0.92 * heights[:, None, None]
                self._fill_hulls(
                    sunny,
                    matrix,
                    camera,
                    np.concatenate([outlines, outlines + shift], axis=1),
                    [0] * len(near),
                )
            dark = [70 if isinstance(mover.model, Mesh) else 150 for mover in near]
            self._fill_hulls(contact, matrix, camera, outlines, dark)
        contact = cv2.blur(contact, (3, 3))
        # 128 is full white light; everything stays in bytes, which is several times as fast as floats.
        parts = [(contact, light.ambient)]
        if shaded:
            lit = cv2.multiply(cv2.blur(sunny, (3, 3)), contact, scale=1 / 255)
            parts.append((lit, light.sun * max(0.35, float(light.sun_direction[1])) * 1.15))
        if light.lamps > 0.02:
            for source, strength in self._lamps(camera, top, (width, height), light, movers, matrix):
                parts.append((cv2.multiply(source, contact, scale=1 / 255), strength))
        small = cv2.merge(
            [_mix([(p, float(s[channel]) * 128 / 255) for p, s in parts]) for channel in range(3)]
        )
        return cv2.resize(small, (camera.width, camera.height - top), interpolation=cv2.INTER_LINEAR)

    def _fill(
        self, target: Image, matrix: FloatArray, camera: Camera, ground: FloatArray, value: int
    ) -> None:
        """Fill a convex polygon ``[n, 2]`` of ground points (x, z)."""
        self._fill_hulls(target, matrix, camera, ground[None], [value])

    def _fill_hulls(
        self, target: Image, matrix: FloatArray, camera: Camera, ground: FloatArray, values: list[int]
    ) -> None:
        """Fill the convex hulls of ``[m, n, 2]`` ground points (x, z)."""
        px, py, pz = camera.position
        offset = matrix @ np.array([-px, -py, -pz])
        rays = ground @ matrix[:, [0, 2]].T + offset
        depths = rays[..., 2].min(axis=1).tolist()
        with np.errstate(divide="ignore", invalid="ignore"):
            points = np.rint((np.clip(rays[..., :2] / rays[..., 2:], -9000, 9000) - 0.5) * 16)
        fixed = np.where(np.isfinite(points), points, 0).astype(np.int32)
        for index, (depth, value) in enumerate(zip(depths, values, strict=True)):
            hull = fixed[index]
            if depth < NEAR_METRES:
                # A hull is only defined before the projection: cut it there.
                around = cv2.convexHull(ground[index].astype(np.float32)).reshape(-1, 2).astype(np.float64)
                polygon = cut_near(around @ matrix[:, [0, 2]].T + offset)
                if len(polygon) < 3:
                    continue
                hull = np.rint((np.clip(polygon[:, :2] / polygon[:, 2:], -9000, 9000) - 0.5) * 16).astype(
                    np.int32
                )
            elif len(hull) > 4:
                hull = cv2.convexHull(hull)
            cv2.fillConvexPoly(target, hull, value, cv2.LINE_8, 4)

    def _lamps(
        self,
        camera: Camera,
        top: int,
        size: tuple[int, int],
        light: Light,
        movers: list[Mover],
        matrix: FloatArray,
    ) -> list[tuple[Image, FloatArray]]:
        """Pictures of light and their colours ``[3]``: street lamps, headlights, own headlights."""
        level, block = self._ground.lamp_light, self._layout.block_metres
        start = math.floor(camera.position[2] / block) * block
        ppm = level.pixels_per_metre
        to_texture = np.array(
            [
                [ppm, 0, level.half_width * ppm - 0.5],
                [0, ppm, (camera.position[2] - start + self._ground.lead_metres) * ppm - 0.5],
                [0, 0, 1],
            ]
        )
        shift = np.array([[_REDUCTION, 0, _REDUCTION / 2], [0, _REDUCTION, top + _REDUCTION / 2], [0, 0, 1]])
        inverse = np.linalg.inv(camera.ground_homography()) @ shift
        pools = cv2.warpPerspective(
            level.texture,
            to_texture @ inverse,
            size,
            flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
            borderMode=cv2.BORDER_CONSTANT,
        )
        beams = np.zeros((size[1], size[0]), np.uint8)
        shining = [
            m
            for m in movers
            if m.lane >= 0 and m.class_id != 5 and camera.depth_of(m.x, 0, m.z) < _BEAM_METRES
        ]
        if shining:
            halves = np.array([m.length / 2 for m in shining])
            for reach, aside, value in ((13.0, 2.3, 105), (6.0, 1.4, 165)):
                forwards = np.stack([halves + 0.6, halves + 0.6, halves + reach, halves + reach], axis=1)
                cones = _local(shining, forwards, np.array([[-0.7, 0.7, aside, -aside]]))
                self._fill_hulls(beams, matrix, camera, cones, [value] * len(shining))
        beams = cv2.blur(beams, (5, 7))
        white = np.array((0.85, 0.96, 1.0)) * light.lamps
        parts = [(pools, self._lamp_colour * (0.85 * light.lamps)), (beams, white * 0.62)]
        if self._own_beams:
            parts.append((self._own_beams_picture(camera, top, size), white * 0.8))
        return parts

    def _own_beams_picture(self, camera: Camera, top: int, size: tuple[int, int]) -> Image:
        """The camera vehicle's own beams; they move with it, so one picture serves the whole shot."""
        if self._beams is None:
            rows_above = 40
            inverse = np.linalg.inv(camera.ground_homography())
            columns = (np.arange(size[0] + 1, dtype=np.float64) + 0.5) * _REDUCTION
            rows = (
                top + (np.arange(size[1] + 2 * rows_above, dtype=np.float64) + 0.5 - rows_above) * _REDUCTION
            )
            x, y = np.meshgrid(columns, rows)
            across, ahead, depth = (inverse[i, 0] * x + inverse[i, 1] * y + inverse[i, 2] for i in range(3))
            depth = np.maximum(depth, 1e-4)
            ahead, across = ahead / depth, across / depth - camera.place_xyz[0]
            aside = across / (1.2 + 0.16 * np.maximum(ahead, 0))
            light = np.exp(-aside * aside) * np.exp(-(((ahead - 7.0) / 15.0) ** 2)) * (ahead > 0)
            self._beams, self._beams_top = (
                np.rint(light * 255).astype(np.uint8),
                top - rows_above * _REDUCTION,
            )
        first = min(max(0, round((top - self._beams_top) / _REDUCTION)), len(self._beams) - size[1])
        return np.ascontiguousarray(self._beams[first : first + size[1], : size[0]])


def _mix(parts: list[tuple[Image, float]]) -> Image:
    """Weighted sum of pictures, saturating."""
    total = cv2.convertScaleAbs(parts[0][0], alpha=parts[0][1])
    for picture, weight in parts[1:]:
        total = cv2.addWeighted(total, 1.0, picture, weight, 0.0)
    return total


def _local(movers: list[Mover], forwards: FloatArray, aside: FloatArray) -> FloatArray:
    """Ground points ``[m, n, 2]`` (x, z) from metres forwards and to the right of each mover."""
    place = np.array([(m.x, m.z, math.sin(m.heading), math.cos(m.heading)) for m in movers])
    x, z, sin, cos = (place[:, i, None] for i in range(4))
    return np.stack([x + forwards * sin + aside * cos, z + forwards * cos - aside * sin], axis=2)


def _outlines(movers: list[Mover]) -> FloatArray:
    """Ground plans ``[m, 8, 2]`` of the movers: rectangles with cut corners."""
    sizes = np.array([m.model.size for m in movers])
    a, b = sizes[:, :1] / 2 + 0.06, sizes[:, 2:] / 2 + 0.06
    cut = np.array([[1, 1, 0.8, -0.8, -1, -1, -0.8, 0.8]])
    return _local(movers, a * cut, b * np.array([[-0.8, 0.8, 1, 1, 0.8, -0.8, -1, -1]]))


def _disc(x: float, z: float, radius: float) -> FloatArray:
    angles = np.linspace(0, 2 * math.pi, 10, endpoint=False)
    return np.stack([x + radius * np.cos(angles), z + radius * np.sin(angles)], axis=1)
