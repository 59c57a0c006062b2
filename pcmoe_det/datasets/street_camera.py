"""The pinhole camera of the generated street: pose, projection, and homographies of planes.

World axes: X to the right, Y up, Z along the main road, metres. Image axes: x right, y down, pixels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property

import cv2
import numpy as np
from numpy.typing import NDArray

__all__ = ["NEAR_METRES", "Camera", "camera_pose", "cut_near", "warp_plane"]

NEAR_METRES = 0.25
"""Nothing closer to the image plane than this is drawn; polygons are cut there."""

FloatArray = NDArray[np.float64]


@dataclass(frozen=True, eq=False)
class Camera:
    """One pose of the camera.

    Attributes:
        width: Image width, pixels.
        height: Image height, pixels.
        focal: Focal length, pixels.
        position: ``[3]`` world position, metres.
        rotation: ``[3, 3]`` world to camera; camera axes are right, down, forward.
        matrix: ``[3, 3]`` intrinsics times rotation.
        yaw: Radians, positive to the right of the road's direction.
        pitch: Radians, positive upwards.
    """

    width: int
    height: int
    focal: float
    position: FloatArray
    rotation: FloatArray
    matrix: FloatArray
    yaw: float
    pitch: float

    def place(self, x: float, z: float) -> tuple[float, float]:
        """Depth, and distance to the right of the axis, of a point one metre above the ground; metres."""
        (rx, ry, rz), (fx, fy, fz), (px, py, pz) = self._axes
        dx, dy, dz = x - px, 1.0 - py, z - pz
        return fx * dx + fy * dy + fz * dz, rx * dx + ry * dy + rz * dz

    def may_show(self, x: float, z: float, radius: float) -> bool:
        """Whether something within ``radius`` metres of ``(x, z)`` may be in the picture (sideways)."""
        depth, aside = self.place(x, z)
        if depth < -radius:
            return False
        return abs(aside) - radius * 1.3 < max(depth + radius, 0.5) * 0.55 * self.width / self.focal

    @cached_property
    def _axes(self) -> tuple[tuple[float, ...], tuple[float, ...], tuple[float, ...]]:
        right, _, forward = self.rotation.tolist()
        return tuple(right), tuple(forward), tuple(self.position.tolist())

    def image_of(self, x: float, y: float, z: float) -> tuple[float, float, float]:
        """Homogeneous image point (divide by the third, the depth in metres) of one world point."""
        (a, b, c), (d, e, f), (g, h, i) = self._rows
        px, py, pz = self._axes[2]
        dx, dy, dz = x - px, y - py, z - pz
        return a * dx + b * dy + c * dz, d * dx + e * dy + f * dz, g * dx + h * dy + i * dz

    @property
    def place_xyz(self) -> tuple[float, ...]:
        """The position as plain numbers."""
        return self._axes[2]

    @cached_property
    def _rows(self) -> list[list[float]]:
        rows: list[list[float]] = self.matrix.tolist()
        return rows

    def project(self, points: FloatArray) -> tuple[FloatArray, FloatArray]:
        """Image position ``[n, 2]`` and depth ``[n]`` of world points ``[n, 3]``; depth may be negative."""
        ray = (points - self.position) @ self.matrix.T
        depth = ray[:, 2]
        safe = np.where(np.abs(depth) < 1e-6, 1e-6, depth)
        return ray[:, :2] / safe[:, None], depth

    def depth_of(self, x: float, y: float, z: float) -> float:
        """Distance of a world point from the image plane, metres; negative behind the camera."""
        _, (fx, fy, fz), (px, py, pz) = self._axes
        return fx * (x - px) + fy * (y - py) + fz * (z - pz)

    def plane_homography(self, origin: FloatArray, axis_u: FloatArray, axis_v: FloatArray) -> FloatArray:
        """``[3, 3]`` from plane coordinates ``(u, v, 1)`` to the image; the third row gives the depth."""
        columns = np.stack([axis_u, axis_v, origin - self.position], axis=1)
        return self.matrix @ columns

    def ground_homography(self) -> FloatArray:
        """``[3, 3]`` from ``(X, Z - camera Z, 1)`` on the ground to the image."""
        origin = np.array([0.0, 0.0, self.position[2]])
        return self.plane_homography(origin, np.array([1.0, 0.0, 0.0]), np.array([0.0, 0.0, 1.0]))

    def horizon_row(self) -> float:
        """Row of the horizon in the middle column, pixels."""
        return self.height / 2 + self.focal * math.tan(self.pitch)


def camera_pose(
    width: int,
    height: int,
    *,
    focal: float,
    position: tuple[float, float, float],
    yaw: float,
    pitch: float,
    roll: float = 0.0,
) -> Camera:
    """Camera at ``position`` (metres) looking along ``yaw`` and ``pitch`` (radians); see ``Camera``."""
    sin_yaw, cos_yaw = math.sin(yaw), math.cos(yaw)
    sin_pitch, cos_pitch = math.sin(pitch), math.cos(pitch)
    forward = np.array([sin_yaw * cos_pitch, sin_pitch, cos_yaw * cos_pitch])
    right = np.array([cos_yaw, 0.0, -sin_yaw])
    up = np.cross(forward, right)
    sin_roll, cos_roll = math.sin(roll), math.cos(roll)
    right, up = cos_roll * right + sin_roll * up, cos_roll * up - sin_roll * right
    rotation = np.stack([right, -up, forward])
    intrinsics = np.array([[focal, 0.0, width / 2], [0.0, focal, height / 2], [0.0, 0.0, 1.0]])
    return Camera(
        width, height, focal, np.array(position, np.float64), rotation, intrinsics @ rotation, yaw, pitch
    )


def warp_plane(
    texture: NDArray[np.uint8],
    to_texture: FloatArray,
    size: tuple[int, int],
    *,
    fine: bool,
    depth_scale: float | None = None,
) -> NDArray[np.uint8]:
    """Picture of ``size`` (width, height) of a textured plane.

    Args:
        texture: ``[h, w, c]``.
        to_texture: ``[3, 3]`` from the picture to ``texture``; on both sides pixel edges are integers.
        size: Of the picture.
        fine: Otherwise sampled at half the resolution and enlarged. Warping is what a frame spends most on,
            and surfaces close to the camera show texels larger than pixels anyway.
        depth_scale: Where given, the fourth channel becomes ``depth_scale / depth`` (the third row of
            ``to_texture`` must then give the inverse depth per metre).
    """
    flags = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP
    step = 1 if fine else 2
    sampled = ((size[0] + step - 1) // step, (size[1] + step - 1) // step)
    centres = np.array([[step, 0, step / 2], [0, step, step / 2], [0, 0, 1.0]])
    half = np.array([[1, 0, -0.5], [0, 1, -0.5], [0, 0, 1.0]])
    warped = cv2.warpPerspective(
        texture, half @ to_texture @ centres, sampled, flags=flags, borderMode=cv2.BORDER_REPLICATE
    )
    if depth_scale is not None:
        a, b, c = ((to_texture @ centres)[2] * depth_scale).tolist()
        columns = np.arange(sampled[0], dtype=np.float32) * np.float32(a)
        rows = np.arange(sampled[1], dtype=np.float32) * np.float32(b) + np.float32(c)
        cv2.insertChannel(cv2.convertScaleAbs(rows[:, None] + columns[None, :]), warped, 3)
    if fine:
        return warped
    enlarged = cv2.resize(warped, (sampled[0] * 2, sampled[1] * 2), interpolation=cv2.INTER_LINEAR)
    return enlarged[: size[1], : size[0]]


def cut_near(rays: FloatArray) -> FloatArray:
    """Cut a polygon of homogeneous image points ``[n, 3]`` (third is depth) at the near plane."""
    if rays[:, 2].min() >= NEAR_METRES:
        return rays
    kept: list[FloatArray] = []
    for index in range(len(rays)):
        p, q = rays[index], rays[(index + 1) % len(rays)]
        if p[2] >= NEAR_METRES:
            kept.append(p)
        if (p[2] >= NEAR_METRES) != (q[2] >= NEAR_METRES):
            kept.append(p + (NEAR_METRES - p[2]) / (q[2] - p[2]) * (q - p))
    return np.array(kept, np.float64).reshape(-1, 3)
