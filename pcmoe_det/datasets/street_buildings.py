"""Which buildings line the street, and drawing them: pictures of fronts warped onto upright planes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_camera import NEAR_METRES, Camera, cut_near, warp_plane
from pcmoe_det.datasets.street_facades import FACADE_PIXELS_PER_METRE, Facade, make_facade, make_plain_wall
from pcmoe_det.datasets.street_furniture import stable_random
from pcmoe_det.datasets.street_ground import smooth_noise
from pcmoe_det.datasets.street_layout import StreetLayout
from pcmoe_det.datasets.street_weather import Light

__all__ = ["DEPTH_SCALE", "Building", "Buildings"]

FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]

DEPTH_SCALE = 255.0 * 3.0
"""The canvas's fourth channel is ``DEPTH_SCALE / depth``: 255 at three metres and nearer, 0 for the sky."""

_END_METRES = 11.0
_LEVELS = 4
_FINE_PIXELS = 6000


@dataclass(frozen=True, slots=True)
class Building:
    """One building or wall beside the road.

    Attributes:
        side: 1 right, -1 left.
        x: Distance of its front from the middle of the road.
        z0: Start along the road.
        z1: End along the road.
        height: Metres.
        picture: Index of its front.
        roof: Height of a pitched roof over the eaves, 0 for a flat one.
        has_end: Whether its end walls may be seen.
    """

    side: int
    x: float
    z0: float
    z1: float
    height: float
    picture: int
    roof: float
    has_end: bool


class _LitPicture:
    """A picture in several resolutions, lit once per change of light."""

    def __init__(self, facade: Facade) -> None:
        surfaces, glows = [facade.surface], [facade.glow]
        for _ in range(_LEVELS - 1):
            size = (max(2, surfaces[-1].shape[1] // 2), max(2, surfaces[-1].shape[0] // 2))
            surfaces.append(cv2.resize(surfaces[-1], size, interpolation=cv2.INTER_AREA))
            glows.append(cv2.resize(glows[-1], size, interpolation=cv2.INTER_AREA))
        self._surfaces, self._glows = surfaces, glows
        self._lit: dict[tuple[int, int], tuple[int, Image]] = {}

    def lit(self, level: int, facing: int, version: int, factor: FloatArray, lamps: float) -> Image:
        """``[h, w, 4]`` picture of ``level`` in light ``factor`` ``[3]``; the fourth channel is unused."""
        cached = self._lit.get((level, facing))
        if cached is not None and cached[0] == version:
            return cached[1]
        surface = self._surfaces[level]
        image = cv2.multiply(surface, (*factor.tolist(), 0.0))
        if lamps > 0.02:
            rows = np.linspace(0.0, 0.13 * lamps, surface.shape[0], dtype=np.float32)[:, None, None]
            image = cv2.add(image, (surface * rows).astype(np.uint8))
            image = cv2.add(image, cv2.multiply(self._glows[level], (lamps, lamps, lamps, 0.0)))
        image = cv2.cvtColor(image, cv2.COLOR_BGR2BGRA)
        self._lit[(level, facing)] = (version, image)
        return image


def _low_wall(rng: np.random.Generator, kind: str) -> Facade:
    """A hedge, fence or guard rail, 32 m long."""
    ppm = FACADE_PIXELS_PER_METRE
    metres = {"hedge": 1.6, "fence": 1.5, "rail": 0.85}[kind]
    height, width = round(metres * ppm), round(32 * ppm)
    noise = smooth_noise(rng, (height, width), (9, 4), wrap=False)[..., None]
    if kind == "hedge":
        image = np.array((38, 78, 58)) * rng.uniform(0.8, 1.2) + noise * 16
        image *= np.linspace(1.25, 0.6, height)[:, None, None]
    elif kind == "fence":
        image = np.array((120, 140, 156)) * rng.uniform(0.5, 1.3) + noise * 5
        image = np.broadcast_to(image, (height, width, 3)).copy()
        image[:, ::3] *= 0.62
        image[2:4] *= 1.15
    else:
        image = np.array((176, 178, 180)) * np.linspace(1.1, 0.7, height)[:, None, None] + noise * 4
        image[round(height * 0.55) :] *= 0.45
        image[:, :: round(2 * ppm)] *= 0.6
    surface = np.clip(np.broadcast_to(image, (height, width, 3)), 0, 255).astype(np.uint8)
    return Facade(surface, np.zeros_like(surface))


class Buildings:
    """The buildings of one street; any stretch of it can be listed and drawn.

    Args:
        rng: Source of the pictures.
        seed: Of the arrangement.
        layout: The street.
    """

    def __init__(self, rng: np.random.Generator, *, seed: int, layout: StreetLayout) -> None:
        self._layout, self._seed = layout, seed
        self._widths: list[float] = []
        self._heights: list[float] = []
        self._kinds: list[str] = []
        self._fronts: list[_LitPicture] = []
        self._ends: list[_LitPicture] = []
        self._roofs = rng.uniform(0.7, 1.2, 16)
        mix = {"city": ["block", "shop", "glass", "shop", "block"], "shops": ["shop", "shop", "block"]}
        kinds = mix.get(layout.environment, ["house", "house", "block"])
        low, high = layout.building_height
        for index in range(7):
            kind = kinds[index % len(kinds)]
            width = float(rng.uniform(8, 12) if kind == "house" else rng.uniform(9, 20))
            height = float(rng.uniform(low, high) * (0.9 if kind == "house" else 1.0))
            facade = make_facade(rng, width, height, kind=kind)
            self._add(kind, width, height, facade, make_plain_wall(rng, facade, _END_METRES))
        self._low_kind = (
            "rail" if layout.environment == "highway" else ("hedge" if rng.random() < 0.5 else "fence")
        )
        low_wall = _low_wall(rng, self._low_kind)
        self._add("low", 32.0, low_wall.surface.shape[0] / FACADE_PIXELS_PER_METRE, low_wall, low_wall)
        self._blocks: dict[int, list[Building]] = {}
        self._version = 0
        self._light: Light | None = None

    def _add(self, kind: str, width: float, height: float, facade: Facade, end: Facade) -> None:
        self._kinds.append(kind)
        self._widths.append(width)
        self._heights.append(height)
        self._fronts.append(_LitPicture(facade))
        self._ends.append(_LitPicture(end))

    def set_light(self, light: Light) -> None:
        """Light for what is drawn from now on."""
        self._light = light
        self._version += 1

    def in_block(self, block: int) -> list[Building]:
        """Buildings between side street ``block`` and the next."""
        if block not in self._blocks:
            if len(self._blocks) > 16:
                del self._blocks[min(self._blocks)]
            self._blocks[block] = [b for side in (-1, 1) for b in self._arrange(block, side)]
        return self._blocks[block]

    def _arrange(self, block: int, side: int) -> list[Building]:
        layout = self._layout
        clear = layout.side_half_width + (2.5 if layout.side_half_width else 0.0)
        z, end = block * layout.block_metres + clear, (block + 1) * layout.block_metres - clear
        open_land = layout.environment in ("suburb", "park", "highway")
        found: list[Building] = []
        if open_land:
            at = layout.kerb_x + 0.4 if self._low_kind == "rail" else layout.wall_x + 0.2
            place, low = z, len(self._kinds) - 1
            while place < end - 2:
                stop = min(end, place + 32.0)
                if self._low_kind == "rail" or stable_random(self._seed, 12, block, side, int(place)) < 0.75:
                    found.append(Building(side, at, place, stop, self._heights[low], low, 0.0, False))
                place = stop
        index, before = 0, (0.0, math.inf)
        while True:
            index += 1
            dice = [stable_random(self._seed, 13, block, side, index, n) for n in range(4)]
            if open_land:
                z += 5.0 + dice[1] * (14.0 if layout.environment == "suburb" else 60.0)
            elif dice[1] < 0.16:
                z += 3.0 + 5.0 * dice[2]
                before = (0.0, math.inf)
            picture = int(dice[0] * (len(self._kinds) - 1))
            stop = z + self._widths[picture]
            if stop > end:
                return found
            setback = (5.0 + 9.0 * dice[3]) if open_land else (0.0 if dice[3] < 0.7 else 1.8 * dice[2])
            if layout.environment == "highway":
                setback += 12.0
            house = self._kinds[picture] == "house"
            height = self._heights[picture]
            # An end wall shows only where the neighbour does not hide it.
            has_end = height > before[0] or setback < before[1] - 0.1
            found.append(
                Building(
                    side, layout.wall_x + setback, z, stop, height, picture, 2.6 if house else 0.0, has_end
                )
            )
            before = (height, setback)
            z = stop

    # -- drawing -----------------------------------------------------------------------------------

    def draw(self, building: Building, camera: Camera, canvas: Image, ids: NDArray[np.uint16]) -> None:
        """Draw onto ``canvas`` (``[h, w, 4]``, BGR and inverse depth), and clear ``ids`` there."""
        light = self._light
        if light is None:
            return
        side, x = building.side, building.side * building.x
        middle = (building.z0 + building.z1) / 2
        if not camera.may_show(
            x + side * _END_METRES / 2, middle, (building.z1 - building.z0 + _END_METRES) / 2
        ):
            return
        cx, _, cz = camera.place_xyz
        sun = light.sun_direction
        if building.has_end:
            z = building.z0 if cz < building.z0 else building.z1
            if not building.z0 <= cz <= building.z1:
                facing = math.copysign(1.0, cz - z)
                factor = light.ambient * 0.84 + light.sun * max(0.0, sun[2] * facing)
                picture = self._ends[building.picture]
                self._draw_plane(
                    picture,
                    1 if facing > 0 else 2,
                    factor,
                    (x, z, x + side * _END_METRES, z),
                    building.height,
                    camera,
                    canvas,
                    ids,
                )
                if building.roof:
                    self._draw_gable(building, z, factor, camera, canvas)
        if (x - cx) * side > 0.2:
            if building.roof:
                self._draw_roof(building, light, camera, canvas)
            factor = light.ambient * 0.93 + light.sun * max(0.0, -side * sun[0])
            picture = self._fronts[building.picture]
            self._draw_plane(
                picture,
                3 + (side > 0),
                factor,
                (x, building.z0, x, building.z1),
                building.height,
                camera,
                canvas,
                ids,
            )

    def _draw_plane(
        self,
        picture: _LitPicture,
        facing: int,
        factor: FloatArray,
        base: tuple[float, float, float, float],
        height: float,
        camera: Camera,
        canvas: Image,
        ids: NDArray[np.uint16],
    ) -> None:
        """An upright rectangle over the ground line ``(x0, z0, x1, z1)``."""
        light = self._light
        x0, z0, x1, z1 = base
        if light is None or max(camera.depth_of(x0, 0, z0), camera.depth_of(x1, 0, z1)) < NEAR_METRES:
            return
        near = min(max(1.0, camera.depth_of(x0, 0, z0)), max(1.0, camera.depth_of(x1, 0, z1)))
        shrink = FACADE_PIXELS_PER_METRE * near / camera.focal
        level = int(np.clip(math.floor(math.log2(max(shrink, 1.0)) + 0.6), 0, _LEVELS - 1))
        texture = picture.lit(level, facing, self._version, factor, light.lamps)
        rows, columns = texture.shape[:2]
        along = np.array([(x1 - x0) / columns, 0.0, (z1 - z0) / columns])
        homography = camera.plane_homography(
            np.array([x0, height, z0]), along, np.array([0.0, -height / rows, 0.0])
        )
        corners = (
            np.array([[0, 0, 1], [columns, 0, 1], [columns, rows, 1], [0, rows, 1]], np.float64)
            @ homography.T
        )
        polygon = cut_near(corners)
        if len(polygon) < 3:
            return
        points = np.clip(polygon[:, :2] / polygon[:, 2:], -30_000, 30_000)
        left, top = (max(0, math.floor(v)) for v in points.min(axis=0))
        right, bottom = (
            min(limit, math.ceil(v))
            for limit, v in zip((camera.width, camera.height), points.max(axis=0), strict=True)
        )
        if right - left < 1 or bottom - top < 1:
            return
        inverse = cv2.invert(homography)[1] @ np.array([[1, 0, left], [0, 1, top], [0, 0, 1.0]])
        size = (right - left, bottom - top)
        warped = warp_plane(
            texture, inverse, size, fine=size[0] * size[1] < _FINE_PIXELS, depth_scale=DEPTH_SCALE
        )
        mask = np.zeros((size[1], size[0]), np.uint8)
        fixed = np.rint((points - (left + 0.5, top + 0.5)) * 16).astype(np.int32)
        cv2.fillConvexPoly(mask, fixed, 1, cv2.LINE_8, 4)
        part = canvas[top:bottom, left:right]
        cv2.copyTo(warped, mask, part)
        np.copyto(ids[top:bottom, left:right], np.uint16(0), where=mask.view(bool))

    def _fill(
        self, corners: list[tuple[float, float, float]], colour: FloatArray, camera: Camera, canvas: Image
    ) -> None:
        world = np.array(corners, np.float64)
        rays = (world - camera.position) @ camera.matrix.T
        polygon = cut_near(rays)
        if len(polygon) < 3:
            return
        depth = float(polygon[:, 2].mean())
        points = np.clip(polygon[:, :2] / polygon[:, 2:], -30_000, 30_000)
        fill = (*np.clip(colour, 0, 255).tolist(), min(255.0, DEPTH_SCALE / depth))
        cv2.fillConvexPoly(canvas, np.rint((points - 0.5) * 16).astype(np.int32), fill, cv2.LINE_AA, 4)

    def _roof_colour(self, building: Building) -> FloatArray:
        tone = self._roofs[building.picture]
        base = (62.0, 78.0, 128.0) if building.picture % 2 else (78.0, 78.0, 84.0)
        return np.array(base) * tone

    def _draw_roof(self, building: Building, light: Light, camera: Camera, canvas: Image) -> None:
        side, x = building.side, building.side * building.x
        over, ridge_x = x - side * 0.4, x + side * _END_METRES / 2
        y0, y1 = building.height - 0.1, building.height + building.roof
        slope = np.array([-side * building.roof, _END_METRES / 2, 0.0])
        facing = max(0.0, float(slope @ light.sun_direction) / float(np.linalg.norm(slope)))
        colour = self._roof_colour(building) * (light.ambient * 1.05 + light.sun * facing)
        z0, z1 = building.z0 - 0.3, building.z1 + 0.3
        self._fill(
            [(over, y0, z0), (over, y0, z1), (ridge_x, y1, z1), (ridge_x, y1, z0)], colour, camera, canvas
        )
        if camera.depth_of(x, y0, (z0 + z1) / 2) > 45:
            return
        for share in (0.2, 0.4, 0.6, 0.8):
            xs, ys = over + (ridge_x - over) * share, y0 + (y1 - y0) * share
            strip = [
                (xs, ys, z0),
                (xs, ys, z1),
                (xs + side * 0.12, ys + 0.07, z1),
                (xs + side * 0.12, ys + 0.07, z0),
            ]
            self._fill(strip, colour * 0.86, camera, canvas)

    def _draw_gable(
        self, building: Building, z: float, factor: FloatArray, camera: Camera, canvas: Image
    ) -> None:
        side, x = building.side, building.side * building.x
        far = x + side * _END_METRES
        colour = np.array((150.0, 160.0, 168.0)) * self._roofs[(building.picture * 3) % 16] * factor
        peak = ((x + far) / 2, building.height + building.roof, z)
        self._fill([(x, building.height, z), (far, building.height, z), peak], colour, camera, canvas)
