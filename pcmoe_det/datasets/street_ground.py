"""The road surface as a texture: asphalt, lanes, kerbs, crossings, pavement, and where lamps shine.

One block (``block_metres`` long, periodic along Z) is painted once per street and kept in three
resolutions; the renderer warps the one that fits the distance, so that far road does not shimmer.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.datasets.street_layout import StreetLayout

__all__ = ["GroundLevel", "GroundTexture", "make_ground", "smooth_noise"]

Image = NDArray[np.uint8]

_PIXELS_PER_METRE = 20.0
_HALF_WIDTH = 46.0


@dataclass(frozen=True, slots=True, eq=False)
class GroundLevel:
    """One resolution of the ground.

    Attributes:
        texture: ``[rows, columns, 3]`` BGR; rows along +Z from a block start, columns along +X.
        pixels_per_metre: Its resolution.
        half_width: X of the first column is ``-half_width``, metres.
        until_metres: Used up to this depth.
    """

    texture: Image
    pixels_per_metre: float
    half_width: float
    until_metres: float


@dataclass(frozen=True, slots=True, eq=False)
class GroundTexture:
    """The ground in several resolutions and the lamps' light on it.

    Attributes:
        levels: Near to far.
        lamp_light: Like ``levels[-1].texture`` with one channel: 255 below a lamp.
        lead_metres: Every texture starts so far before a block start (periodic content).
    """

    levels: tuple[GroundLevel, ...]
    lamp_light: GroundLevel
    lead_metres: float


def smooth_noise(
    rng: np.random.Generator, shape: tuple[int, int], scales: tuple[int, ...], *, wrap: bool = True
) -> NDArray[np.float32]:
    """Sum of random fields ``shape`` with features of about ``scales`` pixels; about unit variance.

    With ``wrap`` the rows continue seamlessly (row 0 follows the last row).
    """
    total = np.zeros(shape, np.float32)
    for scale in scales:
        rows, columns = max(2, shape[0] // scale), max(2, shape[1] // scale)
        small = rng.standard_normal((rows, columns)).astype(np.float32)
        if wrap:
            small = np.concatenate([small[-2:], small, small[:2]])
            enlarged = cv2.resize(
                small, (shape[1], round(shape[0] * (rows + 4) / rows)), interpolation=cv2.INTER_CUBIC
            )
            start = round(shape[0] * 2 / rows)
            enlarged = enlarged[start : start + shape[0]]
            if len(enlarged) < shape[0]:
                enlarged = cv2.resize(enlarged, (shape[1], shape[0]))
        else:
            enlarged = cv2.resize(small, (shape[1], shape[0]), interpolation=cv2.INTER_CUBIC)
        total += enlarged
    return total / np.float32(np.sqrt(len(scales)))


def _toned(colour: tuple[float, float, float], factor: float) -> tuple[float, float, float]:
    b, g, r = (min(255.0, c * factor) for c in colour)
    return b, g, r


class _Painter:
    """Draws on one periodic block; positions in metres, Z in [0, block)."""

    def __init__(self, rng: np.random.Generator, layout: StreetLayout) -> None:
        self.rng = rng
        self.layout = layout
        self.rows = round(layout.block_metres * _PIXELS_PER_METRE)
        self.columns = round(2 * _HALF_WIDTH * _PIXELS_PER_METRE)
        self.image = np.empty((self.rows, self.columns, 3), np.uint8)

    def column(self, x: float) -> int:
        return int(np.clip(round((x + _HALF_WIDTH) * _PIXELS_PER_METRE), 0, self.columns))

    def row(self, z: float) -> int:
        return int(np.clip(round(z * _PIXELS_PER_METRE), 0, self.rows))

    def fill(self, x0: float, x1: float, z0: float, z1: float, colour: tuple[float, float, float]) -> None:
        self.image[self.row(z0) : self.row(z1), self.column(min(x0, x1)) : self.column(max(x0, x1))] = colour

    def wear(
        self, x0: float, x1: float, z0: float, z1: float, colour: tuple[float, ...], cover: float
    ) -> None:
        """Paint that has worn: ``colour`` over the ground with patchy opacity around ``cover``."""
        rows, columns = (
            slice(self.row(z0), self.row(z1)),
            slice(self.column(min(x0, x1)), self.column(max(x0, x1))),
        )
        part = self.image[rows, columns]
        if part.size == 0:
            return
        noise = self.rng.standard_normal((max(1, part.shape[0] // 5), max(1, part.shape[1]))).astype(
            np.float32
        )
        opacity = np.clip(cover + 0.16 * cv2.resize(noise, (part.shape[1], part.shape[0])), 0.0, 1.0)[
            ..., None
        ]
        part[...] = (part * (1 - opacity) + np.array(colour, np.float32) * opacity).astype(np.uint8)


def _paint_surfaces(painter: _Painter) -> None:
    layout, rng = painter.layout, painter.rng
    block, kerb, wall = layout.block_metres, layout.kerb_x, layout.wall_x
    painter.image[:] = layout.verge
    painter.fill(-wall, wall, 0, block, layout.pavement)
    slab = float(rng.choice([0.6, 1.0, 2.0]))
    dark = _toned(layout.pavement, 0.84)
    for side in (-1, 1):
        for z in np.arange(0.0, block, slab):
            painter.fill(side * kerb, side * wall, z, z + 0.05, dark)
        for x in np.arange(kerb, wall, slab):
            painter.fill(side * x, side * x + 0.05, 0, block, dark)
    painter.fill(-kerb, kerb, 0, block, layout.asphalt)
    half = layout.side_half_width
    if half:
        side_asphalt = _toned(layout.asphalt, 0.96)
        for z0, z1 in ((0.0, half), (block - half, block)):
            painter.fill(-_HALF_WIDTH, _HALF_WIDTH, z0, z1, side_asphalt)
            walk0, walk1 = (half, half + 2.5) if z0 == 0 else (block - half - 2.5, block - half)
            for side in (-1, 1):
                painter.fill(side * wall, side * _HALF_WIDTH, walk0, walk1, layout.pavement)
    _add_noise(rng, painter.image)


def _add_noise(rng: np.random.Generator, image: Image) -> None:
    """Unevenness of all sizes, in place; computed at half resolution or tiled where that is not seen."""
    rows, columns = image.shape[:2]
    noise = smooth_noise(rng, (rows // 4, columns // 4), (60, 15, 4)) * np.float32(rng.uniform(2.0, 5.5))
    noise = cv2.resize(noise, (columns, rows), interpolation=cv2.INTER_LINEAR)
    tile = rng.standard_normal((512, 512), np.float32) * np.float32(rng.uniform(4, 8))
    noise += np.tile(tile, (rows // 512 + 1, columns // 512 + 1))[:rows, :columns]
    shift = cv2.convertScaleAbs(noise + np.float32(128))
    cv2.addWeighted(image, 1.0, cv2.merge([shift, shift, shift]), 1.0, -128.0, image)


def _paint_wear(painter: _Painter) -> None:
    """Wheel tracks, oil, patches, cracks, manholes: what makes asphalt look used."""
    layout, rng = painter.layout, painter.rng
    block, kerb = layout.block_metres, layout.kerb_x
    tracks = np.ones(painter.columns, np.float32)
    x = (np.arange(painter.columns) + 0.5) / _PIXELS_PER_METRE - _HALF_WIDTH
    for lane in range(layout.lanes):
        for side in (-1, 1):
            middle = side * layout.lane_x(lane)
            tracks += 0.05 * (
                np.exp(-(((x - middle - 0.8) / 0.3) ** 2)) + np.exp(-(((x - middle + 0.8) / 0.3) ** 2))
            )
            tracks -= 0.07 * np.exp(-(((x - middle) / 0.35) ** 2))
    tracks[(np.abs(x) > kerb)] = 1.0
    factor = cv2.convertScaleAbs(tracks[None, :], alpha=128.0)
    factor = np.repeat(cv2.merge([factor, factor, factor]), painter.rows, axis=0)
    cv2.multiply(painter.image, factor, painter.image, 1 / 128)
    for _ in range(int(rng.integers(4, 14))):  # repaired patches
        x0, z0 = rng.uniform(-kerb, kerb - 1), rng.uniform(0, block - 6)
        tone = float(rng.uniform(0.8, 1.1))
        colour = tuple(c * tone for c in layout.asphalt)
        painter.wear(x0, min(kerb, x0 + rng.uniform(0.6, 2.5)), z0, z0 + rng.uniform(1, 9), colour, 0.75)
    for _ in range(int(rng.integers(4, 16))):  # cracks and sealed joints
        start = np.array(
            [painter.column(rng.uniform(-kerb, kerb)), rng.integers(0, painter.rows)], np.float64
        )
        steps = rng.normal(0, 14, (int(rng.integers(6, 26)), 2)) + rng.normal(0, 12, 2)
        line = (start + np.cumsum(steps, axis=0)).astype(np.int32)
        tone = float(rng.uniform(0.74, 0.92))
        shade = tuple(c * tone for c in layout.asphalt)
        cv2.polylines(painter.image, [line], False, shade, 1, cv2.LINE_AA)
    for _ in range(int(rng.integers(2, 6))):  # manhole covers
        centre = (painter.column(rng.uniform(-kerb, kerb)), int(rng.integers(20, painter.rows - 20)))
        cv2.circle(painter.image, centre, 7, tuple(c * 0.55 for c in layout.asphalt), -1, cv2.LINE_AA)
        cv2.circle(painter.image, centre, 5, tuple(c * 0.75 for c in layout.asphalt), 1, cv2.LINE_AA)
    for _ in range(int(rng.integers(0, 4))):  # stains
        centre = (painter.column(rng.uniform(-kerb, kerb)), int(rng.integers(30, painter.rows - 30)))
        overlay = painter.image.copy()
        axes = (int(rng.integers(6, 22)), int(rng.integers(10, 60)))
        cv2.ellipse(overlay, centre, axes, float(rng.uniform(-20, 20)), 0, 360, (48, 48, 50), -1, cv2.LINE_AA)
        cv2.addWeighted(overlay, 0.3, painter.image, 0.7, 0, painter.image)


def _paint_markings(painter: _Painter) -> None:
    layout, rng = painter.layout, painter.rng
    block, kerb, half = layout.block_metres, layout.kerb_x, layout.side_half_width
    clear = half + 4.5 if half else 0.0
    start, stop = clear, block - clear
    white = (214.0, 218.0, 220.0)
    middle = (70.0, 178.0, 222.0) if layout.line_yellow else white
    cover, line = float(rng.uniform(0.6, 0.95)), float(rng.uniform(0.10, 0.16))
    if layout.median_width:
        grass = layout.verge if layout.environment in ("park", "suburb", "highway") else (70.0, 108.0, 92.0)
        edge = layout.median_width / 2
        painter.fill(-edge, edge, start, stop, layout.pavement)
        painter.fill(-edge + 0.25, edge - 0.25, start, stop, grass)
        for side in (-1, 1):
            painter.wear(side * (edge + 0.2), side * (edge + 0.2 + line), start, stop, white, cover)
    elif layout.line_yellow or rng.random() < 0.5:
        for x in (-0.18, 0.18):
            painter.wear(x - line / 2, x + line / 2, start, stop, middle, cover)
    else:
        for z in np.arange(start, stop - 3, 6.0):
            painter.wear(-line / 2, line / 2, z, z + 3.0, middle, cover)
    dash, gap = float(rng.choice([3.0, 2.0, 4.0])), float(rng.choice([6.0, 4.0, 9.0]))
    for side in (-1, 1):
        for lane in range(1, layout.lanes):
            x = side * (layout.median_width / 2 + lane * layout.lane_width)
            for z in np.arange(start, stop - dash, dash + gap):
                painter.wear(x - line / 2, x + line / 2, z, z + dash, white, cover)
        x = side * (layout.median_width / 2 + layout.lanes * layout.lane_width)
        painter.wear(x - line / 2, x + line / 2, start, stop, white, cover)
        if layout.parking_width:
            x0 = side * (kerb - layout.parking_width)
            for z in np.arange(start + 6, stop - 6, 6.0):
                painter.wear(x0, x0 + side * layout.parking_width * 0.9, z, z + 0.1, white, cover * 0.7)
        painter.fill(side * kerb, side * (kerb + 0.22), start - 3, stop + 3, _toned(layout.pavement, 1.13))
        painter.fill(side * (kerb - 0.14), side * kerb, start - 3, stop + 3, _toned(layout.asphalt, 0.62))
    if half:
        _paint_junction(painter, white, cover)


def _paint_junction(painter: _Painter, white: tuple[float, float, float], cover: float) -> None:
    """Zebra crossings, stop lines, and arrows at both ends of the block."""
    layout = painter.layout
    block, kerb, half = layout.block_metres, layout.kerb_x, layout.side_half_width
    for near_start in (True, False):
        z0 = half + 0.6 if near_start else block - half - 3.6
        for x in np.arange(-kerb + 0.3, kerb - 0.5, 1.0):
            painter.wear(x, x + 0.5, z0, z0 + 3.0, white, cover)
        stop_z = half + 4.3 if near_start else block - half - 4.7
        side = -1 if near_start else 1  # the direction that arrives at this end
        painter.wear(
            side * layout.median_width / 2, side * layout.cycle_x, stop_z, stop_z + 0.4, white, cover
        )
        for lane in range(layout.lanes):
            x = side * layout.lane_x(lane)
            tail, head = (stop_z + 8, stop_z + 4) if near_start else (stop_z - 8, stop_z - 4)
            painter.wear(x - 0.08, x + 0.08, min(tail, head), max(tail, head), white, cover)
            tip = head + (-1.4 if near_start else 1.4)
            points = [(x - 0.4, head), (x + 0.4, head), (x, tip)]
            corners = np.array([[painter.column(px), painter.row(pz)] for px, pz in points], np.int32)
            cv2.fillConvexPoly(painter.image, corners, white, cv2.LINE_AA)
    for side in (-1, 1):  # crossings over the side street, and its middle line
        x0 = side * (kerb + 0.6)
        for z in np.arange(-half + 0.2, half - 0.4, 1.0):
            painter.wear(x0, x0 + side * 2.2, z % block, z % block + 0.5, white, cover * 0.8)
        for x in np.arange(layout.wall_x + 2, _HALF_WIDTH - 3, 5.0):
            painter.wear(side * x, side * (x + 2.5), 0, 0.07, white, cover)


def _lamp_light(layout: StreetLayout, lead: float, length: float) -> GroundLevel:
    ppm, half_width = 2.0, 30.0
    z = (np.arange(round(length * ppm)) + 0.5) / ppm - lead
    x = (np.arange(round(2 * half_width * ppm)) + 0.5) / ppm - half_width
    count = max(1, round(layout.block_metres / layout.lamp_spacing))
    spacing = layout.block_metres / count
    light = np.zeros((len(z), len(x)), np.float32)
    for index, side in ((0, 1), (1, -1)):
        away = (z - spacing * (0.5 + 0.5 * index) + spacing / 2) % spacing - spacing / 2
        squared = (away[:, None] / 6.5) ** 2 + ((x[None, :] - side * (layout.kerb_x - 0.8)) / 5.5) ** 2
        light += 1.0 / (1.0 + squared) ** 1.5
    return GroundLevel(np.clip(light * 255, 0, 255).astype(np.uint8), ppm, half_width, 300.0)


def make_ground(rng: np.random.Generator, layout: StreetLayout) -> GroundTexture:
    """Paint the ground of one street."""
    painter = _Painter(rng, layout)
    _paint_surfaces(painter)
    _paint_wear(painter)
    _paint_markings(painter)
    lead = 40.0
    levels: list[GroundLevel] = []
    for ppm, half_width, until in ((_PIXELS_PER_METRE, 20.0, 22.0), (6.0, 46.0, 75.0), (2.0, 46.0, 600.0)):
        size = (round(painter.columns * ppm / _PIXELS_PER_METRE), round(layout.block_metres * ppm))
        block = (
            cv2.resize(painter.image, size, interpolation=cv2.INTER_AREA)
            if ppm < _PIXELS_PER_METRE
            else painter.image
        )
        trim = round((_HALF_WIDTH - half_width) * ppm)
        block = block[:, trim : block.shape[1] - trim]
        length = lead + layout.block_metres + min(until, 420.0) + 12.0
        rows = (np.arange(round(length * ppm)) - round(lead * ppm)) % block.shape[0]
        # Rows are per metre ``block.shape[0] / block_metres``: exact, since block_metres is an integer.
        level = GroundLevel(np.ascontiguousarray(block[rows]), ppm, half_width, until)
        if not levels:
            levels.append(replace(level, until_metres=9.0))
        levels.append(level)
    return GroundTexture(tuple(levels), _lamp_light(layout, lead, lead + layout.block_metres + 200.0), lead)
