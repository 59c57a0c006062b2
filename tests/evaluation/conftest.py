"""Made-up frames for the tests of evaluation."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest

from pcmoe_det.evaluation import FrameTruth
from pcmoe_det.structures import Detections

MakeTruth = Callable[..., FrameTruth]
MakeDetections = Callable[..., Detections]
RandomFrames = Callable[..., tuple[list[FrameTruth], list[Detections]]]


def _truth(
    boxes: Sequence[Sequence[float]],
    class_ids: Sequence[int] | None = None,
    *,
    name: str = "video/00000000",
    ignored: Sequence[bool] | None = None,
    from_teacher: Sequence[bool] | None = None,
    judged: Sequence[int] | None = None,
    groups: Mapping[str, str] | None = None,
) -> FrameTruth:
    count = len(boxes)
    return FrameTruth(
        frame_id=name,
        video=name.partition("/")[0],
        boxes_xyxy=np.array(boxes, np.float64).reshape(-1, 4),
        class_ids=np.array([0] * count if class_ids is None else class_ids, np.int64),
        ignored=np.array([False] * count if ignored is None else ignored, bool),
        from_teacher=None if from_teacher is None else np.array(from_teacher, bool),
        judged_classes=None if judged is None else frozenset(judged),
        groups=groups or {},
        width=640,
        height=360,
    )


def _detections(
    boxes: Sequence[Sequence[float]], scores: Sequence[float], class_ids: Sequence[int] | None = None
) -> Detections:
    return Detections(
        boxes_xyxy=np.array(boxes, np.float32).reshape(-1, 4),
        scores=np.array(scores, np.float32),
        class_ids=np.array([0] * len(scores) if class_ids is None else class_ids, np.int64),
    )


def _random_boxes(generator: np.random.Generator, count: int, *, grid: float) -> np.ndarray:
    corner = generator.integers(0, 40, (count, 2))
    size = generator.integers(0, 20, (count, 2))  # 0: boxes without area occur
    return np.concatenate([corner, corner + size], axis=1) * grid


def _random_frames(
    seed: int,
    *,
    frames: int = 30,
    classes: int = 3,
    videos: int = 5,
    ties: bool = True,
    protocol: bool = True,
) -> tuple[list[FrameTruth], list[Detections]]:
    """Crowded frames whose boxes lie on a grid, so that overlaps of exactly a threshold occur.

    Args:
        seed: Of everything.
        frames: Some of them empty.
        classes: Class ids 0 to classes - 1.
        videos: Frames belong to in turn.
        ties: Round scores to tenths.
        protocol: With ignored labels and frames that do not judge all classes.
    """
    generator = np.random.default_rng(seed)
    truths, detections = [], []
    for index in range(frames):
        num_labels = 0 if generator.random() < 0.15 else int(generator.integers(1, 12))
        boxes = _random_boxes(generator, num_labels, grid=8.0)
        class_ids = generator.integers(0, classes, num_labels)
        judged = [c for c in range(classes) if generator.random() < 0.8] if protocol else None
        truths.append(
            _truth(
                boxes,
                class_ids,
                name=f"video{index % videos}/{index:08d}",
                ignored=generator.random(num_labels) < (0.25 if protocol else 0.0),
                judged=judged,
                groups={"timeofday_coarse": ("day", "night")[index % 2]},
            )
        )
        near = np.repeat(np.arange(num_labels), generator.integers(0, 4, num_labels))
        shifted = boxes[near] + generator.integers(-2, 3, (len(near), 4)) * 4.0
        shifted[:, 2:] = np.maximum(shifted[:, 2:], shifted[:, :2])
        far = _random_boxes(generator, 0 if index % 7 == 0 else int(generator.integers(0, 15)), grid=8.0)
        if index == 3:  # more than COCO's 100 detections of a class in a frame
            far = _random_boxes(generator, 400, grid=8.0)
        found = np.concatenate([shifted, far])
        scores = generator.random(len(found))
        detections.append(
            _detections(
                found,
                np.round(scores, 1) if ties else scores,
                np.concatenate([class_ids[near], generator.integers(0, classes, len(far))]),
            )
        )
    return truths, detections


@pytest.fixture
def make_truth() -> MakeTruth:
    return _truth


@pytest.fixture
def make_detections() -> MakeDetections:
    return _detections


@pytest.fixture
def random_frames() -> RandomFrames:
    return _random_frames


@pytest.fixture
def street_folder() -> Path:
    """SHIFT-layout street data, described by ../shared/data/README.md."""
    folder = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "street"
    if not folder.is_dir():
        pytest.skip(f"needs the street data in {folder}")
    return folder
