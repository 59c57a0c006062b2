"""Drawing detections so that they can be read at any size and on any background."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import lru_cache

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.structures import Detections

__all__ = ["PALETTE_BGR", "DrawingStyle", "draw_detections"]

PALETTE_BGR: tuple[tuple[int, int, int], ...] = (
    (0, 159, 230),  # orange
    (233, 180, 86),  # sky blue
    (115, 158, 0),  # bluish green
    (66, 228, 240),  # yellow
    (167, 121, 204),  # reddish purple
    (0, 94, 213),  # vermilion
    (178, 114, 0),  # blue
    (255, 255, 255),
)
"""Class colours: the set of Okabe and Ito, made to be told apart with any kind of colour vision. Further
classes begin again; the label tells them apart."""

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_HALO_BGR = (0, 0, 0)
# Capital letters of 7 pixels are the smallest that this font draws legibly.
_SMALLEST_TEXT_PIXELS = 7
# Capital letters of this font are 22 pixels high at scale 1.
_PIXELS_PER_FONT_SCALE = 22


@dataclass(frozen=True, slots=True)
class DrawingStyle:
    """Sizes in pixels that suit one picture size."""

    line_width: int
    text_height: int
    text_width: int

    @classmethod
    def for_size(cls, height: int, width: int) -> DrawingStyle:
        """Lines and letters grow with the square root of the picture's area: 160x120 has lines of 1 pixel and
        letters of 7, 640x352 has 2 and 8, 1920x1080 has 5 and 26, 3840x2160 has 10 and 51."""
        side = math.sqrt(height * width)
        text_height = max(_SMALLEST_TEXT_PIXELS, round(side / 56))
        return cls(
            line_width=max(1, round(side / 300)),
            text_height=text_height,
            text_width=max(1, round(text_height / 9)),
        )


@dataclass(frozen=True, slots=True)
class _Rectangle:
    left: int
    top: int
    right: int
    bottom: int

    def overlaps(self, other: _Rectangle) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def draw_detections(
    image: NDArray[np.uint8], detections: Detections, *, class_names: tuple[str, ...]
) -> NDArray[np.uint8]:
    """A copy of ``image`` with a box and a label, class, track number and score, for every detection.

    Boxes have a dark rim, labels a filled ground with black or white letters, so both stand out on any
    background. Labels stay inside the picture and avoid each other where there is room, best score first;
    a label that no part of the picture can hold is left out.

    Args:
        image: ``[height, width, 3]`` uint8 BGR; not changed.
        detections: In pixels of ``image``.
        class_names: Names by class id.

    Returns:
        ``[height, width, 3]`` uint8 BGR.
    """
    canvas = image.copy()
    height, width = canvas.shape[:2]
    style = DrawingStyle.for_size(height, width)
    boxes = [_to_pixels(box, height, width) for box in detections.boxes_xyxy.tolist()]
    colours = [PALETTE_BGR[class_id % len(PALETTE_BGR)] for class_id in detections.class_ids.tolist()]
    for box, colour in reversed(list(zip(boxes, colours, strict=True))):  # the best on top
        _draw_box(canvas, box, colour, style)
    placed: list[_Rectangle] = []
    track_ids = detections.track_ids
    for box, colour, class_id, score, track_id in zip(
        boxes,
        colours,
        detections.class_ids.tolist(),
        detections.scores.tolist(),
        [-1] * len(detections) if track_ids is None else track_ids.tolist(),
        strict=True,
    ):
        _draw_label(canvas, box, colour, _label_texts(class_names[class_id], score, track_id), style, placed)
    return canvas


def _to_pixels(box: list[float], height: int, width: int) -> _Rectangle:
    left, right = (min(max(round(value), 0), width - 1) for value in (box[0], box[2]))
    top, bottom = (min(max(round(value), 0), height - 1) for value in (box[1], box[3]))
    return _Rectangle(left, top, max(left, right), max(top, bottom))


def _draw_box(
    canvas: NDArray[np.uint8], box: _Rectangle, colour: tuple[int, int, int], style: DrawingStyle
) -> None:
    first, last = (box.left, box.top), (box.right, box.bottom)
    if style.line_width > 1:
        rim = max(1, style.line_width // 3)
        cv2.rectangle(canvas, first, last, _HALO_BGR, style.line_width + 2 * rim, cv2.LINE_8)
    elif box.right - box.left > 2 and box.bottom - box.top > 2:
        # On both sides it would cover more of a small picture than the line itself.
        inner_first, inner_last = (box.left + 1, box.top + 1), (box.right - 1, box.bottom - 1)
        cv2.rectangle(canvas, inner_first, inner_last, _HALO_BGR, 1, cv2.LINE_8)
    cv2.rectangle(canvas, first, last, colour, style.line_width, cv2.LINE_8)


def _label_texts(name: str, score: float, track_id: int) -> tuple[tuple[str, ...], ...]:
    """Words of the full label, then of shorter ones for pictures with little room. The font knows ASCII
    only."""
    ascii_name = name.encode("ascii", "replace").decode()
    number = (f"#{track_id}",) if track_id >= 0 else ()
    return (ascii_name, *number, f"{score:.2f}"), (ascii_name, *number), (ascii_name,), (ascii_name[:3],)


def _draw_label(
    canvas: NDArray[np.uint8],
    box: _Rectangle,
    colour: tuple[int, int, int],
    texts: tuple[tuple[str, ...], ...],
    style: DrawingStyle,
    placed: list[_Rectangle],
) -> None:
    height, width = canvas.shape[:2]
    for words in texts:
        patches = [_word_patch(word, colour, style) for word in words]
        label_height, label_width = patches[0].shape[0], sum(patch.shape[1] for patch in patches)
        if label_width <= width and label_height <= height:
            break
    else:
        return
    area = _place(box, label_width, label_height, height=height, width=width, placed=placed)
    placed.append(area)
    left = area.left
    for patch in patches:
        canvas[area.top : area.bottom, left : left + patch.shape[1]] = patch
        left += patch.shape[1]


# Smooth letters take most of the time of drawing (1.7 of 2.4 ms for eight labels at 1920x1080); names and
# two-digit scores come again and again. At that size the words below take about 4 MB.
@lru_cache(maxsize=256)
def _word_patch(word: str, ground_bgr: tuple[int, int, int], style: DrawingStyle) -> NDArray[np.uint8]:
    """``[height, width, 3]`` uint8 BGR: letters on the ground, with room around them. Not to be changed."""
    font_scale = style.text_height / _PIXELS_PER_FONT_SCALE
    padding = max(2, style.text_height // 4)
    (text_width, _), _ = cv2.getTextSize(word, _FONT, font_scale, style.text_width)
    patch = np.empty((style.text_height + 2 * padding, text_width + 2 * padding, 3), np.uint8)
    patch[:] = ground_bgr
    origin = (padding, patch.shape[0] - 1 - padding)
    cv2.putText(patch, word, origin, _FONT, font_scale, _ink(ground_bgr), style.text_width, cv2.LINE_AA)
    return patch


def _place(
    box: _Rectangle, label_width: int, label_height: int, *, height: int, width: int, placed: list[_Rectangle]
) -> _Rectangle:
    """Where the label goes: above the box, else inside its top, below it, or inside its bottom; the first of
    these that lies in the picture and on no earlier label, else the first that lies in the picture."""
    left = min(max(box.left, 0), width - label_width)
    tops = (box.top - label_height, box.top, box.bottom + 1, box.bottom - label_height)
    inside = [
        _Rectangle(left, top, left + label_width, top + label_height)
        for top in tops
        if 0 <= top <= height - label_height
    ]
    if not inside:
        top = min(max(box.top, 0), height - label_height)
        inside = [_Rectangle(left, top, left + label_width, top + label_height)]
    for area in inside:
        if not any(area.overlaps(other) for other in placed):
            return area
    return inside[0]


def _ink(ground_bgr: tuple[int, int, int]) -> tuple[int, int, int]:
    """Black or white, whichever contrasts more with the ground (relative luminance as WCAG 2 defines it)."""
    blue, green, red = (
        value / 255 / 12.92 if value <= 10 else ((value / 255 + 0.055) / 1.055) ** 2.4 for value in ground_bgr
    )
    luminance = 0.2126 * red + 0.7152 * green + 0.0722 * blue
    return (0, 0, 0) if (luminance + 0.05) / 0.05 >= 1.05 / (luminance + 0.05) else (255, 255, 255)
