"""The evaluation loop: which frames, which clock, which mode."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from mmdet.structures import DetDataSample
from mmengine.structures import InstanceData
from torch import nn

from pcmoe_det.errors import DataError
from pcmoe_det.evaluation import loop
from pcmoe_det.evaluation.loop import run_evaluation
from pcmoe_det.evaluation.metric import ShiftMetric

BOX = [10.0, 10.0, 40.0, 30.0]


def make_batch(number: int, video: str) -> dict[str, Any]:
    sample = DetDataSample(
        metainfo={
            "img_id": number,
            "ori_shape": (60, 80),
            "video_name": video,
            "frame_index": number,
            "attributes": {},
            "annotated_categories": None,
            "instances": [{"bbox": BOX, "bbox_label": 1}],
        }
    )
    return {"inputs": [torch.zeros(3, 60, 80)], "data_samples": [sample]}


class Clock:
    """A clock that only moves when told."""

    def __init__(self) -> None:
        self.now = 100.0

    def perf_counter(self) -> float:
        return self.now


class Finder(nn.Module):
    """Finds every box in all frames but the first, and takes half a second for each."""

    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock = clock
        self.inference: list[bool] = []

    def test_step(self, batch: dict[str, Any]) -> list[DetDataSample]:
        self.clock.now += 0.5
        self.inference.append(torch.is_inference_mode_enabled())
        (sample,) = batch["data_samples"]
        found = 0 if sample.img_id == 0 else 1
        sample.pred_instances = InstanceData(
            bboxes=torch.tensor([BOX] * found).reshape(-1, 4),
            scores=torch.full((found,), 0.9),
            labels=torch.ones(found).long(),
        )
        return [sample]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr(loop, "time", fake)
    return fake


def slow_batches(clock: Clock, videos: str) -> Iterator[dict[str, Any]]:
    for number, video in enumerate(videos):
        clock.now += 20.0  # decoding is not the detector's time
        yield make_batch(number, video)


def test_speed_and_accuracy_of_what_was_run(clock: Clock) -> None:
    model, videos = Finder(clock), []
    report = run_evaluation(
        model, slow_batches(clock, "aabb"), ShiftMetric(), num_frames=4, on_frame=videos.append
    )
    assert report.frames == 4
    assert report.fps == pytest.approx(2.0)
    assert report.per_class["car"].num_boxes == 4
    # Three of four boxes, all of them right: recall 0.75 of the 101 points of COCO's curve.
    assert report.mAP50 == pytest.approx(100 * 76 / 101)
    assert videos == ["a", "a", "b", "b"]
    assert model.inference == [True] * 4


def test_an_incomplete_run_is_no_result(clock: Clock) -> None:
    with pytest.raises(DataError, match="3 frames were evaluated but the data set has 4"):
        run_evaluation(Finder(clock), slow_batches(clock, "aab"), ShiftMetric(), num_frames=4)


def test_a_second_run_starts_anew(clock: Clock) -> None:
    metric = ShiftMetric()
    first = run_evaluation(Finder(clock), slow_batches(clock, "ab"), metric, num_frames=2)
    again = run_evaluation(Finder(clock), slow_batches(clock, "ab"), metric, num_frames=2)
    assert again.frames == 2
    assert again == first


def test_settings_of_the_metric_are_in_the_report(clock: Clock) -> None:
    metric = ShiftMetric(settings={"checkpoint": "w"}, teacher_labels="truth")
    report = run_evaluation(Finder(clock), slow_batches(clock, "a"), metric, num_frames=1)
    assert report.settings["checkpoint"] == "w"
    assert report.settings["teacher_labels"] == "truth"
