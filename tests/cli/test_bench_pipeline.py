"""``pcmoe-bench pipeline``."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from pcmoe_det.cli import bench
from pcmoe_det.cli.bench_pipeline import StandInDetector
from pcmoe_det.errors import UsageError
from tests.streaming.stand_ins import make_clip

pytestmark = pytest.mark.timeout(60)


def _run(*options: object) -> int:
    return bench.main(bench._parser().parse_args([str(option) for option in options]))


def test_ratios_follow_from_the_rates_of_the_rounds(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, path = make_clip(tmp_path / "clip.mp4", ticks=range(12)), tmp_path / "r.json"
    assert _run("--json", path, "pipeline", clip, "--stand-in", 2, "--frames", 8, "--rounds", 3) == 0
    result = json.loads(path.read_text())
    assert json.loads(capsys.readouterr().out) == result
    alone, whole = result["detector_frames_per_second"], result["pipeline_frames_per_second"]
    assert (len(alone), len(whole), result["frames"], result["size"]) == (3, 3, 8, "48x64")
    assert result["pipeline / detector"] == pytest.approx(sorted(whole)[1] / sorted(alone)[1])
    # 2 ms of processor time a frame, and the pipeline's own on top.
    assert 2.0 <= result["detector_processor_ms_per_frame"] < result["pipeline_processor_ms_per_frame"]
    assert set(result["median_ms_by_stage"]) >= {"read", "detect", "render", "encode", "total"}


def test_the_stand_in_gives_boxes_inside_any_picture() -> None:
    for height, width in ((48, 64), (1080, 1920)):
        (found,) = StandInDetector(0.0).detect([np.zeros((height, width, 3), np.uint8)])
        boxes = found.boxes_xyxy
        assert (boxes[:, :2] >= 0).all()
        assert (boxes[:, 2:] <= (width, height)).all()
        assert (boxes[:, 2:] > boxes[:, :2]).all()


def test_contradictions_are_usage_errors(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="instead of a model"):
        _run("pipeline", tmp_path / "c.mp4", "--stand-in", 5, "--model", "m")
    with pytest.raises(UsageError, match="instead of a model"):
        _run("pipeline", tmp_path / "c.mp4", "--stand-in", 5, "--policy", "pcmoe")
    with pytest.raises(UsageError, match="--expert-budget needs --policy"):
        _run("pipeline", tmp_path / "c.mp4", "--stand-in", 5, "--expert-budget", 0.5)
    with pytest.raises(UsageError, match="--trace records one stream"):
        _run("pipeline", tmp_path / "c.mp4", "--policy", "pcmoe", "--trace", tmp_path / "c.mp4")
    with pytest.raises(UsageError, match="--rounds 0"):
        _run("pipeline", tmp_path / "c.mp4", "--stand-in", 5, "--rounds", 0)
