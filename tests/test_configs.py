"""Every shipped config: it builds, names only what the package has, and its data pipelines run."""

from __future__ import annotations

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from mmengine.config import Config
from mmengine.registry import DATASETS, init_default_scope

from pcmoe_det.cli.configs import point_at_data
from pcmoe_det.evaluation.metric import REQUIRED_META_KEYS
from pcmoe_det.models.config_files import read_config
from pcmoe_det.models.experts import experts_without_memory
from pcmoe_det.models.inference import build_model, info_from_config
from pcmoe_det.models.moe import MoELayer
from pcmoe_det.structures import SHIFT_CLASSES
from tests.cli.commands import forget_runners
from tests.cli.tiny import write_split

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
WHOLE = sorted(path for folder in ("small", "paper") for path in (CONFIGS / folder).glob("*.py"))
STATIC = [path for path in WHOLE if "static" in path.name]
by_name = pytest.mark.parametrize("path", WHOLE, ids=lambda path: path.stem)


def types_of(node: Any) -> set[str]:
    if isinstance(node, dict):
        own = {node["type"]} if isinstance(node.get("type"), str) else set()
        return own.union(*(types_of(value) for value in node.values()))
    if isinstance(node, list | tuple):
        return set().union(*(types_of(value) for value in node))
    return set()


@by_name
def test_the_detector_builds(path: Path) -> None:
    info = info_from_config(path)
    with experts_without_memory():
        model = build_model(info.model)
    layers = [module for module in model.modules() if isinstance(module, MoELayer)]
    experts = re.search(r"_(\d+)e(_|$)", path.stem)
    expected = 4 * [int(experts[1])] if experts else []
    assert [layer.experts.num_experts for layer in layers] == expected
    assert "static" in path.stem or experts
    assert [head.num_classes for head in model.roi_head.bbox_head] == 3 * [len(SHIFT_CLASSES)]  # type: ignore[union-attr]
    assert info.long_side == (416 if path.parent.name == "small" else 1280)


@by_name
def test_only_the_package_and_mmdet_are_named(path: Path) -> None:
    config = Config.fromfile(path, import_custom_modules=False)
    assert all(name.startswith("pcmoe_det.") for name in config.custom_imports["imports"])
    assert config.custom_imports["allow_failed_imports"] is False
    assert "Pretrained" not in types_of(config.to_dict())
    files = [path, *CONFIGS.glob("_base_/*.py")]
    for file in files:
        text = file.read_text(encoding="utf-8")
        assert not re.search(r"https?://|[\"']/\w", text), f"{file} names an address or an absolute path"
    assert config.data_root.startswith("data/")


@by_name
def test_experts_are_all_that_differs_from_the_static_twin(path: Path) -> None:
    (static,) = [other for other in STATIC if other.parent == path.parent]
    ours, twin = (info_from_config(file).model for file in (path, static))
    assert {**ours["backbone"], "num_experts": 0} == twin["backbone"]
    assert {**ours, "backbone": None} == {**twin, "backbone": None}


def test_paper_scale_is_mmdet_s_standard() -> None:
    """Against facts of mmdet's cascade-rcnn_r50_fpn and Swin-T, written down here."""
    model = info_from_config(CONFIGS / "paper" / "cascade_swin_t_8e_shift_800x1280.py").model
    backbone, roi = model["backbone"], model["roi_head"]
    assert (backbone["embed_dims"], tuple(backbone["depths"]), backbone["window_size"]) == (
        96,
        (2, 2, 6, 2),
        7,
    )
    assert tuple(backbone["num_heads"]) == (3, 6, 12, 24)
    assert tuple(map(tuple, backbone["moe_blocks"])) == ((), (), (1, 3, 5), (1,))
    assert model["neck"]["out_channels"] == 256
    assert {head["fc_out_channels"] for head in roi["bbox_head"]} == {1024}
    assert [head["bbox_coder"]["target_stds"][0] for head in roi["bbox_head"]] == [0.1, 0.05, 0.033]
    assert [stage["assigner"]["pos_iou_thr"] for stage in model["train_cfg"]["rcnn"]] == [0.5, 0.6, 0.7]
    assert model["test_cfg"]["rpn"]["max_per_img"] == model["test_cfg"]["rpn"]["nms_pre"] == 1000
    assert model["test_cfg"]["rcnn"] == dict(
        score_thr=0.05, nms=dict(type="nms", iou_threshold=0.5), max_per_img=100
    )


@pytest.fixture(scope="module")
def street(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("street")
    write_split(root, "train", {"a": 4, "b": 2})
    write_split(root, "val", {"c": 2})
    shutil.copytree(root / "discrete" / "images", root / "discrete" / "videos")
    return root


@pytest.mark.parametrize("path", STATIC, ids=lambda path: path.stem)
def test_the_data_pipelines_run(path: Path, street: Path) -> None:
    config = read_config(path)
    point_at_data(config, data_root=str(street), generated_root=str(street))
    init_default_scope("mmdet")
    train = DATASETS.build(config.train_dataloader.dataset)
    boxes = 0
    for index in range(6):
        sample = train[index]
        assert sample["inputs"].shape[0] == 3
        assert sample["inputs"].max() > 1.5  # not normalised yet
        boxes += len(sample["data_samples"].gt_instances)
    assert boxes > 0
    sample = DATASETS.build(config.val_dataloader.dataset)[0]
    metainfo = sample["data_samples"].metainfo
    assert set(REQUIRED_META_KEYS) <= set(metainfo)
    assert max(metainfo["img_shape"]) == config.long_side
    assert len(metainfo["instances"]) == 2


@pytest.mark.parametrize("path", STATIC, ids=lambda path: path.stem)
def test_optimiser_schedule_and_hooks_build(
    path: Path, street: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mmengine.config.config

    from pcmoe_det.cli.train import _build_runner

    # Formatting the config's text takes longer than all the rest.
    monkeypatch.setattr(mmengine.config.config, "FormatCode", lambda text, **_: (text, False))
    config = read_config(path)
    point_at_data(config, data_root=str(street), generated_root=str(street))
    config.work_dir = str(tmp_path)
    for loader in (config.train_dataloader, config.val_dataloader):
        loader.num_workers, loader.persistent_workers = 0, False
    try:
        runner = _build_runner(config)
    finally:
        forget_runners()
    no_decay = [group for group in runner.optim_wrapper.param_groups if group["weight_decay"] == 0]
    undecayed = {id(value) for group in no_decay for value in group["params"]}
    for name, parameter in runner.model.named_parameters():
        plain = ".norm" in name or "position_bias" in name
        assert not plain or id(parameter) in undecayed, name
        assert "mlp.fc1.weight" not in name or id(parameter) not in undecayed, name
    assert len(runner.param_schedulers) >= 1


def test_roots_are_replaced_everywhere_and_only_where_they_stood() -> None:
    config = read_config(CONFIGS / "small" / "cascade_swin_moe_small_8e.py")
    point_at_data(config, data_root="/mine", generated_root=None)
    roots = re.findall(r"'data_root': '([^']*)'", str(config.train_dataloader.to_dict()))
    assert sorted(roots) == ["/mine", "/mine", "data/generated"]
    point_at_data(config, data_root=None, generated_root="/made")
    roots = re.findall(r"'data_root': '([^']*)'", str(config.train_dataloader.to_dict()))
    assert sorted(roots) == ["/made", "/mine", "/mine"]
    assert config.val_dataloader.dataset.data_root == config.test_dataloader.dataset.data_root == "/mine"
