"""Draws one object (mesh or strokes) into a small picture of its own, with coverage.

A sprite is drawn at twice the resolution and reduced when it is laid over the image, so that its edges
are smooth; large objects are drawn at single resolution and softened.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_camera import NEAR_METRES, Camera, cut_near
from pcmoe_det.datasets.street_mesh import Material, Mesh
from pcmoe_det.datasets.street_strokes import PHASES, StrokeModel

__all__ = ["Placement", "Shade", "Sprite", "draw_mesh", "draw_strokes", "place_object"]

FloatArray = NDArray[np.float64]
Image = NDArray[np.uint8]

_SHIFT_BITS = 4
_DOUBLE_LIMIT = 90_000  # image pixels above which a sprite is drawn at single resolution and cut to the image


@dataclass(frozen=True, slots=True, eq=False)
class Sprite:
    """An object as drawn for one pose of the camera.

    Attributes:
        image: ``[h * scale, w * scale, 4]`` premultiplied BGR and coverage 0-255.
        scale: Sprite pixels per image pixel, 1 or 2.
        left: Column of its left edge in the image; may be outside.
        top: Row of its top edge.
        whole: Whether nothing was cut off at the borders of the image.
        glows: Lamps that shine: ``(x, y, strength, kind)``, kind 1 head, 2 tail, in image pixels.
    """

    image: Image
    scale: int
    left: int
    top: int
    whole: bool
    glows: list[tuple[float, float, float, int]]


@dataclass(frozen=True, slots=True, eq=False)
class Shade:
    """Light on one object; BGR factors, or colours 0-255 where said.

    Attributes:
        ambient: ``[3]`` light from everywhere, lamps included.
        sun: ``[3]``.
        sun_direction: ``[3]`` world, towards the sun.
        sky: ``[3]`` colour that glass and paint mirror, 0-255.
        lamps: 0-1, whether its own lamps are on.
        braking: Whether its brake lamps shine.
        facing_lamps: ``[3]`` light from the camera's own headlights.
    """

    ambient: FloatArray
    sun: FloatArray
    sun_direction: FloatArray
    sky: FloatArray
    lamps: float
    braking: bool
    facing_lamps: FloatArray


@dataclass(frozen=True, slots=True, eq=False)
class Placement:
    """Where an object is with respect to the camera.

    Attributes:
        matrix: ``[3, 3]`` local axes to homogeneous image points.
        offset: ``[3]`` of its origin; the third is its depth, metres.
        viewer: ``[3]`` the camera in local axes, metres.
        heading: Radians to the right of +Z.
    """

    matrix: FloatArray
    offset: FloatArray
    viewer: FloatArray
    heading: float


def place_object(camera: Camera, *, x: float, z: float, heading: float) -> Placement:
    """The placement of an object on the ground at ``(x, z)``, metres."""
    sin, cos = math.sin(heading), math.cos(heading)
    px, py, pz = camera.position
    dx, dz = x - px, z - pz
    first, up, last = camera.matrix.T
    matrix = np.stack([first * sin + last * cos, up, first * cos - last * sin], axis=1)
    offset = first * dx - up * py + last * dz
    viewer = np.array([-dx * sin - dz * cos, py, dz * sin - dx * cos])
    return Placement(matrix, offset, viewer, heading)


def _bounds(points: FloatArray, camera: Camera, margin: int) -> tuple[int, int, int, int, bool] | None:
    """``(left, top, right, bottom, whole)``; cut to the image only where it would be large."""
    x, y, width, height = cv2.boundingRect(np.minimum(np.maximum(points, -20_000), 20_000).astype(np.float32))
    left, top, right, bottom = x - margin, y - margin, x + width + margin, y + height + margin
    inside = max(0, left), max(0, top), min(camera.width, right), min(camera.height, bottom)
    if inside[2] - inside[0] < 2 or inside[3] - inside[1] < 2:
        return None
    if (right - left) * (bottom - top) <= _DOUBLE_LIMIT:
        return left, top, right, bottom, True
    return (*inside, False)


def _face_colours(
    mesh: Mesh, chosen: NDArray[np.intp], shade: Shade, heading: float, viewer: FloatArray
) -> FloatArray:
    """``[n, 3]`` lit colours of the ``chosen`` polygons."""
    normals = mesh.normals[chosen]
    light = mesh.ambient_share[chosen] * shade.ambient
    if shade.sun[2] > 0.01:
        sin, cos = math.sin(heading), math.cos(heading)
        sx, sy, sz = shade.sun_direction
        local = np.array([sx * sin + sz * cos, sy, sx * cos - sz * sin])
        light = light + np.maximum(normals @ local, 0.0)[:, None] * shade.sun
    if shade.facing_lamps[2] > 0.01:
        flat = np.array([viewer[0], 0.0, viewer[2]]) / (math.hypot(viewer[0], viewer[2]) + 1e-6)
        light = light + np.maximum(normals @ flat, 0.0)[:, None] * shade.facing_lamps
    share = mesh.sky_share[chosen]
    colours = mesh.colours[chosen] * light * (1.0 - share) + share * shade.sky
    if shade.lamps > 0.05 or shade.braking:
        material = mesh.materials[chosen]
        colours[material == Material.TAIL_LAMP] = (110, 100, 255) if shade.braking else (50, 40, 235)
        if shade.lamps > 0.05:
            colours[material == Material.HEAD_LAMP] = (235, 250, 255)
            inside = material == Material.LIT_GLASS
            warm = (
                shade.lamps * np.array((58.0, 92.0, 104.0)) * (0.6 + 0.8 * (chosen[inside, None] * 5 % 7) / 6)
            )
            colours[inside] = colours[inside] * (1 - 0.75 * shade.lamps) + warm
    return np.minimum(colours, 255.0)


def _canvas(box: tuple[int, int, int, int, bool]) -> tuple[Image, int, FloatArray]:
    """Empty picture for ``box``, its scale, and the image point of its first pixel's centre."""
    left, top, right, bottom, whole = box
    scale = 2 if whole else 1
    canvas = np.zeros(((bottom - top) * scale, (right - left) * scale, 4), np.uint8)
    # OpenCV puts pixel centres on integers, we put pixel edges there: half a (sub)pixel of difference.
    return canvas, scale, np.array([left + 0.5 / scale, top + 0.5 / scale])


def draw_mesh(mesh: Mesh, camera: Camera, place: Placement, shade: Shade) -> Sprite | None:
    """Draw ``mesh``; None if it is out of view."""
    offset, viewer = place.offset, place.viewer
    tall = camera.focal * mesh.size[1] / max(float(offset[2]), 1.0)
    for limit in (42.0, 18.0, 10.0):  # pixels of height below which the finest details are left out
        if tall < limit and mesh.coarser is not None:
            mesh = mesh.coarser
    rays = mesh.vertices @ place.matrix.T + offset
    depths = rays[:, 2]
    if depths.max() < NEAR_METRES + 0.2:
        return None
    crossing = bool(depths.min() < NEAR_METRES)
    # A polygon cut at the near plane may reach any border of the image.
    box: tuple[int, int, int, int, bool] | None = (0, 0, camera.width, camera.height, False)
    points = rays[:, :2]
    if not crossing:
        points = rays[:, :2] / rays[:, 2:]
        box = _bounds(points, camera, 1)
    if box is None:
        return None
    canvas, scale, origin = _canvas(box)
    factor = scale * (1 << _SHIFT_BITS)
    fixed = None if crossing else np.rint((points - origin) * factor).astype(np.int32)
    order = np.flatnonzero(mesh.normals @ viewer > mesh.offsets)
    if len(mesh.group_centres) > 1:
        away = np.linalg.norm(mesh.group_centres - viewer, axis=1)
        order = order[np.argsort(-away[mesh.groups[order]], kind="stable")]
    colours = _face_colours(mesh, order, shade, place.heading, viewer).tolist()
    firsts, lasts = mesh.starts[order].tolist(), mesh.starts[order + 1].tolist()
    for first, last, colour in zip(firsts, lasts, colours, strict=True):
        if fixed is not None:
            polygon = fixed[first:last]
        else:
            cut = cut_near(rays[first:last])
            if len(cut) < 3:
                continue
            flat = np.clip(cut[:, :2] / cut[:, 2:], -20_000, 20_000)
            polygon = np.rint((flat - origin) * factor).astype(np.int32)
        cv2.fillConvexPoly(canvas, polygon, (*colour, 255.0), cv2.LINE_8, _SHIFT_BITS)
    if scale == 1:
        canvas = cv2.GaussianBlur(canvas, (3, 3), 0.6)
    return Sprite(canvas, scale, box[0], box[1], box[4], _mesh_glows(mesh, place, shade))


def _mesh_glows(mesh: Mesh, place: Placement, shade: Shade) -> list[tuple[float, float, float, int]]:
    glows = []
    viewer = place.viewer
    for lamps, kind in ((mesh.head_lamps, 1), (mesh.tail_lamps, 2)):
        if (shade.lamps < 0.05 and not (kind == 2 and shade.braking)) or len(lamps) == 0:
            continue
        towards = viewer[0] - lamps[0, 0] if kind == 1 else lamps[0, 0] - viewer[0]
        if towards <= 0:
            continue
        angle = towards / (abs(viewer[2]) + towards + 1e-6)
        for px, py, depth in (lamps @ place.matrix.T + place.offset).tolist():
            if depth > 1.0:
                strength = (0.25 + 0.75 * angle) * (1.6 if kind == 2 and shade.braking else 1.0)
                glows.append((px / depth, py / depth, float(strength), kind))
    return glows


def draw_strokes(
    model: StrokeModel, camera: Camera, place: Placement, shade: Shade, *, phase: float
) -> Sprite | None:
    """Draw ``model`` in the pose of ``phase`` (cycles); None if it is out of view."""
    offset, viewer = place.offset, place.viewer
    if offset[2] < NEAR_METRES + 1.4:
        return None
    while model.coarser is not None and camera.focal * model.size[1] < 26.0 * max(float(offset[2]), 1.0):
        model = model.coarser
    count = len(model.widths)
    rays = model.joints[int(phase * PHASES) % PHASES] @ place.matrix.T + offset
    depths = np.maximum(rays[:, 2], NEAR_METRES)
    points = rays[:, :2] / depths[:, None]
    depth = (depths[:count] + depths[count:]) / 2
    thickness = model.widths * camera.focal / depth
    box = _bounds(points, camera, 2 + math.ceil(float(thickness.max()) / 2))
    if box is None:
        return None
    canvas, scale, origin = _canvas(box)
    fixed = np.rint((points - origin) * (scale * (1 << _SHIFT_BITS))).astype(np.int32).tolist()
    wide = np.maximum(1, np.rint(thickness * scale)).astype(np.int32).tolist()
    colours = _stroke_colours(model, place, shade).tolist()
    for index in np.argsort(-depth).tolist():
        ends = fixed[index], fixed[count + index]
        cv2.line(canvas, *ends, (*colours[index], 255.0), wide[index], cv2.LINE_8, _SHIFT_BITS)
    if scale == 1:
        canvas = cv2.GaussianBlur(canvas, (3, 3), 0.6)
    glows = []
    if shade.lamps > 0.05:
        for index in np.flatnonzero(model.glows).tolist():
            kind = int(model.glows[index])
            if (viewer[0] > 0) == (kind == 1):
                glows.append((float(points[index, 0]), float(points[index, 1]), 0.5, kind))
    return Sprite(canvas, scale, box[0], box[1], box[4], glows)


def _stroke_colours(model: StrokeModel, place: Placement, shade: Shade) -> FloatArray:
    """``[n, 3]`` lit colours; the side that is seen has more sun the more it faces it."""
    sx, _, sz = shade.sun_direction
    forwards, _, right = place.viewer.tolist()
    norm = math.hypot(forwards, right) + 1e-6
    sin, cos = math.sin(place.heading), math.cos(place.heading)
    towards_x, towards_z = (forwards * sin + right * cos) / norm, (forwards * cos - right * sin) / norm
    lit_side = 0.55 + 0.35 * (sx * towards_x + sz * towards_z)
    light = shade.ambient * 0.9 + shade.sun * lit_side + shade.facing_lamps
    colours = np.minimum(model.colours * light, 255.0)
    if shade.lamps > 0.05:
        colours[model.glows == 1] = (225, 245, 255)
        colours[model.glows == 2] = (60, 50, 245)
    return colours
