"""Draws a street: ground, buildings, things and movers back to front, then fog, light of lamps, lens.

The canvas has four channels: BGR and inverse depth (``DEPTH_SCALE / depth``), by which fog is mixed in
at the end. A second picture holds, per pixel, the number of the mover drawn there; labels are read
from it.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_buildings import DEPTH_SCALE, Building, Buildings
from pcmoe_det.datasets.street_camera import Camera, warp_plane
from pcmoe_det.datasets.street_effects import Glow, Lens, draw_bonnet, draw_glows
from pcmoe_det.datasets.street_facades import make_tree
from pcmoe_det.datasets.street_furniture import Furniture, Standing
from pcmoe_det.datasets.street_ground import make_ground
from pcmoe_det.datasets.street_layout import CameraMount, StreetLayout
from pcmoe_det.datasets.street_lighting import GroundLighting
from pcmoe_det.datasets.street_movers import Mover
from pcmoe_det.datasets.street_objects import Shade
from pcmoe_det.datasets.street_sky import SkyPicture
from pcmoe_det.datasets.street_sprites import Patch, SpritePainter
from pcmoe_det.datasets.street_traffic import FAR_METRES, Traffic
from pcmoe_det.datasets.street_trees import TreePictures
from pcmoe_det.datasets.street_weather import Light

__all__ = ["Seen", "StreetRenderer"]

FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]


_COARSE_METRES = 10.0
"""Up to this depth the ground is warped at half resolution; see ``warp_plane``."""


@dataclass(frozen=True, slots=True)
class Seen:
    """One mover as drawn.

    Attributes:
        mover: It.
        box: ``(x1, y1, x2, y2)`` of its visible pixels; pixel edges, so ``x2 - x1`` is its width.
        visible_pixels: Number of pixels that show it.
        drawn_pixels: Number of pixels that would show it if nothing stood before it.
    """

    mover: Mover
    box: tuple[int, int, int, int]
    visible_pixels: int
    drawn_pixels: int


class StreetRenderer:
    """Draws the frames of one shot.

    Args:
        seed: Of all looks.
        layout: The street.
        mount: The camera.
        camera: The unshaken camera.
    """

    def __init__(self, seed: int, *, layout: StreetLayout, mount: CameraMount, camera: Camera) -> None:
        rng = np.random.default_rng([seed, 21])
        self._layout, self._mount = layout, mount
        self._ground = make_ground(rng, layout)
        self._buildings = Buildings(rng, seed=seed, layout=layout)
        self._trees = TreePictures([make_tree(rng) for _ in range(5)])
        self._furniture = Furniture(
            rng, seed=seed, layout=layout, tree_kinds=5, clear_x=mount.x if mount.kind == "roadside" else None
        )
        self._sky = SkyPicture(rng, layout=layout, camera=camera)
        self._painter = SpritePainter(rng)
        self._version = 0
        self._light_age = 0
        self._lens = Lens(rng, camera.width, camera.height)
        self._lighting = GroundLighting(self._ground, layout=layout, own_beams=mount.kind == "dashcam")
        self._light: Light | None = None
        self.ids: NDArray[np.uint16] = np.zeros((camera.height, camera.width), np.uint16)

    def render(self, camera: Camera, traffic: Traffic, light: Light) -> tuple[Image, list[Seen]]:
        """One frame ``[height, width, 3]`` BGR, and the movers visible in it."""
        light = self._adopt(light)
        self._painter.next_frame()
        canvas = np.zeros((camera.height, camera.width, 4), np.uint8)
        self.ids = np.zeros((camera.height, camera.width), np.uint16)
        movers = [m for m in traffic.movers() if self._in_reach(m, camera)]
        near, far = camera.position[2] - 12.0, camera.position[2] + FAR_METRES
        standing = self._furniture.between(near, far, self._signals(traffic, near, far))
        self._draw_ground(camera, canvas, light, movers, standing)
        glows: list[Glow] = []
        seen: list[tuple[Mover, Patch, int]] = []
        self._draw_background(camera, canvas, light, movers, seen, glows)
        self._draw_street(camera, canvas, light, movers, standing, seen, glows)
        if self._mount.bonnet:
            draw_bonnet(canvas, self.ids, self._mount.bonnet_colour, light, traffic.time)
        image = self._fog(canvas, self._sky.view(camera), light)
        draw_glows(image, self.ids, glows, light, lamp_colour=self._layout.lamp_colour)
        labels = self._read_labels(seen, light)
        return self._lens.apply(image, light, traffic.ego_speed), labels

    # -- light -------------------------------------------------------------------------------------

    def _adopt(self, light: Light) -> Light:
        """Keep using the last light until the new one is visibly different; relighting costs time."""
        old = self._light
        if old is not None:
            change = max(
                float(np.abs(light.ambient - old.ambient).max()),
                float(np.abs(light.sun - old.sun).max()),
                abs(light.lamps - old.lamps),
                float(np.abs(light.horizon - old.horizon).max()) / 160,
                abs(light.extinction - old.extinction) * 12,
                abs(light.wet - old.wet) / 3,
                abs(light.cloud_cover - old.cloud_cover) / 3,
            )
            self._light_age += 1
            if change < 0.016 or (self._light_age < 4 and change < 0.08):
                return old
        self._light = light
        self._version += 1
        self._light_age = 0
        self._buildings.set_light(light)
        self._trees.set_light(light)
        self._sky.compose(light)
        return light

    def _shade(
        self, camera: Camera, x: float, z: float, light: Light, *, braking: bool = False, parked: bool = False
    ) -> Shade:
        ambient = light.ambient + self._lighting.lamp_light_at(x, z, light)
        beam = self._lighting.own_beam_at(camera, x, z, light)
        sky = light.horizon * 0.5 + light.zenith * 0.5
        return Shade(
            ambient, light.sun, light.sun_direction, sky, 0.0 if parked else light.lamps, braking, beam
        )

    def _signals(self, traffic: Traffic, near: float, far: float) -> dict[int, int]:
        layout = self._layout
        if not layout.side_half_width:
            return {}
        first, last = math.ceil((near - 9) / layout.block_metres), math.floor((far + 9) / layout.block_metres)
        return {k: 0 if traffic.green(k, main=True) else 2 for k in range(first, last + 1)}

    # -- parts -------------------------------------------------------------------------------------

    def _in_reach(self, mover: Mover, camera: Camera) -> bool:
        return mover.z - camera.position[2] < FAR_METRES and camera.may_show(
            mover.x, mover.z, mover.length / 2 + 3.0
        )

    def _draw_ground(
        self, camera: Camera, canvas: Image, light: Light, movers: list[Mover], standing: list[Standing]
    ) -> None:
        inverse = np.linalg.inv(camera.ground_homography())
        a, b, c = inverse[2]
        middle = camera.width / 2
        # Depth d lies in row y where a * x + b * y + c = 1 / d.
        horizon = max(0, math.ceil(((1 / 500.0) - c - a * middle) / b - abs(a / b) * middle))
        if horizon >= camera.height - 2:
            return
        block = self._layout.block_metres
        start = math.floor(camera.position[2] / block) * block
        bottom = camera.height
        colour = np.empty((camera.height - horizon, camera.width, 3), np.uint8)
        for level in self._ground.levels:
            top = max(horizon, min(bottom, math.ceil((1 / level.until_metres - c - a * middle) / b)))
            if top >= bottom:
                continue
            ppm = level.pixels_per_metre
            along = (camera.position[2] - start + self._ground.lead_metres) * ppm
            to_texture = np.array([[ppm, 0, level.half_width * ppm], [0, ppm, along], [0, 0, 1]])
            to_texture = to_texture @ inverse @ np.array([[1, 0, 0], [0, 1, top], [0, 0, 1.0]])
            fine = level.until_metres > _COARSE_METRES
            colour[top - horizon : bottom - horizon] = warp_plane(
                level.texture, to_texture, (camera.width, bottom - top), fine=fine
            )
            bottom = top
        trees = [(s.x, s.z, s.height) for s in standing if s.tree >= 0 and abs(s.x) < self._layout.wall_x + 4]
        shadow_shift = light.sun_direction / max(float(light.sun_direction[1]), 0.2)
        spots = [
            (x - shadow_shift[0] * h * 0.65, z - shadow_shift[2] * h * 0.65, h * 0.3) for x, z, h in trees
        ]
        spots = [s for s in spots if camera.depth_of(s[0], 0, s[1]) > s[2] + 1]
        picture = self._lighting.picture(
            camera, horizon, light, movers, self._building_shadows(camera, light), spots
        )
        part = canvas[horizon:]
        colour = cv2.multiply(colour, picture, scale=1 / 128)
        if light.wet > 0.02:
            dull = 1 - 0.33 * light.wet
            mirror = light.horizon * 0.2 * light.wet
            colour = cv2.add(cv2.multiply(colour, (dull, dull, dull, 0)), (*mirror.tolist(), 0))
        cv2.cvtColor(colour, cv2.COLOR_BGR2BGRA, part)
        x, y = (
            np.arange(camera.width, dtype=np.float32) + 0.5,
            np.arange(horizon, camera.height, dtype=np.float32) + 0.5,
        )
        depth = (np.float32(a * DEPTH_SCALE) * x)[None, :] + (
            np.float32(b * DEPTH_SCALE) * y + np.float32(c * DEPTH_SCALE)
        )[:, None]
        cv2.insertChannel(cv2.convertScaleAbs(depth), part, 3)

    def _building_shadows(self, camera: Camera, light: Light) -> list[FloatArray]:
        if float(light.sun.max()) < 0.03:
            return []
        sx, sy, _ = light.sun_direction
        reach = -sx / max(sy, 0.2)
        side = 1 if sx > 0 else -1
        shadows = []
        for building in self._nearby_buildings(camera):
            if building.side == side and building.height > 3:
                edge = side * building.x
                tip = edge + reach * building.height
                tip = max(tip, -self._layout.wall_x) if side > 0 else min(tip, self._layout.wall_x)
                shadows.append(
                    np.array(
                        [(edge, building.z0), (tip, building.z0), (tip, building.z1), (edge, building.z1)]
                    )
                )
        return shadows

    def _nearby_buildings(self, camera: Camera) -> list[Building]:
        block = self._layout.block_metres
        near, far = camera.position[2] - 14.0, camera.position[2] + FAR_METRES + 10.0
        blocks = range(math.floor(near / block), math.floor(far / block) + 1)
        return [b for k in blocks for b in self._buildings.in_block(k) if b.z1 > near and b.z0 < far]

    def _draw_background(
        self,
        camera: Camera,
        canvas: Image,
        light: Light,
        movers: list[Mover],
        seen: list[tuple[Mover, Patch, int]],
        glows: list[Glow],
    ) -> None:
        """Buildings, and traffic in side streets between them, by distance along the road.

        Inside the street no building hides anything: it is convex. So the rest is drawn afterwards.
        """
        middle = camera.position[2]
        items: list[tuple[float, int, object]] = []
        for index, building in enumerate(self._nearby_buildings(camera)):
            items.append((abs((building.z0 + building.z1) / 2 - middle), index, building))
        for mover in movers:
            if abs(mover.x) - mover.length / 2 > self._layout.wall_x:
                items.append((abs(mover.z - middle), mover.track_id, mover))
        for _, _, item in sorted(items, key=lambda entry: (-entry[0], entry[1])):
            if isinstance(item, Mover):
                self._draw_mover(item, camera, canvas, light, seen, glows)
            else:
                self._buildings.draw(item, camera, canvas, self.ids)  # type: ignore[arg-type]

    def _draw_street(
        self,
        camera: Camera,
        canvas: Image,
        light: Light,
        movers: list[Mover],
        standing: list[Standing],
        seen: list[tuple[Mover, Patch, int]],
        glows: list[Glow],
    ) -> None:
        px, _, pz = camera.position
        items: list[tuple[float, int, Mover | Standing]] = []
        for mover in movers:
            if abs(mover.x) - mover.length / 2 <= self._layout.wall_x:
                items.append((math.hypot(mover.x - px, mover.z - pz), mover.track_id, mover))
        for number, thing in enumerate(standing):
            if not camera.may_show(thing.x, thing.z, 0.5 * thing.height):
                continue
            items.append((math.hypot(thing.x - px, thing.z - pz), -number, thing))
        for _, _, item in sorted(items, key=lambda entry: (-entry[0], entry[1])):
            if isinstance(item, Mover):
                self._draw_mover(item, camera, canvas, light, seen, glows)
            else:
                self._draw_standing(item, camera, canvas, light, glows)

    def _draw_mover(
        self,
        mover: Mover,
        camera: Camera,
        canvas: Image,
        light: Light,
        seen: list[tuple[Mover, Patch, int]],
        glows: list[Glow],
    ) -> None:
        parked = mover.lane == -2
        braking = mover.braking and mover.lane >= 0

        def shade() -> Shade:
            return self._shade(camera, mover.x, mover.z, light, braking=braking, parked=parked)

        patch = self._painter.paint(
            mover.model, camera, x=mover.x, z=mover.z, heading=mover.heading, phase=mover.phase,
            key=mover.track_id, state=(self._version, braking), shade=shade,
        )  # fmt: skip
        if patch is None:
            return
        number = len(seen) + 1
        drawn = self._lay(patch, canvas, number)
        seen.append((mover, patch, drawn))
        for x, y, strength, kind in patch.glows:
            glows.append(Glow(x, y, patch.depth, strength, kind, number))

    def _draw_standing(
        self,
        thing: Standing,
        camera: Camera,
        canvas: Image,
        light: Light,
        glows: list[Glow],
    ) -> None:
        if thing.tree >= 0:
            patch = self._trees.draw(
                thing.tree,
                camera,
                x=thing.x,
                z=thing.z,
                height=thing.height,
                grow=self._lighting.lamp_light_at(thing.x * 0.92, thing.z, light),
            )
        elif thing.model is not None:
            patch = self._painter.paint(
                thing.model, camera, x=thing.x, z=thing.z, heading=thing.heading, phase=0.0, key=thing.key,
                state=(self._version, id(thing.model)),
                shade=lambda: self._shade(camera, thing.x, thing.z, light),
            )  # fmt: skip
            if patch is not None and thing.model.glows.any():
                self._standing_glows(thing, camera, glows)
        else:
            return
        if patch is not None:
            self._lay(patch, canvas, 0)

    def _standing_glows(
        self,
        thing: Standing,
        camera: Camera,
        glows: list[Glow],
    ) -> None:
        """Lamps of standing things shine to all sides; signals only against their heading."""
        model = thing.model
        if model is None:
            return
        sin, cos = math.sin(thing.heading), math.cos(thing.heading)
        for index in np.flatnonzero(model.glows).tolist():
            kind = int(model.glows[index])
            a, y, b = model.joints[0, index]
            point = (thing.x + a * sin + b * cos, y, thing.z + a * cos - b * sin)
            u, v, depth = camera.image_of(*point)
            if depth > 1.0 and (kind == 3 or (camera.position[2] - thing.z) * cos < 0):
                glows.append(Glow(u / depth, v / depth, depth, 1.0, kind, 0))

    def _lay(self, patch: Patch, canvas: Image, number: int) -> int:
        """Put a patch over the canvas and its number into ``ids``; the number of its pixels."""
        height, width = patch.image.shape[:2]
        area = (slice(patch.y, patch.y + height), slice(patch.x, patch.x + width))
        cover = cv2.extractChannel(patch.image, 3)
        rest = cv2.bitwise_not(cover)
        under = canvas[area]
        cv2.multiply(under, cv2.merge((rest, rest, rest, rest)), under, 1 / 255)
        scale = min(1.0, DEPTH_SCALE / max(patch.depth, 0.1) / 255.0)
        cv2.insertChannel(cv2.convertScaleAbs(cover, alpha=scale), patch.image, 3)
        cv2.add(under, patch.image, under)
        inside = cover > 127
        np.copyto(self.ids[area], np.uint16(number), where=inside)
        return int(np.count_nonzero(inside))

    # -- the whole picture -------------------------------------------------------------------------

    def _fog(self, canvas: Image, sky: Image, light: Light) -> Image:
        steps = np.arange(256, dtype=np.float64)
        depth = DEPTH_SCALE / np.maximum(steps, 0.5)
        through = np.exp(-light.extinction * depth)
        through[0] = 0.0
        table = np.rint(through * 255).astype(np.uint8)
        seen = cv2.LUT(cv2.extractChannel(canvas, 3), table)
        seen = cv2.merge((seen, seen, seen))
        near = cv2.multiply(cv2.cvtColor(canvas, cv2.COLOR_BGRA2BGR), seen, scale=1 / 255)
        return cv2.add(near, cv2.multiply(sky, cv2.bitwise_not(seen), scale=1 / 255))

    def _read_labels(self, seen: list[tuple[Mover, Patch, int]], light: Light) -> list[Seen]:
        labels = []
        for index, (mover, patch, drawn) in enumerate(seen):
            height, width = patch.image.shape[:2]
            if math.exp(-light.extinction * patch.depth) < 0.06:
                continue
            area = self.ids[patch.y : patch.y + height, patch.x : patch.x + width]
            inside = (area == index + 1).view(np.uint8)
            x, y, wide, tall = cv2.boundingRect(inside)
            if wide == 0:
                continue
            box = (patch.x + x, patch.y + y, patch.x + x + wide, patch.y + y + tall)
            labels.append(Seen(mover, box, cv2.countNonZero(inside), drawn))
        return labels
