"""Cases small enough to compute by hand, among them those of the data's own rules."""

from __future__ import annotations

import json

import numpy as np
import pytest

from pcmoe_det.errors import DataError, UsageError
from pcmoe_det.evaluation import FrameTruth, match_frames, resolve_teacher_labels, score_table
from pcmoe_det.structures import SHIFT_CLASSES, Detections

LEFT, RIGHT, FAR = [0, 0, 40, 40], [100, 0, 140, 40], [300, 200, 340, 240]


def _ap50(truths, detections, *, teacher_labels="auto", class_id=0):
    table = match_frames(truths, detections, class_names=("a", "b"), teacher_labels=teacher_labels)
    return score_table(table).points[class_id, 0]


def test_hit_false_alarm_hit_gives_two_steps(make_truth, make_detections):
    """Precision 1 for the 51 recall points up to 0.5, then 2/3 for the other 50."""
    truths = [make_truth([LEFT, RIGHT])]
    detections = [make_detections([LEFT, FAR, RIGHT], [0.9, 0.8, 0.7])]
    assert _ap50(truths, detections) == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_a_second_detection_of_an_object_is_a_false_alarm(make_truth, make_detections):
    """Hit, false alarm, then the other object: the same two steps."""
    truths = [make_truth([LEFT, RIGHT])]
    detections = [make_detections([LEFT, LEFT, RIGHT], [0.9, 0.8, 0.7])]
    assert _ap50(truths, detections) == pytest.approx(100 * (51 + 50 * 2 / 3) / 101)


def test_a_missed_object_halves_recall(make_truth, make_detections):
    assert _ap50([make_truth([LEFT, RIGHT])], [make_detections([LEFT], [0.9])]) == pytest.approx(
        100 * 51 / 101
    )


def test_detections_without_any_hit_give_zero_and_without_labels_nothing(make_truth, make_detections):
    assert _ap50([make_truth([LEFT])], [make_detections([FAR], [0.9])]) == 0.0
    assert _ap50([make_truth([LEFT])], [make_detections([], [])]) == 0.0
    assert np.isnan(_ap50([make_truth([])], [make_detections([FAR], [0.9])]))


def test_mean_leaves_out_classes_without_labels(make_truth, make_detections):
    truths = [make_truth([LEFT], [0])]
    detections = [make_detections([LEFT, FAR], [0.5, 0.9], [0, 1])]
    scores = score_table(match_frames(truths, detections, class_names=("a", "b")))
    assert np.isnan(scores.points[1]).all()
    assert scores.mAP50 == pytest.approx(100.0)
    assert scores.mAP == pytest.approx(100.0)


def test_ap_over_thresholds_counts_those_that_the_overlap_reaches(make_truth, make_detections):
    """IoU 0.8 reaches seven of the ten thresholds."""
    scores = score_table(
        match_frames([make_truth([LEFT])], [make_detections([[0, 0, 40, 32]], [0.9])], class_names=("a",))
    )
    np.testing.assert_allclose(scores.points[0], [100.0] * 7 + [0.0] * 3)
    assert scores.mAP == pytest.approx(70.0)


@pytest.mark.parametrize(
    ("teacher_labels", "expected"),
    [("ignore", 100.0), ("auto", 100.0), ("truth", 100 * 51 / 101)],
)
def test_teacher_labels_beside_annotated_ones(make_truth, make_detections, teacher_labels, expected):
    """The teacher's object is missed: that only counts where it is truth."""
    truths = [make_truth([LEFT, RIGHT], from_teacher=[False, True])]
    assert _ap50(truths, [make_detections([LEFT], [0.5])], teacher_labels=teacher_labels) == pytest.approx(
        expected
    )


@pytest.mark.parametrize("teacher_labels", ["ignore", "auto"])
def test_detection_of_an_ignored_teacher_label_is_no_false_alarm(make_truth, make_detections, teacher_labels):
    """Two detections of the teacher's object are ranked first; the person's label still has AP 100."""
    truths = [make_truth([LEFT, RIGHT], from_teacher=[False, True])]
    detections = [make_detections([RIGHT, RIGHT, LEFT], [0.9, 0.8, 0.5])]
    assert _ap50(truths, detections, teacher_labels=teacher_labels) == pytest.approx(100.0)
    without_region = [make_truth([LEFT])]
    assert _ap50(without_region, detections, teacher_labels=teacher_labels) == pytest.approx(100 / 3)


def test_auto_takes_teacher_labels_as_truth_only_in_frames_without_annotated_ones(
    make_truth, make_detections
):
    truths = [
        make_truth([LEFT, RIGHT], name="v/0", from_teacher=[False, True]),
        make_truth([LEFT, RIGHT], name="v/1", from_teacher=[True, True]),
    ]
    detections = [make_detections([], []), make_detections([], [])]
    counts = {
        mode: match_frames(truths, detections, teacher_labels=mode).classes[0].truth_counts.tolist()
        for mode in ("ignore", "auto", "truth")
    }
    assert counts == {"ignore": [1, 0], "auto": [1, 2], "truth": [2, 2]}


def test_labels_that_are_ignored_by_themselves_stay_ignored_in_every_mode(make_truth):
    truth = make_truth([LEFT, RIGHT], ignored=[True, False], from_teacher=[False, True])
    for mode, expected in (
        ("ignore", [True, True]),
        ("auto", [True, True]),
        ("truth", [True, False]),
    ):
        assert resolve_teacher_labels(truth, teacher_labels=mode).ignored.tolist() == expected


def test_an_ignored_region_shields_its_own_class_only(make_truth, make_detections):
    truths = [make_truth([RIGHT, LEFT, LEFT], [0, 0, 1], ignored=[True, False, False])]
    detections = [make_detections([RIGHT, RIGHT, LEFT, LEFT], [0.9, 0.8, 0.5, 0.4], [0, 1, 0, 1])]
    assert _ap50(truths, detections, class_id=0) == pytest.approx(100.0)
    assert _ap50(truths, detections, class_id=1) == pytest.approx(50.0)


def test_a_region_is_measured_by_the_share_of_the_detection_inside(make_truth, make_detections):
    """A quarter of the region, wholly inside it: ignored. Three quarters outside: a false alarm."""
    truths = [make_truth([RIGHT, LEFT], ignored=[True, False])]
    inside, mostly_outside = [100, 0, 120, 20], [130, 0, 170, 40]
    assert _ap50(truths, [make_detections([inside, LEFT], [0.9, 0.5])]) == pytest.approx(100.0)
    assert _ap50(truths, [make_detections([mostly_outside, LEFT], [0.9, 0.5])]) == pytest.approx(50.0)


def test_a_counted_label_wins_over_a_region_that_overlaps_more(make_truth, make_detections):
    counted, region = [0, 0, 40, 30], [0, 0, 40, 40]
    truths = [make_truth([region, counted], ignored=[True, False])]
    assert _ap50(truths, [make_detections([region], [0.9])]) == pytest.approx(100.0)


def test_classes_that_a_frame_does_not_judge_are_left_out_there(make_truth, make_detections):
    """In the second frame class 0 is not judged: neither its missed label nor the false alarm counts."""
    truths = [make_truth([LEFT], name="v/0", judged=[0, 1]), make_truth([LEFT], name="v/1", judged=[1])]
    detections = [make_detections([LEFT], [0.5]), make_detections([FAR], [0.9])]
    assert _ap50(truths, detections) == pytest.approx(100.0)
    judged_everywhere = [truths[0], make_truth([LEFT], name="v/1")]
    assert _ap50(judged_everywhere, detections) == pytest.approx(100 * 0.5 * 51 / 101)


def test_a_judged_class_without_labels_counts_false_alarms(make_truth, make_detections):
    truths = [make_truth([LEFT], name="v/0", judged=[0]), make_truth([], name="v/1", judged=[0])]
    detections = [make_detections([LEFT], [0.5]), make_detections([FAR], [0.9])]
    assert _ap50(truths, detections) == pytest.approx(50.0)


def test_a_subset_is_scored_as_if_the_other_frames_were_not_there(random_frames):
    truths, detections = random_frames(7)
    selected = np.array([index % 3 == 1 for index in range(len(truths))])
    part = match_frames(truths, detections).subset(selected)
    alone = match_frames(truths[1::3], detections[1::3])
    np.testing.assert_array_equal(score_table(part).points, score_table(alone).points)
    assert (part.frame_ids, part.videos, part.groups) == (alone.frame_ids, alone.videos, alone.groups)


@pytest.mark.parametrize(
    ("boxes", "classes", "scores", "message"),
    [
        ([LEFT], [2], [0.5], r"v/0: a detection has class 2; there are 2 class names"),
        ([LEFT], [-1], [0.5], r"v/0: a detection has class -1"),
        ([LEFT], [0], [float("nan")], r"v/0: a detection has a score or box that is not a finite number"),
        ([[0, 0, float("inf"), 9]], [0], [0.5], r"v/0: a detection has a score or box that is not"),
    ],
    ids=["class too large", "class negative", "score NaN", "box infinite"],
)
def test_bad_detections_are_refused_by_name(make_truth, make_detections, boxes, classes, scores, message):
    with pytest.raises(DataError, match=message):
        match_frames(
            [make_truth([], name="v/0")], [make_detections(boxes, scores, classes)], class_names=("a", "b")
        )


def test_bad_frames_are_refused_by_name(make_truth, make_detections):
    nothing = make_detections([], [])
    with pytest.raises(DataError, match="1 frames with labels but 2 with detections"):
        match_frames([make_truth([])], [nothing, nothing])
    with pytest.raises(DataError, match="v/0 occurs twice"):
        match_frames([make_truth([], name="v/0")] * 2, [nothing, nothing])
    with pytest.raises(DataError, match=r"v/0: a label has class 9"):
        match_frames([make_truth([LEFT], [9], name="v/0")], [nothing])
    with pytest.raises(DataError, match=r"v/0: the label \[0.0, nan, 1.0, 1.0\] is not a box"):
        make_truth([LEFT, [0, float("nan"), 1, 1]], name="v/0")
    with pytest.raises(DataError, match=r"is not a box"):
        make_truth([[10, 0, 5, 5]])
    with pytest.raises(
        DataError, match=r"as many boxes and flags as classes: boxes \(1, 4\), classes \(2,\)"
    ):
        make_truth([LEFT], [0, 1])
    with pytest.raises(UsageError, match="'perhaps'; choose one of ignore, truth, auto"):
        match_frames([make_truth([])], [nothing], teacher_labels="perhaps")


def _street_truths(label_file):
    """The label file as the evaluation sees it, read without the package's own reader."""
    truths = []
    for frame in json.loads(label_file.read_text())["frames"]:
        labels = frame["labels"] or []
        judged = frame["attributes"]["annotated_categories"].split(",")
        truths.append(
            FrameTruth(
                frame_id=f"{frame['videoName']}/{frame['name']}",
                video=frame["videoName"],
                boxes_xyxy=np.array(
                    [[label["box2d"][key] for key in ("x1", "y1", "x2", "y2")] for label in labels], float
                ).reshape(-1, 4),
                class_ids=np.array([SHIFT_CLASSES.index(label["category"]) for label in labels], np.int64),
                ignored=np.zeros(len(labels), bool),
                from_teacher=np.array(
                    [label["attributes"]["label_source"] == "teacher" for label in labels], bool
                ),
                judged_classes=frozenset(SHIFT_CLASSES.index(name) for name in judged),
                groups=frame["attributes"],
                width=frame["size"]["width"],
                height=frame["size"]["height"],
            )
        )
    return truths


def _detect_own_labels(truths):
    return [
        Detections(
            boxes_xyxy=truth.boxes_xyxy.astype(np.float32),
            scores=np.ones(len(truth.class_ids), np.float32),
            class_ids=truth.class_ids,
        )
        for truth in truths
    ]


def test_street_stills_have_the_number_of_boxes_that_their_description_says(street_folder):
    """data/README.md: 623 stills, 43 bicycles and 86 pedestrians to judge by."""
    truths = _street_truths(street_folder / "discrete/images/val/front/det_2d.json")
    table = match_frames(truths, _detect_own_labels(truths))
    scores = score_table(table)
    counts = dict(zip(SHIFT_CLASSES, scores.num_boxes.tolist(), strict=True))
    assert len(table) == 623
    assert (counts["bicycle"], counts["pedestrian"]) == (43, 86)
    # All labels as detections: teacher labels among them must not count as false alarms.
    np.testing.assert_allclose(scores.points[:, 0], 100.0)


def test_street_clips_are_judged_by_the_teacher_for_cars_and_pedestrians_only(street_folder):
    truths = _street_truths(street_folder / "discrete/videos/val/front/det_2d.json")
    found = _detect_own_labels(truths)
    judged = score_table(match_frames(truths, found, teacher_labels="auto"))
    assert set(np.flatnonzero(judged.num_boxes).tolist()) == {0, 1}
    assert judged.mAP50 == pytest.approx(100.0)
    assert np.isnan(score_table(match_frames(truths, found, teacher_labels="ignore")).mAP50)
