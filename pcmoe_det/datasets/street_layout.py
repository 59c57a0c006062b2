"""What a street is made of before anything moves: lanes, pavements, blocks, camera mount, style.

Everything here follows from the seed. Main road along Z; traffic keeps to the right (X > 0 drives
towards +Z). Side streets cross at every multiple of ``block_metres``.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

__all__ = ["CAMERAS", "CameraMount", "StreetLayout", "make_camera_mount", "make_layout"]

CameraKind = Literal["dashcam", "roadside", "random"]
CAMERAS: tuple[str, ...] = ("dashcam", "roadside", "random")

Environment = Literal["city", "shops", "suburb", "park", "highway"]


@dataclass(frozen=True, slots=True)
class StreetLayout:
    """Geometry and style of one street; metres, colours BGR in 0-255.

    Attributes:
        environment: Which kind of place it is.
        lanes: Driving lanes per direction.
        lane_width: Of one driving lane.
        median_width: Between the directions; 0 is a painted line only.
        edge_width: Cycle strip at the right of the driving lanes.
        parking_width: Parking lane beside the kerb; 0 is none.
        pavement_width: From kerb to building line.
        block_metres: Distance of side streets, and period of the ground texture.
        side_half_width: Half width of a side street's carriageway; 0 where there are none.
        line_yellow: Whether the middle line is yellow.
        asphalt: Mean colour of the road.
        pavement: Mean colour of the pavement.
        verge: Colour of what lies beyond the pavement.
        lamp_spacing: Distance of street lamps along the road.
        lamp_colour: Of their light.
        tree_spacing: Distance of trees along the road; 0 is none.
        building_height: Lowest and highest building.
    """

    environment: Environment
    lanes: int
    lane_width: float
    median_width: float
    edge_width: float
    parking_width: float
    pavement_width: float
    block_metres: float
    side_half_width: float
    line_yellow: bool
    asphalt: tuple[float, float, float]
    pavement: tuple[float, float, float]
    verge: tuple[float, float, float]
    lamp_spacing: float
    lamp_colour: tuple[float, float, float]
    tree_spacing: float
    building_height: tuple[float, float]

    @property
    def cycle_x(self) -> float:
        """Distance of the cyclists' track from the middle."""
        return self.median_width / 2 + self.lanes * self.lane_width + self.edge_width / 2

    @property
    def kerb_x(self) -> float:
        """Distance of the kerb from the middle."""
        return self.median_width / 2 + self.lanes * self.lane_width + self.edge_width + self.parking_width

    @property
    def wall_x(self) -> float:
        """Distance of the building line from the middle."""
        return self.kerb_x + self.pavement_width

    def lane_x(self, lane: int) -> float:
        """Distance of the middle of driving lane ``lane`` (0 is the innermost) from the middle."""
        return self.median_width / 2 + (lane + 0.5) * self.lane_width


def _jitter(
    rng: np.random.Generator, colour: tuple[float, float, float], amount: float
) -> tuple[float, float, float]:
    shift = rng.uniform(-amount, amount)
    b, g, r = (float(np.clip(c + shift + rng.uniform(-amount, amount) / 3, 0, 255)) for c in colour)
    return b, g, r


def make_layout(rng: np.random.Generator) -> StreetLayout:
    """Draw a street from ``rng``."""
    environment: Environment = str(  # type: ignore[assignment]
        rng.choice(["city", "shops", "suburb", "park", "highway"], p=[0.28, 0.24, 0.24, 0.12, 0.12])
    )
    highway = environment == "highway"
    lanes = int(rng.integers(2, 4)) if highway else int(rng.choice([1, 2, 3], p=[0.45, 0.42, 0.13]))
    median = float(rng.uniform(1.0, 4.0)) if highway or rng.random() < 0.18 else 0.0
    asphalt_level = float(rng.choice([rng.uniform(72, 105), rng.uniform(105, 150)], p=[0.65, 0.35]))
    heights = {"city": (9, 34), "shops": (6, 16), "suburb": (5, 8), "park": (5, 12), "highway": (5, 12)}
    green = _jitter(rng, (62, 112, 96), 22)
    paving = _jitter(rng, (150, 156, 162), 24)
    verge = paving if environment in ("city", "shops") else green
    lamp_colour = (95.0, 185.0, 255.0) if rng.random() < 0.6 else (225.0, 240.0, 250.0)
    return StreetLayout(
        environment=environment,
        lanes=lanes,
        lane_width=float(rng.uniform(3.0, 3.7)),
        median_width=median,
        edge_width=float(rng.uniform(1.5, 2.2)),
        parking_width=0.0 if highway or rng.random() < 0.35 else float(rng.uniform(2.1, 2.5)),
        pavement_width=float(rng.uniform(2.6, 6.0)),
        block_metres=float(rng.integers(80, 126)),
        side_half_width=0.0 if highway else float(rng.uniform(3.2, 5.0)),
        line_yellow=bool(rng.random() < 0.4),
        asphalt=_jitter(rng, (asphalt_level + 2, asphalt_level, asphalt_level - 1), 6),
        pavement=paving,
        verge=verge,
        lamp_spacing=float(rng.uniform(22, 34)),
        lamp_colour=lamp_colour,
        tree_spacing=0.0 if rng.random() < 0.2 else float(rng.uniform(8, 20)),
        building_height=(float(heights[environment][0]), float(heights[environment][1])),
    )


@dataclass(frozen=True, slots=True)
class CameraMount:
    """Where the camera sits and how it shakes; angles in radians, positions in metres.

    Attributes:
        kind: ``dashcam`` rides in the innermost or outer lane of +Z traffic, ``roadside`` stands.
        height: Above the road.
        x: Lateral position (a roadside camera's; a dashcam follows its lane).
        yaw: To the right of +Z.
        pitch: Upwards.
        roll: Clockwise.
        focal_ratio: Focal length in image widths.
        shake: Amplitude of the shaking, radians.
        lane: Lane of a dashcam's vehicle.
        bonnet: Whether the vehicle's own bonnet is in the picture.
    """

    kind: Literal["dashcam", "roadside"]
    height: float
    x: float
    yaw: float
    pitch: float
    roll: float
    focal_ratio: float
    shake: float
    lane: int
    bonnet: bool
    bonnet_colour: tuple[float, float, float] = field(default=(40.0, 40.0, 40.0))


def make_camera_mount(rng: np.random.Generator, layout: StreetLayout, kind: CameraKind) -> CameraMount:
    """Draw a camera position for ``layout`` from ``rng``."""
    if kind == "random":
        kind = "dashcam" if rng.random() < 0.6 else "roadside"
    if kind == "dashcam":
        high = rng.random() < 0.15
        return CameraMount(
            kind="dashcam",
            height=float(rng.uniform(1.9, 2.6) if high else rng.uniform(1.15, 1.75)),
            x=0.0,
            yaw=float(rng.normal(0.0, 0.02)),
            pitch=float(rng.uniform(-0.09, 0.03)),
            roll=float(rng.normal(0.0, 0.006)),
            focal_ratio=float(rng.choice([0.5, rng.uniform(0.5, 0.75), rng.uniform(0.75, 1.05)])),
            shake=float(rng.uniform(0.0008, 0.003)),
            lane=int(rng.integers(0, layout.lanes)),
            bonnet=bool(rng.random() < 0.22),
            bonnet_colour=_jitter(rng, (60, 58, 56), 45),
        )
    style = rng.random()
    if style < 0.3:  # over the road, as on a bridge or a gantry
        x, yaw = float(rng.uniform(-0.6, 0.6) * layout.kerb_x), float(rng.normal(0.0, 0.12))
        height = float(rng.uniform(5.0, 9.0))
    else:  # on the pavement, looking along or across the road
        side = 1.0 if rng.random() < 0.5 else -1.0
        x = side * (layout.kerb_x + rng.uniform(0.3, 0.9 * layout.pavement_width))
        yaw = -side * float(rng.uniform(0.08, 0.95))
        height = float(rng.uniform(2.0, 3.2) if style < 0.45 else rng.uniform(3.2, 8.0))
    pitch = -float(rng.uniform(0.02, 0.08) + math.atan2(height, rng.uniform(18.0, 34.0)))
    return CameraMount(
        kind="roadside",
        height=height,
        x=x,
        yaw=yaw,
        pitch=pitch,
        roll=float(rng.normal(0.0, 0.012)),
        focal_ratio=float(rng.uniform(0.6, 1.2)),
        shake=float(rng.choice([0.0, rng.uniform(0.0, 0.0008)])),
        lane=0,
        bonnet=False,
    )
