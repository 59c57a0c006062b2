"""The bootstrap against direct resampling, and its intervals against many made-up data sets."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from pcmoe_det.errors import DataError, UsageError
from pcmoe_det.evaluation import (
    bootstrap_difference,
    bootstrap_interval,
    match_frames,
    score_table,
)
from pcmoe_det.evaluation.mean_average_precision import average_precision

CLASS_NAMES = ("a", "b", "c")


def _repeated(truths, detections, weights):
    """Frames written out as often as they were drawn."""
    chosen = np.repeat(np.arange(len(truths)), weights)
    return (
        [replace(truths[index], frame_id=f"v/{copy:08d}") for copy, index in enumerate(chosen)],
        [detections[index] for index in chosen],
    )


@pytest.mark.parametrize("num_weightings", [3, 200], ids=["few weightings", "many weightings"])
def test_weights_equal_frames_written_out_as_often(random_frames, num_weightings):
    truths, detections = random_frames(1, ties=False)
    table = match_frames(truths, detections, class_names=CLASS_NAMES)
    generator = np.random.default_rng(5)
    weights = generator.multinomial(len(truths), [1 / len(truths)] * len(truths), size=num_weightings)
    points = np.stack([average_precision(m, weights, thresholds=range(10)) for m in table.classes], axis=1)
    for row in (0, 1, num_weightings - 1):
        written_out = match_frames(*_repeated(truths, detections, weights[row]), class_names=CLASS_NAMES)
        np.testing.assert_allclose(points[row], score_table(written_out).points, rtol=0, atol=1e-9)


@pytest.mark.parametrize("quantity", ["mAP50", "mAP"])
def test_interval_is_that_of_resampling_by_hand(random_frames, quantity):
    truths, detections = random_frames(2, ties=False)
    table = match_frames(truths, detections, class_names=CLASS_NAMES)
    interval = bootstrap_interval(table, quantity=quantity, resamples=300, seed=3)
    generator = np.random.default_rng(99)
    by_hand = []
    for _ in range(300):
        drawn = generator.integers(0, len(truths), len(truths))
        weights = np.bincount(drawn, minlength=len(truths))
        written_out = match_frames(*_repeated(truths, detections, weights), class_names=CLASS_NAMES)
        by_hand.append(getattr(score_table(written_out), quantity))
    assert interval.value == pytest.approx(getattr(score_table(table), quantity), abs=1e-9)
    low, high = np.quantile(by_hand, [0.025, 0.975])
    # Ends of two independent sets of 300 draws: they differ by a fraction of the interval's width.
    tolerance = 0.2 * (high - low)
    assert interval.low == pytest.approx(low, abs=tolerance)
    assert interval.high == pytest.approx(high, abs=tolerance)


def test_seed_decides_the_draws(random_frames):
    table = match_frames(*random_frames(3), class_names=CLASS_NAMES)
    first = bootstrap_interval(table, resamples=50, seed=1)
    assert bootstrap_interval(table, resamples=50, seed=1) == first
    assert bootstrap_interval(table, resamples=50, seed=2).low != first.low


def test_batches_do_not_change_the_result(random_frames, monkeypatch):
    table = match_frames(*random_frames(3), class_names=CLASS_NAMES)
    whole = bootstrap_interval(table, resamples=50, seed=1)
    monkeypatch.setattr("pcmoe_det.evaluation.bootstrap._BATCH_LABELS", 1)
    assert bootstrap_interval(table, resamples=50, seed=1) == whole


def test_a_result_does_not_differ_from_itself(random_frames):
    table = match_frames(*random_frames(4), class_names=CLASS_NAMES)
    difference = bootstrap_difference(table, table, resamples=50)
    assert (difference.value, difference.low, difference.high) == (0.0, 0.0, 0.0)


def test_pairing_makes_the_interval_of_a_difference_narrow(random_frames):
    """The second result lacks a few detections: each is uncertain, their difference much less so."""
    truths, detections = random_frames(5, frames=60, ties=False, protocol=False)
    fewer = list(detections)
    fewer[10] = replace(
        fewer[10],
        boxes_xyxy=fewer[10].boxes_xyxy[:0],
        scores=fewer[10].scores[:0],
        class_ids=fewer[10].class_ids[:0],
    )
    table = match_frames(truths, detections, class_names=CLASS_NAMES)
    baseline = match_frames(truths, fewer, class_names=CLASS_NAMES)
    alone = bootstrap_interval(table, resamples=300)
    difference = bootstrap_difference(table, baseline, resamples=300)
    assert difference.value == pytest.approx(score_table(table).mAP50 - score_table(baseline).mAP50, abs=1e-9)
    assert difference.high - difference.low < 0.5 * (alone.high - alone.low)
    turned = bootstrap_difference(baseline, table, resamples=300)
    assert (turned.value, turned.low, turned.high) == pytest.approx(
        (-difference.value, -difference.high, -difference.low), abs=1e-9
    )


def test_copies_within_a_video_add_nothing_to_what_is_known(random_frames):
    """Each frame ten times over as its own video: drawing videos gives the interval of the frames alone.

    Drawing the copies as if they were frames of their own gives a far too narrow one.
    """
    truths, detections = random_frames(6, ties=False)
    truths = [replace(truth, video=f"v{index:03d}") for index, truth in enumerate(truths)]
    copies = (
        [replace(truth, frame_id=f"{truth.video}/{copy}") for truth in truths for copy in range(10)],
        [found for found in detections for _ in range(10)],
    )
    table = match_frames(truths, detections, class_names=CLASS_NAMES)
    copied = match_frames(*copies, class_names=CLASS_NAMES)
    of_frames = bootstrap_interval(table, resamples=200, seed=8)
    of_videos = bootstrap_interval(copied, resamples=200, seed=8, unit="video")
    assert of_videos.units == len(truths)
    assert (of_videos.value, of_videos.low, of_videos.high) == pytest.approx(
        (of_frames.value, of_frames.low, of_frames.high), abs=1e-9
    )
    naive = bootstrap_interval(copied, resamples=200, seed=8, unit="frame")
    assert naive.high - naive.low < 0.5 * (of_frames.high - of_frames.low)


def _sample(make_truth, make_detections, generator, frames):
    """Frames of 1 to 4 objects, found with probability 0.7 by one detector and 0.6 by the other."""
    truths, better, worse = [], [], []
    for index in range(frames):
        count = int(generator.integers(1, 5))
        boxes = np.array([[60.0 * k, 0, 60.0 * k + 40, 40] for k in range(count)])
        alarm = [[300, 200, 340, 240]]
        truths.append(make_truth(boxes, name=f"v/{index}"))
        for results, rate in ((better, 0.7), (worse, 0.6)):
            hits = boxes[generator.random(count) < rate]
            scores = np.concatenate([generator.uniform(0.3, 1.0, len(hits)), generator.uniform(0.0, 0.9, 1)])
            results.append(make_detections(np.concatenate([hits, alarm]), scores))
    return match_frames(truths, better, class_names=("a",)), match_frames(truths, worse, class_names=("a",))


def test_nine_tenths_intervals_hold_the_truth_about_nine_times_in_ten(make_truth, make_detections):
    """Coverage over 80 made-up data sets of 60 frames; the truth comes from 8,000 frames.

    With coverage 0.9, fewer than 62 or all 80 of 80 are both less than one in a thousand.
    """
    generator = np.random.default_rng(11)
    population = _sample(make_truth, make_detections, generator, 8000)
    true_value = score_table(population[0]).mAP50
    true_difference = true_value - score_table(population[1]).mAP50
    assert 3.0 < true_difference < 15.0
    held_value = held_difference = 0
    for seed in range(80):
        better, worse = _sample(make_truth, make_detections, generator, 60)
        interval = bootstrap_interval(better, resamples=200, seed=seed, level=0.9)
        held_value += interval.low <= true_value <= interval.high
        interval = bootstrap_difference(better, worse, resamples=200, seed=seed, level=0.9)
        held_difference += interval.low <= true_difference <= interval.high
    assert 62 <= held_value < 80
    assert 62 <= held_difference < 80


def test_results_that_cannot_be_paired_are_refused(random_frames, make_truth, make_detections):
    truths, detections = random_frames(0, frames=4)
    table = match_frames(truths, detections, class_names=CLASS_NAMES)
    shorter = match_frames(truths[:3], detections[:3], class_names=CLASS_NAMES)
    turned = match_frames(truths[::-1], detections[::-1], class_names=CLASS_NAMES)
    others = match_frames(truths, detections, class_names=("x", "b", "c"))
    with pytest.raises(DataError, match="4 and 3 frames, first difference: one of them has more"):
        bootstrap_difference(table, shorter)
    with pytest.raises(DataError, match="first difference: video0/00000000 and video3/00000003"):
        bootstrap_difference(table, turned)
    with pytest.raises(DataError, match="different classes"):
        bootstrap_difference(table, others)
    nothing = make_detections([], [])
    one = match_frames([make_truth([[0, 0, 9, 9]]), make_truth([], name="v/1")], [nothing] * 2)
    none = match_frames([make_truth([]), make_truth([], name="v/1")], [nothing] * 2)
    with pytest.raises(DataError, match="video/00000000 has 1 and 0 counted labels of pedestrian"):
        bootstrap_difference(one, none)
    with pytest.raises(DataError, match="no class has a counted label"):
        bootstrap_interval(none)


def test_arguments_outside_their_choices_are_refused(random_frames):
    truths, detections = random_frames(0, frames=4, videos=1)
    table = match_frames(truths, detections, class_names=CLASS_NAMES)
    with pytest.raises(UsageError, match="quantity is 'AP'; choose one of mAP50, mAP"):
        bootstrap_interval(table, quantity="AP")
    with pytest.raises(UsageError, match="unit is 'day'; choose one of frame, video"):
        bootstrap_interval(table, unit="day")
    with pytest.raises(UsageError, match="resamples is 0"):
        bootstrap_interval(table, resamples=0)
    with pytest.raises(UsageError, match=r"level is 95"):
        bootstrap_interval(table, level=95)
    with pytest.raises(DataError, match="over videos needs at least two of them, not 1; draw frames instead"):
        bootstrap_interval(table, unit="video")
