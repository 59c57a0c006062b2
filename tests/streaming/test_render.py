"""Drawing at many sizes."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest

from pcmoe_det.streaming.render import PALETTE_BGR, DrawingStyle, _ink, _place, _Rectangle, draw_detections
from tests.streaming.stand_ins import CLASS_NAMES, detections

SIZES = [(1, 1), (2, 3), (30, 40), (120, 160), (352, 640), (639, 359), (1080, 1920), (2160, 3840)]


def _linear_rgb(bgr: tuple[int, int, int]) -> np.ndarray:
    srgb = np.array(bgr[::-1]) / 255
    return np.where(srgb <= 0.04045, srgb / 12.92, ((srgb + 0.055) / 1.055) ** 2.4)


def _lab(linear: np.ndarray) -> np.ndarray:
    to_xyz = np.array([[0.4124, 0.3576, 0.1805], [0.2126, 0.7152, 0.0722], [0.0193, 0.1192, 0.9505]])
    scaled = (to_xyz @ np.clip(linear, 0, 1)) / np.array([0.9505, 1.0, 1.089])
    root = np.where(scaled > 0.008856, np.cbrt(scaled), 7.787 * scaled + 16 / 116)
    return np.array([116 * root[1] - 16, 500 * (root[0] - root[1]), 200 * (root[1] - root[2])])


# Machado, Oliveira and Fernandes 2009, severity 1.0, on linear RGB.
VISION = {
    "full": np.eye(3),
    "protanopia": np.array(
        [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]]
    ),
    "deuteranopia": np.array(
        [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]]
    ),
}


@pytest.mark.parametrize("vision", VISION)
def test_class_colours_differ_for_every_kind_of_vision(vision: str) -> None:
    colours = [_lab(VISION[vision] @ _linear_rgb(bgr)) for bgr in PALETTE_BGR[: len(CLASS_NAMES)]]
    # A difference of 2.3 is just noticeable side by side; labels are apart.
    assert min(np.linalg.norm(a - b) for a, b in itertools.combinations(colours, 2)) > 10


def test_letters_contrast_with_every_label_colour() -> None:
    for ground in PALETTE_BGR:
        luminances = sorted(
            float(np.dot(_linear_rgb(colour), (0.2126, 0.7152, 0.0722))) for colour in (ground, _ink(ground))
        )
        # WCAG 2 asks for 4.5 : 1 of small text.
        assert (luminances[1] + 0.05) / (luminances[0] + 0.05) >= 4.5


@pytest.mark.parametrize(("height", "width"), SIZES, ids=lambda value: str(value))
def test_drawing_works_at_any_size_and_leaves_the_frame_alone(height: int, width: int) -> None:
    image = np.random.default_rng(1).integers(0, 256, (height, width, 3), dtype=np.uint8)
    before = image.copy()
    found = detections(
        (0, 0, width, height, 0.99, 0),
        (width * 0.4, height * 0.4, width * 0.6, height * 0.6, 0.8, 4),
        (width * 0.9, height * 0.9, width, height, 0.5, 5),
        (width / 2, height / 2, width / 2, height / 2, 0.4, 3),
    )
    drawn = draw_detections(image, found, class_names=CLASS_NAMES)
    assert drawn.shape == image.shape
    assert drawn.dtype == np.uint8
    assert (drawn != before).any()
    np.testing.assert_array_equal(image, before)


@pytest.mark.parametrize("ground", [0, 128, 255])
@pytest.mark.parametrize(("height", "width"), [(120, 160), (480, 640), (2160, 3840)])
def test_the_outline_shows_class_colour_and_a_dark_rim(height: int, width: int, ground: int) -> None:
    image = np.full((height, width, 3), ground, np.uint8)
    box = (width // 4, height // 2, width // 2, height - height // 8)
    drawn = draw_detections(image, detections((*box, 0.9, 1)), class_names=CLASS_NAMES)
    row = drawn[(box[1] + box[3]) // 2]
    on_line = (row == PALETTE_BGR[1]).all(axis=1)
    line_width = DrawingStyle.for_size(height, width).line_width
    # Left and right line, each as wide as the style says (an even width is drawn one pixel wider).
    assert 2 * line_width <= on_line.sum() <= 2 * (line_width + 1)
    assert on_line[box[0]]
    assert on_line[box[2]]
    if ground:
        assert (row == 0).all(axis=1).sum() >= 2


def test_a_label_is_the_same_every_time_and_tells_class_number_and_score() -> None:
    image = np.full((480, 640, 3), 90, np.uint8)
    found = detections((100, 200, 300, 400, 0.87, 1))
    label = (slice(150, 199), slice(90, 400))
    first, again = (draw_detections(image, found, class_names=CLASS_NAMES)[label] for _ in range(2))
    np.testing.assert_array_equal(first, again)
    other_score = replace(found, scores=np.array([0.86], np.float32))
    other_class = replace(found, class_ids=np.array([0]))
    tracked = [replace(found, track_ids=np.array([number])) for number in (-1, 7, 8)]
    for changed in (other_score, other_class, *tracked[1:]):
        assert (draw_detections(image, changed, class_names=CLASS_NAMES)[label] != first).any()
    untracked, seven, eight = (draw_detections(image, one, class_names=CLASS_NAMES)[label] for one in tracked)
    np.testing.assert_array_equal(untracked, first)
    assert (seven != eight).any()


def test_nothing_found_changes_nothing() -> None:
    image = np.random.default_rng(2).integers(0, 256, (90, 120, 3), dtype=np.uint8)
    drawn = draw_detections(image, detections(), class_names=CLASS_NAMES)
    np.testing.assert_array_equal(drawn, image)
    assert drawn is not image


def test_the_better_detection_is_drawn_over_the_worse() -> None:
    image = np.zeros((200, 300, 3), np.uint8)
    same = (50, 60, 250, 180)
    drawn = draw_detections(image, detections((*same, 0.9, 2), (*same, 0.5, 3)), class_names=CLASS_NAMES)
    assert tuple(drawn[120, 50]) == PALETTE_BGR[2]


def test_letters_grow_with_the_picture_and_never_below_legible() -> None:
    heights = [DrawingStyle.for_size(height, width).text_height for height, width in SIZES]
    assert min(heights) == 7
    assert heights[-1] > 2 * heights[4]


def test_labels_lie_in_the_picture_and_apart_where_there_is_room() -> None:
    random = np.random.default_rng(5)
    for _ in range(300):
        width, height = (int(value) for value in random.integers(60, 400, 2))
        left, top = int(random.integers(0, width)), int(random.integers(0, height))
        box = _Rectangle(left, top, int(random.integers(left, width)), int(random.integers(top, height)))
        area = _place(box, 55, 18, height=height, width=width, placed=[])
        assert 0 <= area.left < area.right <= width
        assert 0 <= area.top < area.bottom <= height
        assert (area.right - area.left, area.bottom - area.top) == (55, 18)
    box = _Rectangle(20, 50, 120, 150)
    first = _place(box, 55, 18, height=200, width=200, placed=[])
    second = _place(box, 55, 18, height=200, width=200, placed=[first])
    third = _place(box, 55, 18, height=200, width=200, placed=[first, second])
    assert not first.overlaps(second)
    assert not third.overlaps(first)
    assert not third.overlaps(second)


def test_classes_beyond_the_palette_and_other_alphabets_are_drawn() -> None:
    names = (*(f"class {number}" for number in range(11)), "vélo")
    found = detections((5, 30, 60, 80, 0.9, 11), (70, 30, 110, 80, 0.9, 9))
    assert draw_detections(np.zeros((100, 160, 3), np.uint8), found, class_names=names).any()
