"""The metric in mmengine's evaluator, in one process and in two."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from mmengine.evaluator import Evaluator
from mmengine.structures import BaseDataElement, InstanceData

from pcmoe_det.errors import ConfigError, DataError
from pcmoe_det.evaluation import build_report, match_frames
from pcmoe_det.evaluation.metric import REQUIRED_META_KEYS, ShiftMetric
from pcmoe_det.structures import SHIFT_CLASSES

VIDEO_LENGTHS = {"a": 6, "b": 2, "c": 3}


def _data_samples() -> list[BaseDataElement]:
    """What a test loop hands on: labels in original pixels as metainfo, detections, resized labels too."""
    generator = np.random.default_rng(4)
    samples = []
    for video, length in VIDEO_LENGTHS.items():
        for index in range(length):
            count = int(generator.integers(0, 6))
            corner = generator.uniform(0, 500, (count, 2))
            boxes = np.concatenate([corner, corner + generator.uniform(20, 100, (count, 2))], axis=1)
            labels = generator.integers(0, 6, count)
            sample = BaseDataElement(
                metainfo={
                    "img_id": len(samples),
                    "ori_shape": (800, 1280),
                    "video_name": video,
                    "frame_index": 10 * index,
                    "attributes": {"timeofday_coarse": "day" if video == "a" else "night"},
                    "annotated_categories": ("car", "bus", "pedestrian", "tram") if video == "c" else None,
                    "instances": [
                        {
                            "bbox": box.tolist(),
                            "bbox_label": int(label),
                            "ignore_flag": int(number == 4),
                            "label_source": "teacher" if number == 3 else "annotated",
                        }
                        for number, (box, label) in enumerate(zip(boxes, labels, strict=True))
                    ],
                }
            )
            sample.gt_instances = InstanceData(
                bboxes=torch.from_numpy(boxes / 3), labels=torch.from_numpy(labels)
            )
            found = np.concatenate([boxes + generator.normal(0, 6, boxes.shape), boxes[:1] + 200])
            sample.pred_instances = InstanceData(
                bboxes=torch.from_numpy(found).float(),
                # Two scores only: most detections tie, so the order of frames decides.
                scores=torch.from_numpy(generator.choice([0.25, 0.5], len(found))).bfloat16(),
                labels=torch.from_numpy(np.concatenate([labels, labels[:1]])),
            )
            samples.append(sample)
    return samples


def _evaluate(samples: list[BaseDataElement], size: int, **options: object) -> tuple[dict, ShiftMetric]:
    evaluator = Evaluator(dict(type="ShiftMetric", **options))
    evaluator.dataset_meta = {"classes": SHIFT_CLASSES}
    for start in range(0, len(samples), 2):
        evaluator.process(samples[start : start + 2])
    return evaluator.evaluate(size), evaluator.metrics[0]


def test_metric_counts_the_labels_of_the_metainfo_by_the_protocol():
    samples = _data_samples()
    scalars, metric = _evaluate(samples, len(samples))
    expected = dict.fromkeys(SHIFT_CLASSES, 0)
    for sample in samples:
        for instance in sample.instances:
            name = SHIFT_CLASSES[instance["bbox_label"]]
            judged = sample.annotated_categories is None or name in sample.annotated_categories
            counted = not instance["ignore_flag"] and instance["label_source"] == "annotated"
            expected[name] += judged and counted
    report = metric.report
    assert {name: score.num_boxes for name, score in report.per_class.items()} == expected
    assert report.frames == sum(VIDEO_LENGTHS.values())
    assert {name: score.frames for name, score in report.groups["timeofday_coarse"].items()} == {
        "day": 6,
        "night": 5,
    }
    assert scalars == report.scalars()
    assert 10.0 < scalars["mAP50"] < 95.0
    assert set(scalars) >= {"mAP50", "mAP", "mAP50/car", "mAP/car"}
    assert metric.table.frame_ids[1] == "a/00000010"


def test_detections_in_original_pixels_of_every_label_score_full():
    samples = _data_samples()
    for sample in samples:
        sample.pred_instances = InstanceData(
            bboxes=np.array([instance["bbox"] for instance in sample.instances]).reshape(-1, 4),
            scores=np.ones(len(sample.instances)),
            labels=np.array([instance["bbox_label"] for instance in sample.instances], int),
        )
    scalars, _ = _evaluate(samples, len(samples))
    assert scalars["mAP50"] == pytest.approx(100.0)
    assert scalars["mAP"] == pytest.approx(100.0)


def test_teacher_labels_prefix_and_settings_are_the_callers():
    samples = _data_samples()
    as_truth, metric = _evaluate(
        samples, len(samples), teacher_labels="truth", prefix="val", settings={"split": "val"}
    )
    ignored, _ = _evaluate(samples, len(samples), teacher_labels="ignore")
    assert as_truth["val/mAP50"] != ignored["mAP50"]
    assert metric.report.settings["teacher_labels"] == "truth"
    assert metric.report.settings["split"] == "val"
    with pytest.raises(ConfigError, match="teacher_labels is 'no'; choose one of ignore, truth, auto"):
        ShiftMetric(teacher_labels="no")


def test_the_order_and_the_repetition_of_frames_do_not_matter():
    samples = _data_samples()
    expected, _ = _evaluate(samples, len(samples))
    turned, metric = _evaluate([*samples[::-1], samples[0], samples[5]], len(samples))
    assert turned == expected
    assert metric.report.frames == len(samples)
    assert metric.results == []


def test_frames_that_were_never_evaluated_are_an_error():
    samples = _data_samples()
    with pytest.raises(DataError, match="10 frames were evaluated but the data set has 11"):
        _evaluate(samples[1:], len(samples))


@pytest.mark.parametrize("key", REQUIRED_META_KEYS)
def test_a_pipeline_that_does_not_hand_on_what_is_needed_is_told_so(key):
    sample = _data_samples()[0].to_dict()
    del sample[key]
    with pytest.raises(DataError, match=rf"comes without {key}; PackDetInputs\(meta_keys=...\) must list"):
        ShiftMetric().process(None, [sample])


def test_compute_metrics_scores_what_process_kept():
    samples = _data_samples()
    metric = ShiftMetric()
    metric.process(None, [sample.to_dict() for sample in samples])
    scalars = metric.compute_metrics(metric.results)
    assert scalars == _evaluate(samples, len(samples))[0]
    table = match_frames(
        [frame.truth for frame in metric.results], [frame.detections for frame in metric.results]
    )
    assert build_report(table).to_json_dict() == metric.report.to_json_dict()


def _evaluate_shard(rank: int, folder: str) -> None:
    """Rank 0 has video b and a repeated frame, rank 1 videos a and c in another order: 3 and 9 frames."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2
    )
    samples = _data_samples()
    shard = [*samples[6:8], samples[0]] if rank == 0 else [*samples[8:], *samples[:6]]
    scalars, metric = _evaluate(shard, len(samples))
    try:
        _evaluate(shard, len(samples) + 1)
        failure = "none"
    except DataError as error:
        failure = str(error)
    written = {"scalars": scalars, "report": metric.report.to_json_dict(), "failure": failure}
    (Path(folder) / f"{rank}.json").write_text(json.dumps(written))
    torch.distributed.destroy_process_group()


@pytest.mark.timeout(120)
def test_two_processes_with_uneven_shards_give_the_result_of_one(tmp_path):
    samples = _data_samples()
    scalars, metric = _evaluate(samples, len(samples))
    torch.multiprocessing.spawn(_evaluate_shard, args=(str(tmp_path),), nprocs=2)
    written = [json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1)]
    for result in written:
        assert result["scalars"] == scalars
        assert result["report"] == json.loads(json.dumps(metric.report.to_json_dict()))
        assert "11 frames were evaluated but the data set has 12" in result["failure"]
    assert "failed in the main process" in written[1]["failure"]
