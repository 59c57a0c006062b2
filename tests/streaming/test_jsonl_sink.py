"""JSON Lines: the schema, numbers, what a failure leaves."""

from __future__ import annotations

import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import jsonschema
import numpy as np
import pytest

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming import JsonLinesSink, OutputFile, result_record
from pcmoe_det.streaming.record_schema import RECORD_SCHEMA
from pcmoe_det.structures import Detections, FrameResult, Gap
from tests.streaming.stand_ins import CLASS_NAMES, detections, frame


def _result(index: int = 0, found: Detections | None = None, pts_seconds: float | None = 0.04) -> FrameResult:
    return FrameResult(
        frame=frame(index, pts_seconds=pts_seconds),
        detections=detections() if found is None else found,
        latency_ms={"read": 1.23456, "wait": 0.0, "detect": 20.5, "total": 21.7},
    )


def test_a_record_has_exactly_the_documented_fields() -> None:
    found = detections((1.005, 2.5, 30.129, 40, 0.98768, 1), (0, 0, 5, 5, 0.5, 5))
    record = result_record(_result(7, found, pts_seconds=1 / 3), class_names=CLASS_NAMES)
    assert record == {
        "schema_version": 1,
        "source": "made",
        "frame_index": 7,
        "pts_seconds": 0.333333,
        "captured_at_seconds": 7.0,
        "latency_ms": {"read": 1.235, "wait": 0.0, "detect": 20.5, "total": 21.7},
        "detections": [
            {"bbox_xyxy": [1.0, 2.5, 30.13, 40.0], "category": "car", "score": 0.9877},
            {"bbox_xyxy": [0.0, 0.0, 5.0, 5.0], "category": "bicycle", "score": 0.5},
        ],
    }
    assert type(record["frame_index"]) is int


def test_no_time_is_null_and_no_detection_an_empty_list() -> None:
    record = json.loads(json.dumps(result_record(_result(pts_seconds=None), class_names=CLASS_NAMES)))
    assert record["pts_seconds"] is None
    assert record["detections"] == []


def test_minus_zero_is_zero() -> None:
    found = detections((-0.001, -0.0, 5, 5, 0.5, 0))
    box = result_record(_result(found=found), class_names=CLASS_NAMES)["detections"][0]["bbox_xyxy"]
    assert [math.copysign(1, value) for value in box] == [1, 1, 1, 1]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_numbers_must_be_finite(bad: float) -> None:
    with pytest.raises(ValueError, match="finite"):
        result_record(_result(found=detections((bad, 0, 1, 1, 0.5, 0))), class_names=CLASS_NAMES)


def test_lines_are_whole_and_in_order_at_any_moment(tmp_path: Path) -> None:
    sink = JsonLinesSink(OutputFile(tmp_path / "out.jsonl", overwrite=False), class_names=CLASS_NAMES)
    for index in range(3):
        sink.write(_result(index), None)
        lines = (tmp_path / "out.part.jsonl").read_text().splitlines()
        assert [json.loads(line)["frame_index"] for line in lines] == list(range(index + 1))
    assert sink.close("complete") == [tmp_path / "out.jsonl"]
    assert [entry.name for entry in tmp_path.iterdir()] == ["out.jsonl"]


def test_a_run_without_frames_leaves_an_empty_file_only_when_complete(tmp_path: Path) -> None:
    for outcome, expected in (("failed", []), ("interrupted", []), ("complete", [tmp_path / "out.jsonl"])):
        sink = JsonLinesSink(OutputFile(tmp_path / "out.jsonl", overwrite=False), class_names=CLASS_NAMES)
        assert sink.close(outcome) == expected
        assert sorted(tmp_path.iterdir()) == expected


def test_a_full_disk_keeps_whole_lines_under_the_partial_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sink = JsonLinesSink(OutputFile(tmp_path / "out.jsonl", overwrite=False), class_names=CLASS_NAMES)
    sink.write(_result(0), None)
    sink.write(_result(1), None)
    real_write, free_bytes = os.pwrite, [40]

    def write_what_fits(descriptor: int, data: bytes, offset: int) -> int:
        if free_bytes[0] == 0:
            raise OSError(28, "No space left on device")
        written = real_write(descriptor, data[: free_bytes[0]], offset)
        free_bytes[0] -= written
        return written

    monkeypatch.setattr(os, "pwrite", write_what_fits)
    with pytest.raises(OutputError, match=r"No space left on device; the 2 lines"):
        sink.write(_result(2), None)
    monkeypatch.undo()
    assert sink.close("failed") == [tmp_path / "out.part.jsonl"]
    lines = (tmp_path / "out.part.jsonl").read_text().splitlines()
    assert [json.loads(line)["frame_index"] for line in lines] == [0, 1]
    assert not (tmp_path / "out.jsonl").exists()


def test_records_do_not_depend_on_numpy_types(tmp_path: Path) -> None:
    sink = JsonLinesSink(OutputFile(tmp_path / "out.jsonl", overwrite=False), class_names=CLASS_NAMES)
    found = Detections(np.ones((1, 4), np.float32), np.ones(1, np.float32), np.ones(1, np.int64))
    sink.write(_result(found=found), None)
    sink.close("complete")
    assert json.loads((tmp_path / "out.jsonl").read_text())["detections"][0]["category"] == "car"


def test_gaps_and_track_ids_are_there_only_where_there_is_one() -> None:
    found = detections((0, 0, 5, 5, 0.9, 0), (1, 1, 5, 5, 0.8, 1))
    found = replace(found, track_ids=np.array([-1, 12]))
    gap = Gap("reconnected", 3.14159)
    result = FrameResult(frame=frame(3, gap=gap), detections=found, latency_ms={})
    record = result_record(result, class_names=CLASS_NAMES)
    assert record["gap"] == {"cause": "reconnected", "seconds": 3.142}
    assert [detection.get("track_id") for detection in record["detections"]] == [None, 12]
    assert type(record["detections"][1]["track_id"]) is int
    plain = result_record(_result(), class_names=CLASS_NAMES)
    assert "gap" not in plain


def _problems(record: object) -> list[str]:
    validator = jsonschema.Draft202012Validator(RECORD_SCHEMA)
    return [f"{error.json_path}: {error.message}" for error in validator.iter_errors(record)]


def test_the_schema_is_one() -> None:
    jsonschema.Draft202012Validator.check_schema(RECORD_SCHEMA)


def test_records_match_the_schema() -> None:
    found = replace(
        detections((0, 0, 5, 5, 0.9, 0)), track_ids=np.array([4]), accounting={"hit_tokens": 5, "share": 0.5}
    )
    timed = {"read": 1.0, "wait": 0.0, "detect": 2.0, "track": 0.1, "render": 1.0, "total": 9.0}
    for result in (
        _result(),
        _result(pts_seconds=None),
        FrameResult(frame=frame(3, gap=Gap("size_changed", 0.0)), detections=found, latency_ms=timed),
    ):
        record = json.loads(json.dumps(result_record(result, class_names=CLASS_NAMES)))
        assert _problems(record) == []


@pytest.mark.parametrize(
    ("change", "where"),
    [
        ({"schema_version": 2}, "$.schema_version"),
        ({"frame_index": -1}, "$.frame_index"),
        ({"frame_index": 1.5}, "$.frame_index"),
        ({"pts_seconds": "0"}, "$.pts_seconds"),
        ({"other": 1}, "$: Additional properties"),
        ({"gap": {"cause": "sleep", "seconds": 1}}, "$.gap.cause"),
        ({"latency_ms": {"read": 1, "wait": 1, "detect": 1}}, "$.latency_ms: 'total'"),
        (
            {"detections": [{"bbox_xyxy": [1, 2, 3], "category": "car", "score": 0.5}]},
            "$.detections[0].bbox_xyxy",
        ),
    ],
)
def test_the_schema_refuses_what_is_wrong(change: dict[str, Any], where: str) -> None:
    record = {**result_record(_result(), class_names=CLASS_NAMES), **change}
    (problem,) = _problems(record)
    assert problem.startswith(where)
