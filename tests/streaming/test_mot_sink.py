"""MOT Challenge text, parsed by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from pcmoe_det.streaming import OutputFile
from pcmoe_det.streaming.mot_sink import MotSink
from pcmoe_det.structures import Detections, FrameResult
from tests.streaming.stand_ins import CLASS_NAMES, detections, frame


def _sink(tmp_path: Path, **options) -> MotSink:
    return MotSink(OutputFile(tmp_path / "out.txt", overwrite=False), class_names=CLASS_NAMES, **options)


def test_lines_are_as_the_format_says(tmp_path: Path) -> None:
    sink = _sink(tmp_path)
    found = Detections(
        boxes_xyxy=np.array([[0, 0, 10, 20], [1.25, 2.5, 3.75, 10]], np.float32),
        scores=np.array([0.9, 0.25], np.float32),
        class_ids=np.array([1, 0]),
        track_ids=np.array([12, -1]),
    )
    sink.write(FrameResult(frame=frame(0), detections=found), None)
    sink.write(FrameResult(frame=frame(1), detections=detections()), None)
    sink.write(FrameResult(frame=frame(6), detections=detections((5, 6, 7, 8, 0.5, 0))), None)
    assert sink.close("complete") == [tmp_path / "out.txt"]
    # Worked out by hand: frames and pixels from 1, width and height as they are.
    assert (tmp_path / "out.txt").read_text() == (
        "1,12,1.00,1.00,10.00,20.00,0.9000,-1,-1,-1\n"
        "1,-1,2.25,3.50,2.50,7.50,0.2500,-1,-1,-1\n"
        "7,-1,6.00,7.00,2.00,2.00,0.5000,-1,-1,-1\n"
    )


def test_a_stream_without_detections_gives_an_empty_file(tmp_path: Path) -> None:
    sink = _sink(tmp_path)
    sink.write(FrameResult(frame=frame(0), detections=detections()), None)
    assert sink.close("interrupted") == [tmp_path / "out.txt"]
    assert (tmp_path / "out.txt").read_text() == ""
