"""Every number against pycocotools on the same labels and detections."""

from __future__ import annotations

import contextlib
import io

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pcmoe_det.evaluation import FrameTruth, match_frames, score_table
from pcmoe_det.structures import Detections

CLASS_NAMES = ("a", "b", "c")


def _xywh(box: np.ndarray) -> list[float]:
    left, top, right, bottom = (float(value) for value in box)
    return [left, top, right - left, bottom - top]


def _pycocotools_points(truths: list[FrameTruth], detections: list[Detections]) -> np.ndarray:
    """``[classes, thresholds]`` in points, NaN where pycocotools says -1; unjudged classes are left out."""
    annotations, results = [], []
    for image_id, (truth, found) in enumerate(zip(truths, detections, strict=True), start=1):
        for box, class_id, ignored in zip(truth.boxes_xyxy, truth.class_ids, truth.ignored, strict=True):
            if truth.judged_classes is None or class_id in truth.judged_classes:
                _, _, width, height = _xywh(box)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": image_id,
                        "category_id": int(class_id) + 1,
                        "bbox": _xywh(box),
                        "area": width * height,
                        "iscrowd": int(ignored),
                    }
                )
        for box, score, class_id in zip(found.boxes_xyxy, found.scores, found.class_ids, strict=True):
            if truth.judged_classes is None or class_id in truth.judged_classes:
                results.append(
                    {
                        "image_id": image_id,
                        "category_id": int(class_id) + 1,
                        "bbox": _xywh(box),
                        "score": float(score),
                    }
                )
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO()
        coco.dataset = {
            "images": [{"id": index} for index in range(1, len(truths) + 1)],
            "annotations": annotations,
            "categories": [{"id": index + 1, "name": name} for index, name in enumerate(CLASS_NAMES)],
        }
        coco.createIndex()
        evaluation = COCOeval(coco, coco.loadRes(results), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
    precision = evaluation.eval["precision"][:, :, :, 0, 2]  # area "all", 100 detections
    points = 100.0 * precision.mean(axis=1).T
    points[precision[0, 0] < 0] = np.nan
    return points


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("ties", [False, True], ids=["distinct scores", "tied scores"])
@pytest.mark.parametrize("protocol", [False, True], ids=["plain", "ignored and unjudged"])
def test_average_precisions_equal_those_of_pycocotools(random_frames, seed, ties, protocol):
    truths, detections = random_frames(seed, ties=ties, protocol=protocol)
    expected = _pycocotools_points(truths, detections)
    assert np.nanmin(expected[:, 0]) > 0.0
    assert np.nanmax(expected) < 99.0, "the case is too easy to tell anything"

    scores = score_table(match_frames(truths, detections, class_names=CLASS_NAMES))

    np.testing.assert_allclose(scores.points, expected, rtol=0, atol=1e-9)
    assert scores.mAP50 == pytest.approx(np.nanmean(expected[:, 0]), abs=1e-9)
    assert scores.mAP == pytest.approx(np.nanmean(expected), abs=1e-9)


def test_a_class_that_only_ever_is_ignored_has_no_value_as_in_pycocotools(make_truth, make_detections):
    box = [10, 10, 50, 50]
    truths = [make_truth([box, box], [0, 1], ignored=[False, True])]
    detections = [make_detections([box, box, box], [0.9, 0.8, 0.7], [0, 1, 2])]
    expected = _pycocotools_points(truths, detections)
    assert np.isnan(expected[1:]).all()

    points = score_table(match_frames(truths, detections, class_names=CLASS_NAMES)).points

    np.testing.assert_array_equal(points, expected)


def test_overlap_of_exactly_the_threshold_is_a_hit_as_in_pycocotools(make_truth, make_detections):
    """IoU of 1/2, 3/5 and 3/4 in coordinates that binary fractions cannot hold."""
    widths = {5: 0.5, 6: 0.6, 7.5: 0.75}
    for width, overlap in widths.items():
        truths = [make_truth([[0.1, 0.1, 10.1, 1.1]])]
        detections = [make_detections([[0.1, 0.1, 0.1 + width, 1.1]], [0.5])]
        expected = _pycocotools_points(truths, detections)[:1]
        points = score_table(match_frames(truths, detections, class_names=("a",))).points
        np.testing.assert_array_equal(points, expected, err_msg=f"IoU {overlap}")


def test_order_of_frames_decides_between_equal_scores_in_different_frames(make_truth, make_detections):
    """One hit and one false alarm of the same score: whichever frame comes first is ranked first."""
    box, elsewhere = [10, 10, 50, 50], [200, 200, 240, 240]
    hit = (make_truth([box], name="v/1"), make_detections([box], [0.5]))
    miss = (make_truth([box], name="v/2"), make_detections([elsewhere], [0.5]))
    for frames in ([hit, miss], [miss, hit]):
        truths, detections = [truth for truth, _ in frames], [found for _, found in frames]
        expected = _pycocotools_points(truths, detections)[:1]
        points = score_table(match_frames(truths, detections, class_names=("a",))).points
        np.testing.assert_allclose(points, expected, rtol=0, atol=1e-9)
