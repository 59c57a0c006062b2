"""The evaluation command: its JSON, its choices of frames and labels, two processes, errors."""

from __future__ import annotations

import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pcmoe_det.models.inference import load_detector
from pcmoe_det.structures import SHIFT_CLASSES
from tests.cli.commands import run_command, run_in_two_processes
from tests.cli.conftest import TinyRun
from tests.cli.tiny import read_json, write_split
from tests.datasets.shift_files import make_label

VIDEOS = {"c": 3, "d": 1, "e": 2}


@pytest.fixture(scope="module")
def found_street(tmp_path_factory: pytest.TempPathFactory, tiny_run: TinyRun) -> Path:
    """Frames whose labels are some of the tiny detector's own detections: its mAP is neither 0 nor 100."""
    root = tmp_path_factory.mktemp("found")
    images = write_split(root, "val", VIDEOS, seed=2)
    detector = load_detector(
        str(tiny_run.checkpoint), config=str(tiny_run.config), dtype="float32", score_threshold=0.0
    )
    generator = np.random.default_rng(0)
    labels = []
    for number, found in enumerate(detector.detect(images)):
        chosen = generator.permutation(len(found))[:6]
        labels.append(
            [
                make_label(
                    SHIFT_CLASSES[int(found.class_ids[index])],
                    [float(value) for value in found.boxes_xyxy[index]],
                    source="teacher" if number == 0 and rank < 3 else "annotated",
                    label_id=str(rank),
                )
                for rank, index in enumerate(chosen)
            ]
        )
    write_split(root, "val", VIDEOS, labels=labels, seed=2)
    return root


def evaluate(tiny_run: TinyRun, root: Path, output: Path, *options: object) -> dict[str, Any]:
    outcome = run_command(
        *("test", tiny_run.config, tiny_run.checkpoint, "--data-root", root, "--json", output),
        *("--dtype", "float32", "--workers", 0, *options),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.err == ""
    assert outcome.out.splitlines()[0].split() == ["mAP50", "mAP", "boxes"]
    assert all("INFO" not in line for line in outcome.out.splitlines())
    return read_json(output)


def test_the_result_file(tmp_path: Path, tiny_run: TinyRun, found_street: Path) -> None:
    result = evaluate(tiny_run, found_street, tmp_path / "r.json")
    assert 5 < result["mAP50"] < 95
    assert 0 < result["mAP"] <= result["mAP50"] + 1e-9  # both are means; equal ones differ in the last bit
    assert set(result["per_class"]) == set(SHIFT_CLASSES)
    for score in result["per_class"].values():
        assert set(score) == {"mAP50", "mAP", "num_boxes"}
    assert sum(score["num_boxes"] for score in result["per_class"].values()) == 6 * 6 - 3
    assert result["frames"] == 6
    assert result["fps"] > 0
    assert set(result["groups"]["timeofday_coarse"]) == {"daytime", "night"}
    assert {video: score["frames"] for video, score in result["per_video"].items()} == VIDEOS
    settings = result["settings"]
    assert settings["teacher_labels"] == "auto"
    assert settings["checkpoint"] == "iter_4.pth"
    assert settings["dtype"] == "float32"
    assert (settings["subset"], settings["split"], settings["view"]) == ("discrete/images", "val", "front")


def test_teacher_labels_by_choice(tmp_path: Path, tiny_run: TinyRun, found_street: Path) -> None:
    boxes = {}
    for choice in ("truth", "ignore"):
        result = evaluate(tiny_run, found_street, tmp_path / "r.json", "--teacher-labels", choice)
        assert result["settings"]["teacher_labels"] == choice
        boxes[choice] = sum(score["num_boxes"] for score in result["per_class"].values())
    assert boxes == {"truth": 36, "ignore": 33}


def test_other_subsets_views_and_the_first_frames(
    tmp_path: Path, tiny_run: TinyRun, found_street: Path
) -> None:
    shutil.copytree(
        found_street / "discrete" / "images" / "val" / "front",
        tmp_path / "discrete" / "videos" / "test" / "left_90",
    )
    options = ("--subset", "discrete/videos", "--split", "test", "--view", "left_90", "--max-frames", 2)
    result = evaluate(tiny_run, tmp_path, tmp_path / "r.json", *options)
    assert result["frames"] == 2
    assert result["settings"]["view"] == "left_90"
    more = evaluate(tiny_run, tmp_path, tmp_path / "r.json", *options[:-1], 1000)
    assert more["frames"] == 6


def test_two_processes_find_what_one_finds(tmp_path: Path, tiny_run: TinyRun, found_street: Path) -> None:
    alone = evaluate(tiny_run, found_street, tmp_path / "one.json")
    outcome = run_in_two_processes(
        *("test", tiny_run.config, tiny_run.checkpoint, "--data-root", found_street),
        *("--json", tmp_path / "two.json", "--dtype", "float32", "--workers", 1),
    )
    assert outcome.code == 0, outcome.err
    assert outcome.out.count("all classes") == 1
    assert "Warning" not in outcome.err
    together = read_json(tmp_path / "two.json")
    for result in (alone, together):
        for name in ("fps", "settings"):
            result.pop(name)
    assert together == alone


@pytest.mark.parametrize(
    ("options", "code", "reason"),
    [
        (["--data-root", "/no/such/folder"], 1, "there is no such data root"),
        (["--split", "test"], 1, "there is no such label file"),
        (["--json", "/no/such/folder/r.json"], 1, "there is no folder /no/such/folder"),
        (["--json", "/"], 1, "it is a folder"),
        (["--max-frames", "0"], 2, "--max-frames is 0"),
        (["--device", "gpu"], 2, "unknown device 'gpu'"),
        (["--launcher", "pytorch"], 2, "needs a launcher"),
    ],
)
def test_wrong_arguments_give_one_line(tiny_run: TinyRun, options: list[str], code: int, reason: str) -> None:
    outcome = run_command("test", tiny_run.config, tiny_run.checkpoint, *options)
    assert outcome.code == code
    assert reason in outcome.error_line()


def test_wrong_files_give_one_line(tmp_path: Path, tiny_run: TinyRun) -> None:
    wrong = tmp_path / "wrong.pth"
    wrong.write_bytes(tiny_run.checkpoint.read_bytes()[:10_000])
    for config, checkpoint, code, reason in (
        ("/no/such/config.py", tiny_run.checkpoint, 2, "no config at"),
        (tiny_run.config, "/no/such/weights.pth", 1, "no weights at"),
        (tiny_run.config, wrong, 1, "not a readable checkpoint"),
        (tiny_run.config, tiny_run.config, 1, "not a readable checkpoint"),
    ):
        outcome = run_command("test", config, checkpoint)
        assert outcome.code == code
        assert reason in outcome.error_line()


@pytest.mark.parametrize(
    "change", ["x = 1", "test_dataloader = None", "test_dataloader = dict(dataset=dict(typo=1))"]
)
def test_wrong_configs_give_one_line(tmp_path: Path, tiny_run: TinyRun, change: str) -> None:
    config = tmp_path / "config.py"
    base = "" if change == "x = 1" else f"_base_ = [{str(tiny_run.config)!r}]\n"
    config.write_text(base + change + "\n")
    outcome = run_command("test", config, tiny_run.checkpoint)
    assert outcome.code == 2
    assert str(config) in outcome.error_line()


@pytest.mark.usefixtures("quick_to_end_workers")
@pytest.mark.parametrize("workers", [0, 1])
def test_an_unreadable_image_is_named(tmp_path: Path, tiny_run: TinyRun, workers: int) -> None:
    write_split(tmp_path, "val", {"a": 2})
    archive = tmp_path / "discrete" / "images" / "val" / "front" / "img.zip"
    with zipfile.ZipFile(archive) as whole:
        names = whole.namelist()
    with zipfile.ZipFile(archive, "w") as broken:
        for name in names:
            broken.writestr(name, b"\xff\xd8 this is no picture")
    outcome = run_command(
        *("test", tiny_run.config, tiny_run.checkpoint, "--data-root", tmp_path, "--workers", workers),
        *("--json", tmp_path / "r.json"),
    )
    assert outcome.code == 1
    line = outcome.error_line()
    assert "img.zip" in line
    assert "a/00000000" in line
    assert not (tmp_path / "r.json").exists()


def test_detections_are_kept_and_compared(tiny_run: TinyRun, found_street: Path, tmp_path: Path) -> None:
    result = evaluate(
        tiny_run, found_street, tmp_path / "r.json", "--detections", tmp_path / "all.npz", "--policy", "all"
    )
    outcome = run_command(
        *("analyze", "compare", tmp_path / "all.npz", "--baseline", tmp_path / "all.npz"),
        *("--resamples", 20, "--json", tmp_path / "c.json"),
    )
    assert outcome.code == 0, outcome.err
    (row,) = read_json(tmp_path / "c.json")["runs"]
    assert row["mAP50"] == pytest.approx(result["mAP50"])
    assert row["difference"]["value"] == 0
    assert row["settings"]["policy"] == "all"
