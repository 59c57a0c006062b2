"""Reading JSON Lines back: what is accepted, and what is said about damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcmoe_det.errors import DataError
from pcmoe_det.streaming import JsonLinesSink, OutputFile
from pcmoe_det.streaming.record_files import DetectionRecord, FrameRecord, RecordReader
from pcmoe_det.structures import Detections, FrameResult
from tests.streaming.stand_ins import CLASS_NAMES, detections, frame


def _line(**changes: object) -> str:
    record = {
        "schema_version": 1,
        "source": "made",
        "frame_index": 0,
        "pts_seconds": None,
        "captured_at_seconds": 1.5,
        "latency_ms": {"detect": 2.5},
        "detections": [{"bbox_xyxy": [1.5, 2, 3, 4.25], "category": "car", "score": 0.5}],
        "a field of a later release": True,
    }
    return json.dumps({key: value for key, value in {**record, **changes}.items() if value != "(left out)"})


def _found(**changes: object) -> str:
    found = {"bbox_xyxy": [1, 2, 3, 4], "category": "car", "score": 0.5, **changes}
    return _line(detections=[{key: value for key, value in found.items() if value != "(left out)"}])


def _file(tmp_path: Path, content: str | bytes) -> Path:
    path = tmp_path / "in.jsonl"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def _read(tmp_path: Path, content: str | bytes, **options) -> list[FrameRecord]:
    return list(RecordReader(_file(tmp_path, content), **options))


def test_what_the_sink_writes_is_read(tmp_path: Path) -> None:
    sink = JsonLinesSink(OutputFile(tmp_path / "out.jsonl", overwrite=False), class_names=CLASS_NAMES)
    found = Detections(
        boxes_xyxy=np.array([[1.005, 2.5, 30.129, 40], [0, 0, 5, 5]], np.float32),
        scores=np.array([0.98768, 0.5], np.float32),
        class_ids=np.array([1, 5]),
        track_ids=np.array([7, -1]),
    )
    results = [FrameResult(frame=frame(3), detections=found), FrameResult(frame(9), detections())]
    for result in results:
        sink.write(result, None)
    sink.close("complete")
    expected = [
        FrameRecord(
            "made",
            3,
            (
                DetectionRecord((1.0, 2.5, 30.13, 40.0), "car", 0.9877, 7),
                DetectionRecord((0.0, 0.0, 5.0, 5.0), "bicycle", 0.5, -1),
            ),
        ),
        FrameRecord("made", 9, ()),
    ]
    assert list(RecordReader(tmp_path / "out.jsonl")) == expected
    assert [FrameRecord.from_result(result, class_names=CLASS_NAMES) for result in results] == expected


def test_unknown_fields_are_ignored(tmp_path: Path) -> None:
    (record,) = _read(tmp_path, _line() + "\n")
    assert record == FrameRecord("made", 0, (DetectionRecord((1.5, 2.0, 3.0, 4.25), "car", 0.5),))


@pytest.mark.parametrize("cut", [1, 10, 60, 150])
def test_an_unfinished_last_line_is_counted_and_left_out(tmp_path: Path, cut: int) -> None:
    whole = _line() + "\n" + _line(frame_index=1) + "\n"
    reader = RecordReader(_file(tmp_path, whole + _line(frame_index=2)[:cut]))
    assert [record.frame_index for record in reader] == [0, 1]
    assert reader.unfinished_lines == 1


def test_zeros_that_a_power_cut_leaves_are_an_unfinished_line(tmp_path: Path) -> None:
    reader = RecordReader(_file(tmp_path, (_line() + "\n").encode() + bytes(4096)))
    assert len(list(reader)) == 1
    assert reader.unfinished_lines == 1


def test_a_last_line_without_its_line_break_is_read(tmp_path: Path) -> None:
    reader = RecordReader(_file(tmp_path, _line() + "\n" + _line(frame_index=1)))
    assert [record.frame_index for record in reader] == [0, 1]
    assert reader.unfinished_lines == 0


def test_an_empty_file_has_no_records(tmp_path: Path) -> None:
    assert _read(tmp_path, "") == []


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("", "is empty"),
        ("{", "is damaged"),
        ("[1]", "a record is a JSON object"),
        ("\xff\xfe", "is damaged"),
        (_line()[:-1], "is damaged"),
        (_line() + _line(), "Extra data"),
        ("[" * 100_000, "is damaged"),
        (_line(schema_version=2), "schema_version is 2; this release reads 1 to 1"),
        (_line(schema_version="(left out)"), "no schema_version"),
        (_line(schema_version=True), "schema_version is a whole number, not True"),
        (_line(source=7), "source is a text, not 7"),
        (_line(frame_index=-1), "frame_index is -1"),
        (_line(frame_index=1.5), "frame_index is a whole number, not 1.5"),
        (_line(detections={}), "detections is a list"),
        (_line(detections=[7]), "detection 0 is an object, not 7"),
        (_found(bbox_xyxy=[1, 2, 3]), "detection 0: bbox_xyxy has 4 numbers"),
        (_found(bbox_xyxy=[3, 2, 1, 4]), "left, top, right, bottom"),
        (_found(bbox_xyxy=[1, 2, 3, None]), "numbers, not None"),
        (_found(bbox_xyxy=[1, 2, 3, 10**400]), "finite numbers"),
        (_found(score=1.01), "score is from 0 to 1"),
        (_found(score=True), "score is made of numbers"),
        (_found(score="(left out)"), "score is made of numbers, not None"),
        (_found(category=1), "category is a text"),
        (_found(track_id="7"), "track_id is a whole number"),
        (_found(score=float("nan")), "NaN is no number of JSON"),
    ],
)
def test_damage_is_told_with_its_line(tmp_path: Path, line: str, message: str) -> None:
    content = f"{_line()}\n{line}\n{_line(frame_index=5)}\n".encode("latin-1")
    with pytest.raises(DataError, match=message) as caught:
        _read(tmp_path, content)
    assert str(caught.value).startswith(f"{tmp_path / 'in.jsonl'}, line 2 ")
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("second", [3, 2])
def test_frames_must_ascend(tmp_path: Path, second: int) -> None:
    with pytest.raises(DataError, match=f"line 2 has frame_index {second} after 3"):
        _read(tmp_path, _line(frame_index=3) + "\n" + _line(frame_index=second) + "\n")


def test_several_sources_must_be_chosen_from(tmp_path: Path) -> None:
    lines = [_line(source=name, frame_index=index) for index in (0, 1) for name in ("a", "b")]
    content = "\n".join(lines) + "\n"
    with pytest.raises(DataError, match=r"line 2 is of the source 'b', .* of 'a'; choose one with --source"):
        _read(tmp_path, content)
    assert [record.source for record in _read(tmp_path, content, source="b")] == ["b", "b"]


@pytest.mark.parametrize(
    ("name", "message"), [("missing", "No such file"), ("", "directory"), ("a\0b", "null")]
)
def test_files_that_cannot_be_read(tmp_path: Path, name: str, message: str) -> None:
    with pytest.raises(DataError, match=f"cannot be read: .*{message}"):
        RecordReader(tmp_path / name)
