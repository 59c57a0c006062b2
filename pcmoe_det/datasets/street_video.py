"""Street videos made by the computer: pictures and exact labels of any length from one seed.

for shot in StreetVideo(7, num_frames=300, shift="daytime_to_night"):
    shot.image, shot.labels
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_camera import Camera, camera_pose
from pcmoe_det.datasets.street_layout import CAMERAS, CameraKind, make_camera_mount, make_layout
from pcmoe_det.datasets.street_render import Seen, StreetRenderer
from pcmoe_det.datasets.street_traffic import Traffic
from pcmoe_det.datasets.street_weather import Shift, conditions_at, frame_attributes, make_light, pick_shift
from pcmoe_det.errors import UsageError
from pcmoe_det.structures import SHIFT_CLASSES

__all__ = ["StreetFrame", "StreetLabel", "StreetVideo"]

View = Literal["front", "left_90", "right_90", "left_45", "right_45", "left_stereo"]

_MIN_VISIBLE_SHARE = 0.25
_MIN_PIXELS, _MIN_SIDE = 30.0, 3.0  # at 640x360; scaled with the image
_TOWNS = ("01", "02", "03", "04", "05", "06", "07", "10HD")


@dataclass(frozen=True, slots=True)
class StreetLabel:
    """One visible object.

    Attributes:
        track_id: Constant over the video.
        class_id: Index into ``SHIFT_CLASSES``.
        box_xyxy: Bounds of its visible pixels as pixel edges, inside the image.
        occlusion: Share of its pixels inside the image that others hide, 0-1.
    """

    track_id: int
    class_id: int
    box_xyxy: tuple[float, float, float, float]
    occlusion: float

    @property
    def category(self) -> str:
        """Name of the class."""
        return SHIFT_CLASSES[self.class_id]

    def as_scalabel(self) -> dict[str, Any]:
        """The label as an entry of SHIFT's ``det_2d.json``."""
        x1, y1, x2, y2 = self.box_xyxy
        return {
            "id": str(self.track_id),
            "attributes": {"label_source": "annotated", "occlusion": f"{self.occlusion:.2f}"},
            "category": self.category,
            "box2d": {"x1": x1, "y1": y1, "x2": x2, "y2": y2},
        }


@dataclass(frozen=True, slots=True, eq=False)
class StreetFrame:
    """One frame and everything known about it.

    Attributes:
        image: ``[height, width, 3]`` uint8, BGR.
        frame_index: 0-based position in the video.
        video_name: Name of the video.
        labels: Visible objects, nearest last.
        attributes: SHIFT's frame attributes, all strings, and ``annotated_categories``.
        camera: Pose and intrinsics.
    """

    image: NDArray[np.uint8]
    frame_index: int
    video_name: str
    labels: tuple[StreetLabel, ...]
    attributes: dict[str, str]
    camera: Camera

    def file_name(self) -> str:
        """Its name in SHIFT's archives, without the video's folder."""
        return f"{self.frame_index:08d}_img_{self.attributes['view']}.jpg"

    def as_scalabel(self) -> dict[str, Any]:
        """The frame as an entry of SHIFT's ``det_2d.json`` (locations in SHIFT's axes: metres, degrees)."""
        camera = self.camera
        x, y, z = (float(v) for v in camera.position)
        return {
            "name": self.file_name(),
            "videoName": self.video_name,
            "intrinsics": {
                "focal": [camera.focal, camera.focal],
                "center": [camera.width / 2, camera.height / 2],
                "skew": 0,
            },
            "extrinsics": {
                "location": [z, x, y],
                "rotation": [0.0, math.degrees(camera.pitch), math.degrees(camera.yaw)],
            },
            "attributes": dict(self.attributes),
            "frameIndex": self.frame_index,
            "size": {"width": camera.width, "height": camera.height},
            "labels": [label.as_scalabel() for label in self.labels],
        }


class StreetVideo:
    """An iterable of ``StreetFrame``; each iteration gives the same frames again.

    Frames are drawn when asked for; memory and time per frame do not grow with the video.

    Args:
        seed: Decides everything that the other arguments leave open: street, camera, weather style, traffic.
        width: Pixels, at least 64.
        height: Pixels, at least 48.
        fps: Frames per second, which sets how far things move from frame to frame.
        num_frames: Length of the video, at least 1.
        shift: Course of light and weather over the video; one of ``SHIFTS``.
        camera: ``dashcam``, ``roadside`` or ``random``.
        density: Factor on the number of movers, above 0 and at most 4.
        view: Name of SHIFT's camera that is written into names and attributes.
        name: Name of the video; made from the seed if None.

    Raises:
        UsageError: An argument outside its range.
    """

    def __init__(
        self,
        seed: int,
        *,
        width: int = 640,
        height: int = 360,
        fps: float = 10.0,
        num_frames: int,
        shift: Shift = "random",
        camera: CameraKind = "random",
        density: float = 1.0,
        view: View = "front",
        name: str | None = None,
    ) -> None:
        if seed < 0:
            raise UsageError(f"seed {seed} is negative; use 0 or more")
        if width < 64 or height < 48 or width > 4096 or height > 4096:
            raise UsageError(f"size {width}x{height} is outside 64x48 to 4096x4096")
        if not 0.1 <= fps <= 240:
            raise UsageError(f"fps {fps} is outside 0.1 to 240")
        if num_frames < 1:
            raise UsageError(f"num_frames {num_frames} is below 1")
        if not 0 < density <= 4:
            raise UsageError(f"density {density} is outside (0, 4]")
        if camera not in CAMERAS:
            raise UsageError(f"unknown camera '{camera}'; choose one of {', '.join(CAMERAS)}")
        if view not in get_args(View):
            raise UsageError(f"unknown view '{view}'; choose one of {', '.join(get_args(View))}")
        self.seed, self.width, self.height, self.fps, self.num_frames = seed, width, height, fps, num_frames
        self.view: View = view
        self.name = name if name is not None else f"{seed & 0xFFFF:04x}-{(seed * 40503 + 7919) & 0xFFFF:04x}"
        self._density = density
        rng = np.random.default_rng([seed, 1])
        self.layout = make_layout(rng)
        self.mount = make_camera_mount(rng, self.layout, camera)
        self.shift = pick_shift(rng, shift)
        self._sun_azimuth = float(rng.uniform(0, 2 * math.pi))
        self._exposure = float(rng.uniform(0.86, 1.12))
        self._tint = np.clip(rng.normal(1.0, 0.035, 3), 0.9, 1.1)
        self._town = str(rng.choice(_TOWNS))

    def __len__(self) -> int:
        return self.num_frames

    def __iter__(self) -> Iterator[StreetFrame]:
        traffic = Traffic(self.seed, layout=self.layout, mount=self.mount, density=self._density)
        shake = _Shake(np.random.default_rng([self.seed, 31]), self.mount.shake)
        renderer = StreetRenderer(
            self.seed, layout=self.layout, mount=self.mount, camera=self._pose(traffic, (0.0, 0.0, 0.0, 0.0))
        )
        for _ in range(12):  # let the traffic settle
            traffic.step(0.25)
        seconds = 1.0 / self.fps
        for index in range(self.num_frames):
            camera = self._pose(
                traffic, shake.step(seconds, traffic.ego_speed if self.mount.kind == "dashcam" else 5.0)
            )
            conditions = conditions_at(self.shift, index / max(1, self.num_frames - 1))
            light = make_light(
                conditions, sun_azimuth=self._sun_azimuth, exposure=self._exposure, tint=self._tint
            )
            image, seen = renderer.render(camera, traffic, light)
            attributes = frame_attributes(
                conditions, view=self.view, town=self._town, sun_azimuth=self._sun_azimuth
            )
            attributes["annotated_categories"] = ",".join(SHIFT_CLASSES)
            yield StreetFrame(image, index, self.name, self._labels(seen), attributes, camera)
            traffic.step(seconds)

    def _pose(self, traffic: Traffic, shake: tuple[float, float, float, float]) -> Camera:
        mount = self.mount
        yaw, pitch, roll, heave = shake
        return camera_pose(
            self.width,
            self.height,
            focal=mount.focal_ratio * self.width,
            position=(traffic.ego_x, mount.height + heave, traffic.camera_z),
            yaw=mount.yaw + yaw,
            pitch=mount.pitch + pitch,
            roll=mount.roll + roll,
        )

    def _labels(self, seen: list[Seen]) -> tuple[StreetLabel, ...]:
        scale = self.width / 640.0
        labels = []
        for item in seen:
            x1, y1, x2, y2 = item.box
            share = item.visible_pixels / max(1, item.drawn_pixels)
            small = item.visible_pixels < 12 * scale**2 or (x2 - x1) * (y2 - y1) < _MIN_PIXELS * scale**2
            if share < _MIN_VISIBLE_SHARE or small or min(x2 - x1, y2 - y1) < _MIN_SIDE * scale:
                continue
            box = (float(x1), float(y1), float(x2), float(y2))
            labels.append(StreetLabel(item.mover.track_id, item.mover.class_id, box, 1.0 - share))
        return tuple(labels)


class _Shake:
    """Small random motion of the camera: two damped springs per axis, stronger at speed."""

    def __init__(self, rng: np.random.Generator, amplitude: float) -> None:
        self._rng, self._amplitude = rng, amplitude
        self._place, self._speed = np.zeros(4), np.zeros(4)

    def step(self, seconds: float, speed: float) -> tuple[float, float, float, float]:
        """Deviation after ``seconds``: yaw, pitch, roll (radians), height (metres)."""
        for _ in range(4):
            dt = seconds / 4
            push = (
                self._rng.standard_normal(4)
                * min(1.0, 0.15 + speed / 12.0)
                * 60.0
                / math.sqrt(max(dt, 1e-3) * 40)
            )
            self._speed += (push - 90.0 * self._place - 8.0 * self._speed) * dt
            self._place += self._speed * dt
        yaw, pitch, roll, heave = np.clip(self._place, -3, 3) * self._amplitude
        return float(yaw) * 0.6, float(pitch), float(roll) * 0.7, float(heave) * 6.0
