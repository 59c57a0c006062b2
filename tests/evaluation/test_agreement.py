from __future__ import annotations

import numpy as np
import pytest

from pcmoe_det.errors import UsageError
from pcmoe_det.evaluation import match_with_model, score_table, truth_from_detections

BOXES = [[60.0 * k, 0, 60.0 * k + 40, 40] for k in range(5)]


def _table(detections, reference, **options):
    count = len(reference)
    return match_with_model(
        detections,
        reference,
        frame_ids=[f"v/{index}" for index in range(count)],
        videos=["v"] * count,
        sizes_wh=[(640, 360)] * count,
        **options,
    )


def test_truth_is_what_the_reference_found_with_enough_score(make_detections):
    found = make_detections(BOXES, [0.9, 0.5, 0.49, 0.1, 0.7], [0, 1, 1, 2, 3])
    truth = truth_from_detections(
        found, frame_id="v/0", video="v", width=640, height=360, score_threshold=0.5
    )
    np.testing.assert_array_equal(truth.boxes_xyxy, np.array(BOXES)[[0, 1, 4]])
    assert truth.class_ids.tolist() == [0, 1, 3]
    assert not truth.ignored.any()
    assert truth.judged_classes is None


def test_a_model_agrees_with_itself_completely_at_any_threshold(make_detections):
    generator = np.random.default_rng(0)
    reference = [make_detections(BOXES, generator.random(5), generator.integers(0, 6, 5)) for _ in range(20)]
    for threshold in (0.0, 0.3, 0.8):
        scores = score_table(_table(reference, reference, score_threshold=threshold))
        assert scores.mAP50 == pytest.approx(100.0)
        assert scores.mAP == pytest.approx(100.0)


def test_what_the_reference_found_and_the_other_did_not_is_missed(make_detections):
    reference = [make_detections(BOXES[:2], [0.9, 0.8])]
    table = _table([make_detections(BOXES[:1], [0.4])], reference)
    assert score_table(table).mAP50 == pytest.approx(100 * 51 / 101)


def test_unequal_numbers_and_impossible_thresholds_are_refused(make_detections):
    found = [make_detections(BOXES[:1], [0.9])]
    with pytest.raises(UsageError, match="2 detections, 1 reference"):
        _table(found * 2, found)
    with pytest.raises(UsageError, match=r"score_threshold is 1.5; scores lie between 0 and 1"):
        _table(found, found, score_threshold=1.5)
