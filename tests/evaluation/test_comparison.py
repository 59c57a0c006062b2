"""Detection files keep what evaluation needs, and runs are compared on the same frames only."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from pcmoe_det.cli import analyze
from pcmoe_det.errors import DataError, OutputError
from pcmoe_det.evaluation.bootstrap import bootstrap_difference
from pcmoe_det.evaluation.comparison import compare_runs, format_comparison
from pcmoe_det.evaluation.detection_files import DetectionFile, read_detections, write_detections
from pcmoe_det.evaluation.matching import match_frames
from pcmoe_det.evaluation.mean_average_precision import score_table
from pcmoe_det.evaluation.records import FrameTruth
from pcmoe_det.structures import SHIFT_CLASSES, Detections


def _run(*, seed: int, frames: int = 24, blur: float = 0.0) -> DetectionFile:
    """Random labels of one seed, found again with an error of ``blur`` pixels that another seed decides."""
    labels, noise = np.random.default_rng(0), np.random.default_rng(seed)
    truths, detections = [], []
    for index in range(frames):
        count = int(labels.integers(0, 4)) if index else 0
        corner = labels.uniform(0, 100, (count, 2))
        boxes = np.concatenate([corner, corner + labels.uniform(10, 30, (count, 2))], axis=1)
        classes = labels.integers(0, 6, count)
        truths.append(
            FrameTruth(
                frame_id=f"v{index // 8}/{index:08d}",
                video=f"v{index // 8}",
                boxes_xyxy=boxes,
                class_ids=classes,
                ignored=labels.random(count) < 0.1,
                from_teacher=labels.random(count) < 0.2,
                judged_classes=frozenset({0, 1, 2}) if index % 5 == 0 else None,
                groups={"timeofday_coarse": "night" if index % 2 else "daytime"},
                width=160,
                height=120,
            )
        )
        found = (boxes + noise.normal(0, blur, boxes.shape) if blur else boxes).astype(np.float32)
        found[:, 2:] = np.maximum(found[:, 2:], found[:, :2])
        detections.append(Detections(found, noise.random(count).astype(np.float32), classes))
    return DetectionFile(tuple(truths), tuple(detections), SHIFT_CLASSES, {"policy": "all", "seed": seed})


def _write(path: Path, run: DetectionFile) -> Path:
    write_detections(path, run.truths, run.detections, class_names=run.class_names, settings=run.settings)
    return path


def test_a_file_scores_as_what_was_written(tmp_path: Path) -> None:
    run = _run(seed=1, blur=3.0)
    back = read_detections(_write(tmp_path / "run.npz", run))
    assert back.settings == run.settings
    assert [truth.groups for truth in back.truths] == [truth.groups for truth in run.truths]
    for teacher_labels in ("auto", "truth", "ignore"):
        before, after = (
            score_table(match_frames(each.truths, each.detections, teacher_labels=teacher_labels))
            for each in (run, back)
        )
        np.testing.assert_array_equal(before.points, after.points)
        np.testing.assert_array_equal(before.num_boxes, after.num_boxes)


def test_no_frame_has_anything(tmp_path: Path) -> None:
    empty = _run(seed=1, frames=1)
    assert len(read_detections(_write(tmp_path / "run.npz", empty)).detections[0]) == 0


def test_the_difference_is_that_of_the_bootstrap() -> None:
    base, worse = _run(seed=1), _run(seed=2, blur=4.0)
    (row,) = compare_runs({"worse": worse}, base, resamples=200)
    tables = [match_frames(run.truths, run.detections) for run in (worse, base)]
    assert row.map50 == score_table(tables[0]).mAP50
    assert row.difference == bootstrap_difference(*tables, resamples=200)
    assert row.difference.high < 0
    assert "worse" in format_comparison([row])


def test_agreement_takes_the_baseline_for_truth() -> None:
    base = _run(seed=1)
    same, worse = compare_runs(
        {"same": base, "worse": _run(seed=2, blur=4.0)}, base, reference=base, resamples=50
    )
    assert same.map50 == pytest.approx(100.0)
    assert same.difference.value == 0
    assert worse.map50 < 90
    (row,) = compare_runs({"base": base}, _run(seed=2, blur=4.0), reference=base, resamples=50)
    assert row.map50 == same.map50
    assert row.difference.value == pytest.approx(-worse.difference.value)


def test_runs_of_other_frames_are_refused() -> None:
    base = _run(seed=1)
    other = replace(base, truths=base.truths[:-1], detections=base.detections[:-1])
    with pytest.raises(DataError, match="short has 23 frames that are not the baseline's 24"):
        compare_runs({"short": other}, base)
    with pytest.raises(DataError, match="the run that is the truth has 23 frames"):
        compare_runs({"same": base}, base, reference=other)


def test_teacher_labels_count_as_in_the_runs() -> None:
    base, other = _run(seed=1), _run(seed=2, blur=4.0)
    for choice in ("truth", "ignore"):
        runs = [replace(run, settings={"teacher_labels": choice}) for run in (base, other)]
        (row,) = compare_runs({"other": runs[1]}, runs[0], resamples=10)
        table = match_frames(other.truths, other.detections, teacher_labels=choice)  # type: ignore[arg-type]
        assert row.map50 == score_table(table).mAP50
        with pytest.raises(DataError, match=f"as {choice}, the baseline as auto"):
            compare_runs({"other": runs[1]}, base)
        assert compare_runs({"other": runs[1]}, base, reference=base, resamples=10)


def test_runs_of_one_name_are_told_apart(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = [tmp_path / name for name in ("a/run.npz", "b/run.npz", "b/other.npz")]
    for seed, path in enumerate(paths):
        path.parent.mkdir(exist_ok=True)
        _write(path, _run(seed=seed, blur=2.0))
    options = ["compare", *map(str, paths), "--baseline", str(paths[0]), "--resamples", "5"]
    assert analyze.main(analyze._parser().parse_args(options)) == 0
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()[1:]]
    assert names == [str(paths[0]), str(paths[1]), "other"]
    options += ["--truth", str(paths[2])]
    assert analyze.main(analyze._parser().parse_args(options)) == 0
    assert capsys.readouterr().out.splitlines()[3].split()[:2] == ["other", "100.00"]


def test_a_damaged_byte_is_refused_or_harmless(tmp_path: Path) -> None:
    path = _write(tmp_path / "run.npz", _run(seed=1, frames=4))
    whole = path.read_bytes()
    refused = 0
    flags = [match.start() + 6 for match in re.finditer(rb"PK\x03\x04", whole)]
    flags += [match.start() + 8 for match in re.finditer(rb"PK\x01\x02", whole)]
    for position in (*range(0, len(whole), 7), *flags):  # a flag: the member is encrypted
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 0x55]) + whole[position + 1 :])
        try:
            read_detections(path)
        except DataError:
            refused += 1
    assert refused > 20


def test_damaged_and_foreign_files_are_refused(tmp_path: Path) -> None:
    whole = _write(tmp_path / "run.npz", _run(seed=1)).read_bytes()
    cut = tmp_path / "cut.npz"
    for content in (b"", b"text", whole[: len(whole) // 2]):
        cut.write_bytes(content)
        with pytest.raises(DataError, match=r"cut\.npz is not a file of detections"):
            read_detections(cut)
    np.savez(cut, other=np.zeros(3))
    with pytest.raises(DataError, match=r"is not a file of detections"):
        read_detections(cut)
    with pytest.raises(DataError, match="there is no file"):
        read_detections(tmp_path / "none.npz")


def test_a_folder_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(OutputError, match="cannot write"):
        _write(tmp_path / "none" / "run.npz", _run(seed=1))
