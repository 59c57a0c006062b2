"""COCO results, judged by pycocotools."""

from __future__ import annotations

import contextlib
import io
import json
from pathlib import Path

import numpy as np
import pytest
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming import OutputFile
from pcmoe_det.streaming.coco_sink import CocoSink, categories_target
from pcmoe_det.structures import Detections, FrameResult
from tests.streaming.stand_ins import CLASS_NAMES, detections, frame


def _sink(path: Path, *, overwrite: bool = False) -> CocoSink:
    return CocoSink(OutputFile(path, overwrite=overwrite), class_names=CLASS_NAMES)


def _result(index: int, *rows) -> FrameResult:
    return FrameResult(frame=frame(index), detections=detections(*rows))


def test_the_files_hold_what_is_documented(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    sink = _sink(path)
    sink.write(_result(0), None)
    sink.write(_result(4, (1.005, 2.5, 30.129, 40, 0.98768, 1), (0, 0, 5, 5, 0.5, 5)), None)
    sink.write(_result(7, (0, 0, 8, 6, 0.25, 0)), None)
    assert sink.close("complete") == [path, tmp_path / "out.categories.json"]
    assert json.loads(path.read_text()) == [
        {"image_id": 4, "category_id": 2, "bbox": [1.0, 2.5, 29.13, 37.5], "score": 0.9877},
        {"image_id": 4, "category_id": 6, "bbox": [0.0, 0.0, 5.0, 5.0], "score": 0.5},
        {"image_id": 7, "category_id": 1, "bbox": [0.0, 0.0, 8.0, 6.0], "score": 0.25},
    ]
    categories = json.loads((tmp_path / "out.categories.json").read_text())["categories"]
    assert categories[0] == {"id": 1, "name": "pedestrian"}
    assert [category["id"] for category in categories] == [1, 2, 3, 4, 5, 6]
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["out.categories.json", "out.json"]


def test_pycocotools_evaluates_it(tmp_path: Path) -> None:
    """Ground truth equal to the detections gives a mean average precision of 1."""
    path = tmp_path / "out.json"
    sink = _sink(path)
    rows = {index: [(10 * k, 5, 10 * k + 9, 30 + index, 0.9, k) for k in range(3)] for index in range(4)}
    for index, found in rows.items():
        sink.write(_result(index, *found), None)
    sink.close("complete")
    truth = {
        "images": [{"id": index, "width": 64, "height": 48} for index in rows],
        "annotations": [
            {
                "id": 1 + 3 * index + k,
                "image_id": index,
                "category_id": k + 1,
                "bbox": [x1, y1, x2 - x1, y2 - y1],
                "area": (x2 - x1) * (y2 - y1),
                "iscrowd": 0,
            }
            for index, found in rows.items()
            for k, (x1, y1, x2, y2, *_) in enumerate(found)
        ],
        **json.loads((tmp_path / "out.categories.json").read_text()),
    }
    (tmp_path / "truth.json").write_text(json.dumps(truth))
    with contextlib.redirect_stdout(io.StringIO()):
        coco = COCO(str(tmp_path / "truth.json"))
        evaluation = COCOeval(coco, coco.loadRes(str(path)), "bbox")
        evaluation.evaluate()
        evaluation.accumulate()
        evaluation.summarize()
    assert evaluation.stats[0] == pytest.approx(1.0)


def test_the_part_of_a_killed_run_is_json_at_every_moment(tmp_path: Path) -> None:
    sink = _sink(tmp_path / "out.json")
    part = tmp_path / "out.part.json"
    assert not part.exists()
    for index in range(5):
        sink.write(_result(index, (0, 0, 5, 5, 0.5, 0), (1, 1, 5, 5, 0.4, 0)), None)
        assert [row["image_id"] for row in json.loads(part.read_text())] == sorted(2 * list(range(index + 1)))


def test_tracks_are_kept(tmp_path: Path) -> None:
    path = tmp_path / "out.json"
    sink = _sink(path)
    found = Detections(
        boxes_xyxy=np.array([[0, 0, 5, 5], [1, 1, 6, 6]], np.float32),
        scores=np.array([0.9, 0.8], np.float32),
        class_ids=np.array([0, 0]),
        track_ids=np.array([12, -1]),
    )
    sink.write(FrameResult(frame=frame(0), detections=found), None)
    sink.close("complete")
    assert [row.get("track_id") for row in json.loads(path.read_text())] == [12, None]


@pytest.mark.parametrize(
    ("outcome", "left"),
    [
        ("interrupted", ["out.json", "out.categories.json"]),
        ("failed", ["out.part.json", "out.categories.part.json"]),
    ],
)
def test_an_early_end(tmp_path: Path, outcome, left: list[str]) -> None:
    sink = _sink(tmp_path / "out.json")
    sink.write(_result(0, (0, 0, 5, 5, 0.5, 0)), None)
    assert sink.close(outcome) == [tmp_path / name for name in left]
    assert len(json.loads((tmp_path / left[0]).read_text())) == 1


@pytest.mark.parametrize("outcome", ["interrupted", "failed"])
def test_an_end_before_the_first_frame_leaves_nothing(tmp_path: Path, outcome) -> None:
    assert _sink(tmp_path / "out.json").close(outcome) == []
    assert list(tmp_path.iterdir()) == []


def test_existing_categories_are_found_early(tmp_path: Path) -> None:
    categories = tmp_path / "out.categories.json"
    categories.write_text("mine")
    target = OutputFile(tmp_path / "out.json", overwrite=False)
    with pytest.raises(OutputError, match=r"out\.categories\.json already exists; use --overwrite"):
        categories_target(target)
    with pytest.raises(OutputError, match=r"out\.categories\.json already exists"):
        CocoSink(target, class_names=CLASS_NAMES)
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.categories.json"]
    sink = _sink(tmp_path / "out.json", overwrite=True)
    sink.write(_result(0), None)
    sink.close("complete")
    assert json.loads(categories.read_text())["categories"]
