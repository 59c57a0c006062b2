"""Lays objects over the image, and reuses the picture of an object while it hardly changes.

Most objects look the same from one frame to the next but for a little shift and growth. Drawing one
anew costs several times as much as moving its picture, so a picture is kept for a few frames and
moved, until size, viewing direction, pose or light have changed visibly.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_camera import NEAR_METRES, Camera
from pcmoe_det.datasets.street_mesh import Mesh
from pcmoe_det.datasets.street_objects import Placement, Shade, Sprite, draw_mesh, draw_strokes, place_object
from pcmoe_det.datasets.street_strokes import PHASES, StrokeModel

__all__ = ["Patch", "SpritePainter"]

Image = NDArray[np.uint8]

_MAX_AGE = 12  # frames
_MAX_GROWTH = 0.06
_MAX_TURN = math.radians(1.7)
_POSE_PIXELS = 22.0  # below this height a step may last two frames


@dataclass(frozen=True, slots=True, eq=False)
class Patch:
    """Part of the picture that an object covers.

    Attributes:
        x: Column of its left edge in the image.
        y: Row of its top edge.
        image: ``[h, w, 4]`` premultiplied BGR and coverage 0-255.
        depth: Distance from the image plane, metres.
        glows: Lamps that shine: ``(x, y, strength, kind)``, kind 1 head, 2 tail, in image pixels.
    """

    x: int
    y: int
    image: Image
    depth: float
    glows: list[tuple[float, float, float, int]]


@dataclass(frozen=True, slots=True, eq=False)
class _Kept:
    sprite: Sprite
    anchor: tuple[float, float]
    depth: float
    direction: tuple[float, float]
    state: Hashable
    born: int


class SpritePainter:
    """Draws objects for one shot.

    Args:
        rng: Source of the unevenness of brightness (dirt, reflections, cloth) laid over objects.
    """

    def __init__(self, rng: np.random.Generator) -> None:
        rows, columns = 720, 1280
        field = np.zeros((rows, columns), np.float32)
        for scale, weight in ((40, 5.0), (12, 5.5), (4, 4.0), (2, 2.5)):
            small = rng.standard_normal((rows // scale + 1, columns // scale + 1)).astype(np.float32)
            field += weight * cv2.resize(small, (columns, rows), interpolation=cv2.INTER_LINEAR)
        grey = np.clip(128 + field, 60, 200).astype(np.uint8)
        self._grain = np.dstack([grey, grey, grey, np.full_like(grey, 128)])
        self._kept: dict[Hashable, _Kept] = {}
        self._frame = 0

    def next_frame(self) -> None:
        """To be called before the objects of a frame; forgets what was not drawn for a while."""
        self._frame += 1
        if self._frame % 32 == 0:
            self._kept = {k: v for k, v in self._kept.items() if self._frame - v.born <= 2 * _MAX_AGE}

    def paint(
        self,
        model: Mesh | StrokeModel,
        camera: Camera,
        *,
        x: float,
        z: float,
        heading: float,
        phase: float,
        key: int,
        state: Hashable,
        shade: Callable[[], Shade],
    ) -> Patch | None:
        """Picture of ``model`` at ``(x, z)`` metres, facing ``heading`` radians; None if out of view.

        Args:
            model: What to draw.
            camera: From where.
            x: Of its origin.
            z: Of its origin.
            heading: To the right of +Z.
            phase: Cycles of steps or pedals; meshes have none.
            key: Of the object; constant over the shot.
            state: Anything else that its look depends on.
            shade: Gives the light on it when it has to be drawn anew.
        """
        u, v, depth = camera.image_of(x, model.size[1] / 2, z)
        if depth < NEAR_METRES + 0.5:
            sprite = self._draw(
                model, camera, place_object(camera, x=x, z=z, heading=heading), shade(), phase, key
            )
            return None if sprite is None else _cut(sprite, camera, max(NEAR_METRES, depth))
        anchor = (u / depth, v / depth)
        px, py, pz = camera.place_xyz
        away = math.sqrt((px - x) ** 2 + py**2 + (pz - z) ** 2)
        bearing = math.atan2(px - x, pz - z) - heading
        direction = (bearing, py / away)
        if isinstance(model, StrokeModel):
            tall = camera.focal * model.size[1] / depth
            state = (state, int(phase * PHASES) % PHASES if tall > _POSE_PIXELS else self._frame // 2)
        kept = self._kept.get(key)
        if kept is not None and self._usable(kept, depth, direction, state, key):
            return _move(kept, anchor, depth, camera)
        sprite = self._draw(
            model, camera, place_object(camera, x=x, z=z, heading=heading), shade(), phase, key
        )
        if sprite is None:
            return None
        if not sprite.whole:
            return _cut(sprite, camera, depth)
        kept = _Kept(sprite, anchor, depth, direction, state, self._frame)
        self._kept[key] = kept
        return _move(kept, anchor, depth, camera)

    def _usable(
        self, kept: _Kept, depth: float, direction: tuple[float, float], state: Hashable, key: int
    ) -> bool:
        return (
            kept.state == state
            # Ages differ between objects, so that not all are drawn anew in the same frame.
            and self._frame - kept.born < _MAX_AGE - key % 3
            and abs(kept.depth - depth) < _MAX_GROWTH * depth
            and abs(kept.direction[0] - direction[0]) < _MAX_TURN
            and abs(kept.direction[1] - direction[1]) < _MAX_TURN
        )

    def _draw(
        self,
        model: Mesh | StrokeModel,
        camera: Camera,
        place: Placement,
        shade: Shade,
        phase: float,
        key: int,
    ) -> Sprite | None:
        if isinstance(model, Mesh):
            sprite = draw_mesh(model, camera, place, shade)
        else:
            sprite = draw_strokes(model, camera, place, shade, phase=phase)
        if sprite is not None:
            height, width = sprite.image.shape[:2]
            rows, columns = self._grain.shape[:2]
            if 16 <= height < rows and width < columns:
                top, left = (key * 57) % (rows - height), (key * 97) % (columns - width)
                cv2.multiply(
                    sprite.image, self._grain[top : top + height, left : left + width], sprite.image, 1 / 128
                )
        return sprite


def _cut(sprite: Sprite, camera: Camera, depth: float) -> Patch | None:
    """A sprite as it is, inside the image."""
    if sprite.whole:
        return _move(_Kept(sprite, (0.0, 0.0), depth, (0.0, 0.0), None, 0), (0.0, 0.0), depth, camera)
    return Patch(sprite.left, sprite.top, sprite.image, depth, sprite.glows)


def _move(kept: _Kept, anchor: tuple[float, float], depth: float, camera: Camera) -> Patch | None:
    """A kept sprite, shifted with its anchor and grown with its nearness."""
    sprite, growth = kept.sprite, kept.depth / depth
    left = anchor[0] + (sprite.left - kept.anchor[0]) * growth
    top = anchor[1] + (sprite.top - kept.anchor[1]) * growth
    step = sprite.scale / growth
    rows, columns = sprite.image.shape[:2]
    x0, y0 = max(0, math.floor(left)), max(0, math.floor(top))
    x1 = min(camera.width, math.ceil(left + columns / step))
    y1 = min(camera.height, math.ceil(top + rows / step))
    if x1 - x0 < 1 or y1 - y0 < 1:
        return None
    # Pixel edges are on integers here and pixel centres there, hence the halves.
    matrix = np.array(
        [[step, 0, (x0 + 0.5 - left) * step - 0.5], [0, step, (y0 + 0.5 - top) * step - 0.5]], np.float32
    )
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    image = cv2.warpAffine(
        sprite.image, matrix, (x1 - x0, y1 - y0), flags=flags, borderMode=cv2.BORDER_CONSTANT
    )
    dx, dy = anchor[0] - kept.anchor[0] * growth, anchor[1] - kept.anchor[1] * growth
    glows = [(x * growth + dx, y * growth + dy, strength, kind) for x, y, strength, kind in sprite.glows]
    return Patch(x0, y0, image, depth, glows)
