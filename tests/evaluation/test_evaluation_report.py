from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from pcmoe_det.evaluation import bootstrap_interval, build_report, format_table, match_frames

CAR, ELSEWHERE = [0, 0, 40, 40], [300, 200, 340, 240]


@pytest.fixture
def table(make_truth, make_detections):
    """A car found by day, one missed by night, a truck found in a frame without attributes."""
    truths = [
        make_truth([CAR], [1], name="a/0", groups={"timeofday_coarse": "day", "town": "04"}),
        make_truth([CAR], [1], name="a/1", groups={"timeofday_coarse": "night"}),
        make_truth([CAR], [2], name="b/0"),
    ]
    detections = [
        make_detections([CAR], [0.9], [1]),
        make_detections([ELSEWHERE], [0.8], [1]),
        make_detections([CAR], [0.7], [2]),
    ]
    return match_frames(truths, detections)


def test_report_has_every_part(table):
    report = build_report(table, fps=12.5, settings={"config": "small.py"}, accounting={"hits": 3})
    half = 100 * 51 / 101
    assert report.mAP50 == pytest.approx((half + 100) / 2)
    assert report.frames == 3
    assert report.per_class["car"].mAP50 == pytest.approx(half)
    assert (report.per_class["car"].num_boxes, report.per_class["truck"].num_boxes) == (2, 1)
    assert report.per_class["truck"].mAP == pytest.approx(100.0)
    assert report.per_class["bus"].mAP50 is None
    times = report.groups["timeofday_coarse"]
    assert list(report.groups) == ["timeofday_coarse"], "no frame has a weather, town was not asked for"
    assert {name: (score.mAP50, score.frames) for name, score in times.items()} == {
        "day": (pytest.approx(100.0), 1),
        "night": (0.0, 1),
    }
    assert report.per_video["b"].mAP50 == pytest.approx(100.0)
    assert report.per_video["a"].frames == 2
    assert report.settings["teacher_labels"] == "auto"
    assert report.settings["config"] == "small.py"
    assert report.scalars() == {
        "mAP50": report.mAP50,
        "mAP": report.mAP,
        "mAP50/car": pytest.approx(half),
        "mAP/car": pytest.approx(half),
        "mAP50/truck": pytest.approx(100.0),
        "mAP/truck": pytest.approx(100.0),
    }


def test_json_has_the_keys_that_readers_rely_on_and_null_for_what_has_no_value(table):
    report = build_report(
        table,
        intervals={"mAP50": bootstrap_interval(table, resamples=20)},
        settings={"weight": float("nan"), "sizes": np.array([256, 416]), "seed": np.int64(3)},
        accounting={"layers": {1: (0.5, float("inf"))}},
    )
    written = json.loads(json.dumps(report.to_json_dict(), allow_nan=False))
    assert set(written) == {
        "mAP50",
        "mAP",
        "per_class",
        "groups",
        "per_video",
        "fps",
        "frames",
        "intervals",
        "settings",
        "accounting",
    }
    assert written["per_class"]["bus"] == {"mAP50": None, "mAP": None, "num_boxes": 0}
    assert written["groups"]["timeofday_coarse"]["day"] == {
        "mAP50": pytest.approx(100.0),
        "mAP": pytest.approx(100.0),
        "frames": 1,
    }
    assert written["fps"] is None
    assert (written["settings"]["weight"], written["settings"]["sizes"]) == (None, [256, 416])
    assert written["settings"]["seed"] == 3
    assert written["accounting"] == {"layers": {"1": [0.5, None]}}
    assert written["intervals"]["mAP50"]["unit"] == "frame"
    assert written["mAP50"] == pytest.approx(report.mAP50)


def test_without_any_label_there_is_no_mean(make_truth, make_detections):
    report = build_report(match_frames([make_truth([])], [make_detections([CAR], [0.5])]))
    assert (report.mAP50, report.mAP, report.scalars()) == (None, None, {})
    assert "all classes" in format_table(report)


def test_text_table(table):
    report = replace(
        build_report(table, fps=12.5), intervals={"mAP50": bootstrap_interval(table, resamples=20)}
    )
    lines = format_table(report).splitlines()
    assert lines[0].split() == ["mAP50", "mAP", "boxes"]
    by_name = {line.split()[0]: line.split()[1:] for line in lines}
    assert by_name["car"] == ["50.5", "50.5", "2"]
    assert by_name["bus"] == ["-", "-", "0"]
    assert by_name["day"] == ["100.0", "100.0", "1"]
    assert by_name["all"] == ["classes", "75.2", "75.2", "3"]
    assert lines[-2].startswith("mAP50: 75.2, 95 % interval ")
    assert lines[-1] == "3 frames, 12.5 frames per second"


def test_the_package_loads_neither_torch_nor_mmengine():
    program = (
        "import sys, pcmoe_det.evaluation; "
        "print([name for name in ('torch', 'mmengine', 'mmdet') if name in sys.modules])"
    )
    finished = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert finished.stdout.strip() == "[]"
