"""Descriptions that come with weights run no code, whatever they name and wherever."""

from __future__ import annotations

import re
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from mmdet.registry import MODELS

from pcmoe_det.errors import CheckpointError, ConfigError
from pcmoe_det.models.inference import build_model, load_detector, shipped_weights
from pcmoe_det.models.trusted_types import registered_names_only, untrusted_type, without_downloads
from pcmoe_det.models.weights_file import WeightsInfo, read_weights, save_weights
from pcmoe_det.structures import SHIFT_CLASSES
from tests.models.tiny_models import cascade_rcnn, retina_net

TOUCHING = "__import__('pathlib').Path({trace!r}).touch()"


def described(path: Path, **changes: Any) -> Path:
    info = WeightsInfo(model={**cascade_rcnn(), **changes}, class_names=SHIFT_CLASSES)
    save_weights(path, {"x": torch.zeros(1)}, info)
    return path


def call(trace: Path, **more: Any) -> dict[str, Any]:
    """A configuration that makes ``trace`` if a registry calls what it names."""
    return dict(type="subprocess.call", args=["touch", str(trace)], **more)


@pytest.mark.parametrize("shape", ["part", "in a list", "in lists of lists", "default scope"])
def test_code_in_a_description_is_refused_and_not_run(tmp_path: Path, shape: str) -> None:
    trace = tmp_path / "it ran"
    changes: dict[str, Any] = {
        "part": dict(backbone=call(trace)),
        "in a list": dict(neck=[call(trace)]),
        "in lists of lists": dict(neck=dict(type="FPN", extra=[[0], [call(trace)]])),
        "default scope": dict(backbone=dict(call(trace), _scope_="mmdet")),
    }[shape]
    path = described(tmp_path / "w.safetensors", **changes)
    with pytest.raises(CheckpointError, match=r"w\.safetensors is not opened.*\.type is 'subprocess\.call'"):
        load_detector(str(path))
    assert not trace.exists()
    build_model({**cascade_rcnn(), "backbone": call(trace)})
    assert trace.exists()  # so it was there to be refused, and a config of the user's still may


def test_the_place_is_named() -> None:
    model = cascade_rcnn()
    model["roi_head"]["bbox_head"][1] = dict(type="os.system")
    assert "model.roi_head.bbox_head[1].type is 'os.system'" in str(untrusted_type(model))


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        (dict(type="antigravity"), r"model\.type is 'antigravity', which is no part that"),
        (dict(type=["SwinMoE"]), r"model\.type is \['SwinMoE'\], which is no name"),
        (dict(detector="subprocess.Popen"), r"model\.detector is 'subprocess\.Popen'"),
        (dict(detector="LAD"), r"model\.detector is 'LAD', which reads other files"),
        (dict(backbone=dict(type="mmdet.ResNet")), r"model\.backbone\.type is 'mmdet\.ResNet'"),
        (dict(backbone=dict(type="ResNet", _scope_="this")), r"model\.backbone\._scope_ is 'this'"),
        (dict(neck=dict(type="BertModel")), "which reads other files when it is built"),
        (dict(neck=dict(type="CheckpointHook")), "which is no part that"),
        (dict(neck=dict(type="x" * 1000)), r"x\.\.\., which"),
    ],
    ids=str,
)
def test_what_may_not_be_named(changes: dict[str, Any], reason: str) -> None:
    problem = untrusted_type({**cascade_rcnn(), **changes})
    assert problem is not None
    assert re.search(reason, problem), problem


@pytest.mark.parametrize("dotted", [True, False])
def test_the_suppression_is_evaluated_by_mmcv_and_so_refused(tmp_path: Path, dotted: bool) -> None:
    code = TOUCHING.format(trace=str(tmp_path / "it ran")) if dotted else "exec('pass')"
    model = cascade_rcnn()
    model["test_cfg"]["rcnn"]["nms"] = dict(type=code, iou_threshold=0.5)
    path = described(tmp_path / "w.safetensors", test_cfg=model["test_cfg"])
    with pytest.raises(CheckpointError, match=r"model\.test_cfg\.rcnn\.nms\.type is"):
        load_detector(str(path))


def test_other_keys_that_are_looked_up_find_registered_names_only(tmp_path: Path) -> None:
    trace = tmp_path / "it ran"
    # mmcv calls what ``padding_mode`` names with the padding.
    convolution = dict(
        type="ConvModule",
        in_channels=1,
        out_channels=1,
        kernel_size=1,
        padding=f"touch '{trace}'",
        padding_mode="os.system",
    )
    path = described(tmp_path / "w.safetensors", neck=convolution)
    with pytest.raises(ConfigError, match="does not build"):
        load_detector(str(path))
    assert not trace.exists()


def test_only_the_block_and_its_thread_are_limited() -> None:
    found = []
    with registered_names_only():
        assert MODELS.get("FPN") is not None
        assert MODELS.get("collections.OrderedDict") is None
        other = threading.Thread(target=lambda: found.append(MODELS.get("collections.OrderedDict")))
        other.start()
        other.join()
    assert found[0] is not None
    assert MODELS.get("collections.OrderedDict") is not None


def test_what_detectors_are_made_of_may_be_named() -> None:
    _, info = read_weights(shipped_weights())
    assert info is not None
    for model in (info.model, cascade_rcnn(), retina_net()):
        assert untrusted_type(model) is None
    soft = dict(test_cfg=dict(nms=dict(type="soft_nms")), backbone=dict(type="ResNet", norm_cfg=None))
    assert untrusted_type(soft) is None


def test_initial_weights_from_elsewhere_are_left_out() -> None:
    pretrained = dict(type="Pretrained", checkpoint="https://example.invalid/w.pth")
    normal = dict(type="Normal", layer="Conv2d")
    for init, kept in ((pretrained, None), ([pretrained, normal], [normal]), (normal, normal)):
        model = dict(type="FPN", init_cfg=init)
        assert without_downloads(model) == dict(type="FPN", init_cfg=kept)
        assert untrusted_type(model) is None
    hidden = dict(type="FPN", init_cfg=dict(type="Normal", override=dict(pretrained, name="x")))
    assert "model.init_cfg.override.type is 'Pretrained'" in str(untrusted_type(hidden))
