"""From a weights file to boxes: any image, the evaluation's result, and errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from mmengine.dataset import pseudo_collate
from mmengine.structures import InstanceData

from pcmoe_det.datasets.shift import ShiftDataset
from pcmoe_det.errors import CheckpointError, ConfigError, UsageError
from pcmoe_det.models import inference
from pcmoe_det.models.inference import (
    Detector,
    build_model,
    fast_bfloat16,
    info_from_config,
    load_detector,
    prepare_for_inference,
)
from pcmoe_det.models.weights_file import WeightsInfo, save_weights
from pcmoe_det.structures import SHIFT_CLASSES, Detections, Frame, FrameDetector
from tests.cli.tiny import write_config, write_split
from tests.models.tiny_models import build, cascade_rcnn

CPU = torch.device("cpu")
LONG_SIDE = 96


@pytest.fixture(scope="module")
def detector() -> Detector:
    model = prepare_for_inference(build(cascade_rcnn()), dtype=torch.float32, device=CPU)
    return Detector(model, class_names=SHIFT_CLASSES, long_side=LONG_SIDE)


def picture(height: int, width: int, seed: int = 0) -> Any:
    return np.random.default_rng(seed).integers(0, 255, (height, width, 3), dtype=np.uint8)


SMALL = [(1, 1), (1, 500), (500, 1), (3, 2), (33, 57), (64, 96), (96, 96), (97, 131)]
LARGE = [(8000, 20), (8000, 5), (700, 901)]
CASES = [(LONG_SIDE, size) for size in SMALL + LARGE] + [(0, size) for size in SMALL]


@pytest.mark.parametrize(("long_side", "size"), CASES, ids=str)
def test_any_image_size(detector: Detector, size: tuple[int, int], long_side: int) -> None:
    height, width = size
    sized = Detector(detector.model, class_names=SHIFT_CLASSES, long_side=long_side)
    image = picture(height, width)
    before = image.copy()
    (found,) = sized.detect([image])
    assert np.array_equal(image, before)
    assert found.boxes_xyxy.dtype == found.scores.dtype == np.float32
    assert found.class_ids.dtype == np.int64
    assert (np.diff(found.scores) <= 0).all()
    assert ((found.scores >= 0) & (found.scores <= 1)).all()
    assert ((found.class_ids >= 0) & (found.class_ids < 6)).all()
    assert (found.boxes_xyxy >= 0).all()
    assert (found.boxes_xyxy <= [width, height, width, height]).all()
    assert (found.boxes_xyxy[:, 2:] >= found.boxes_xyxy[:, :2]).all()


def test_it_is_what_a_stream_needs(detector: Detector) -> None:
    assert isinstance(detector, FrameDetector)
    assert detector.class_names == SHIFT_CLASSES
    assert detector.detect([]) == []


def same(ours: Detections, theirs: Detections) -> bool:
    return all(
        np.array_equal(getattr(ours, name), getattr(theirs, name))
        for name in ("boxes_xyxy", "scores", "class_ids")
    )


def test_a_picture_s_result_does_not_depend_on_the_others(detector: Detector) -> None:
    images = [picture(64, 96, 1), picture(97, 31, 2), picture(64, 96, 3)]
    together = detector.detect(images)
    assert all(
        same(detector.detect([image])[0], found) for image, found in zip(images, together, strict=True)
    )
    assert not same(together[0], together[2])


def test_views_and_read_only_arrays_are_pictures_too(detector: Detector) -> None:
    whole = picture(128, 192)
    view = whole[::2, ::-2]
    copied = np.ascontiguousarray(view)
    copied.setflags(write=False)
    assert same(detector.detect([view])[0], detector.detect([copied])[0])


def test_the_threshold_cuts_the_list(detector: Detector) -> None:
    image = picture(80, 96)
    (everything,) = detector.detect([image])
    threshold = float(everything.scores[len(everything) // 2])
    limited = Detector(
        detector.model, class_names=SHIFT_CLASSES, long_side=LONG_SIDE, score_threshold=threshold
    )
    (found,) = limited.detect([image])
    count = int((everything.scores >= threshold).sum())
    assert 0 < count < len(everything)
    assert np.array_equal(found.boxes_xyxy, everything.boxes_xyxy[:count])


def test_no_detection_is_an_empty_list(detector: Detector) -> None:
    nothing = Detector(detector.model, class_names=SHIFT_CLASSES, long_side=LONG_SIDE, score_threshold=1.0)
    (found,) = nothing.detect([picture(60, 90)])
    assert len(found) == 0
    assert found.boxes_xyxy.shape == (0, 4)


@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 1), (40, 60, 4)])
def test_a_frame_is_never_grey_or_transparent(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"a frame is a \[height, width, 3\] uint8 array"):
        Frame(np.zeros(shape, np.uint8), "x", 0, None, 0.0)


def test_equals_the_evaluation_pipeline(tmp_path: Path, detector: Detector) -> None:
    images = write_split(tmp_path, "val", {"a": 2, "b": 1})
    data = ShiftDataset(
        str(tmp_path),
        test_mode=True,
        pipeline=[
            dict(type="LoadShiftImage"),
            dict(type="Resize", scale=(LONG_SIDE, LONG_SIDE), keep_ratio=True),
            dict(type="PackDetInputs"),
        ],
    )
    assert len({image.shape for image in images}) == 2
    for index, image in enumerate(images):
        with torch.inference_mode():
            (sample,) = detector.model.test_step(pseudo_collate([data[index]]))  # type: ignore[operator]
        expected = sample.pred_instances
        (found,) = detector.detect([image])
        assert len(found) == len(expected) > 0
        assert np.array_equal(found.scores, expected.scores.numpy())
        assert np.array_equal(found.class_ids, expected.labels.numpy())
        height, width = image.shape[:2]
        np.testing.assert_allclose(
            found.boxes_xyxy, expected.bboxes.numpy().clip(0, [width, height, width, height]), atol=1e-4
        )


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    config = cascade_rcnn(precision="bfloat16")
    info = WeightsInfo(model=config, class_names=SHIFT_CLASSES, long_side=LONG_SIDE)
    save_weights(path, build(config).state_dict(), info)
    return path


def test_loaded_from_a_file_it_is_the_same(weights: Path, detector: Detector) -> None:
    loaded = load_detector(str(weights), dtype="float32", score_threshold=0.0)
    assert loaded.long_side == LONG_SIDE
    assert loaded.class_names == SHIFT_CLASSES
    image = picture(64, 96)
    assert same(loaded.detect([image])[0], detector.detect([image])[0])


@pytest.mark.parametrize(("dtype", "stored"), [("float32", torch.float32), ("bfloat16", torch.bfloat16)])
def test_dtype_is_that_of_features_and_heads(weights: Path, dtype: Any, stored: torch.dtype) -> None:
    model = load_detector(str(weights), dtype=dtype).model
    for part in (model.backbone, model.neck, model.rpn_head, model.roi_head):
        kinds = {value.dtype for value in part.parameters()}  # type: ignore[union-attr]
        assert kinds == {stored}
    assert not model.training


def test_auto_follows_the_hardware(weights: Path) -> None:
    expected = torch.bfloat16 if fast_bfloat16(CPU) else torch.float32
    model = load_detector(str(weights)).model
    assert next(model.backbone.parameters()).dtype == expected  # type: ignore[union-attr]


def test_a_config_describes_a_training_checkpoint(tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path)
    info = info_from_config(config)
    assert (info.class_names, info.long_side) == (SHIFT_CLASSES, 96)
    torch.save({"state_dict": build_model(info.model).state_dict()}, tmp_path / "iter_1.pth")
    loaded = load_detector(str(tmp_path / "iter_1.pth"), config=str(config))
    assert loaded.long_side == 96
    loaded.detect([picture(40, 60)])
    with pytest.raises(CheckpointError, match="name its configuration with --config"):
        load_detector(str(tmp_path / "iter_1.pth"))


@pytest.mark.parametrize(
    ("options", "error", "reason"),
    [
        (dict(model="/no/such/file.safetensors"), CheckpointError, "no weights at /no/such/file"),
        (dict(model="x" * 300), CheckpointError, "no weights at x+; check the path"),
        (dict(device="gpu"), UsageError, "unknown device 'gpu'"),
        (dict(threads=0), UsageError, "--threads is 0"),
        (dict(score_threshold=1.5), UsageError, "the score threshold is 1.5"),
        (dict(config="/no/such/config.py"), ConfigError, "no config at"),
        (dict(config="x" * 300 + ".py"), ConfigError, "no config at"),
    ],
)
def test_wrong_arguments_are_named(
    weights: Path, options: dict[str, Any], error: type[Exception], reason: str
) -> None:
    with pytest.raises(error, match=reason):
        load_detector(**{"model": str(weights), **options})


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_cuda_without_a_device(weights: Path) -> None:
    with pytest.raises(UsageError, match="torch finds no CUDA device; use --device cpu"):
        load_detector(str(weights), device="cuda:0")


def test_weights_of_another_model(weights: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path, tmp_path, num_experts=7)
    with pytest.raises(CheckpointError, match="does not fit the model"):
        load_detector(str(weights), config=str(config))


def test_a_backbone_alone_finds_nothing(tmp_path: Path) -> None:
    path = tmp_path / "w.safetensors"
    save_weights(path, {"backbone.x": torch.zeros(1)}, WeightsInfo(model={"backbone": {"type": "SwinMoE"}}))
    with pytest.raises(CheckpointError, match=r"holds a backbone without a detector.*pcmoe-train"):
        load_detector(str(path))


def described(path: Path, **changes: Any) -> str:
    info = WeightsInfo(model={**cascade_rcnn(), **changes}, class_names=SHIFT_CLASSES)
    save_weights(path, {"x": torch.zeros(1)}, info)
    return str(path)


@pytest.mark.parametrize(
    "change",
    [
        dict(nonsense=1),
        dict(backbone=dict(type="SwinMoE", x=1)),
    ],
)
def test_a_description_that_does_not_build(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="does not build"):
        load_detector(described(tmp_path / "w.safetensors", **change))


@pytest.mark.parametrize("change", [dict(type="Nothing"), dict(detector="Nothing")])
def test_a_description_of_unknown_parts(tmp_path: Path, change: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=r"model\.\w+ is 'Nothing', which is no part"):
        load_detector(described(tmp_path / "w.safetensors", **change))


@pytest.mark.parametrize(
    ("sizes", "reason"),
    [
        (dict(embed_dims=-48), ""),
        (dict(embed_dims=10**9), ""),
        (dict(num_heads=(0, 2, 4, 8)), "ZeroDivisionError"),
        (dict(window_size=-1), ""),
    ],
    ids=str,
)
def test_sizes_that_no_model_has(tmp_path: Path, sizes: dict[str, Any], reason: str) -> None:
    path = described(tmp_path / "w.safetensors", backbone={**cascade_rcnn()["backbone"], **sizes})
    with pytest.raises(ConfigError, match=rf"w\.safetensors: .* does not build: .*{reason}") as caught:
        load_detector(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "error", [MemoryError(), RuntimeError("a\nb"), AssertionError(), IndexError("x"), RecursionError("y")]
)
def test_whatever_a_constructor_raises_is_one_sentence(
    monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(_: object) -> None:
        raise error

    monkeypatch.setattr(inference.MODELS, "build", fail)
    with pytest.raises(ConfigError, match=f"does not build: {type(error).__name__}.*; correct it") as caught:
        build_model(cascade_rcnn())
    assert "\n" not in str(caught.value)


def test_no_stages_of_heads(tmp_path: Path) -> None:
    heads = {**cascade_rcnn()["roi_head"], "num_stages": 0}
    with pytest.raises(ConfigError, match="does not build"):
        load_detector(described(tmp_path / "w.safetensors", roi_head=heads))


def test_a_config_names_its_classes(tmp_path: Path) -> None:
    config = tmp_path / "config.py"
    model = cascade_rcnn()
    config.write_text(f"model = {model!r}\nclass_names = tuple('abcdef')\n")
    assert info_from_config(config).class_names == tuple("abcdef")
    config.write_text(f"model = {model!r}\nclass_names = ('a', 'b')\n")
    with pytest.raises(ConfigError, match=r"config\.py: .*num_classes=6 .* has 2; write class_names"):
        info_from_config(config)


def test_nothing_is_downloaded() -> None:
    config = cascade_rcnn()
    config["backbone"]["init_cfg"] = dict(type="Pretrained", checkpoint="https://example.invalid/w.pth")
    build_model(config).init_weights()  # type: ignore[operator]


class Unordered(torch.nn.Module):
    """A model whose detections come in no order, with boxes that reach over the edges."""

    def data_preprocessor(self, data: dict[str, Any], training: bool) -> dict[str, Any]:
        assert not training
        return data

    def predict(self, inputs: Any, samples: list[Any], *, rescale: bool) -> list[Any]:
        assert rescale
        samples[0].pred_instances = InstanceData(
            bboxes=torch.tensor([[1.0, 2.0, 3.0, 4.0], [-5.0, -6.0, 999.0, 999.0], [7.0, 8.0, 9.0, 10.0]]),
            scores=torch.tensor([0.25, 0.75, 0.5]).bfloat16(),
            labels=torch.tensor([0, 1, 2], dtype=torch.int32),
        )
        return samples


def test_order_edges_and_types_do_not_depend_on_the_model() -> None:
    detector = Detector(Unordered(), class_names=SHIFT_CLASSES, long_side=0, score_threshold=0.25)
    (found,) = detector.detect([picture(40, 60)])
    assert found.scores.tolist() == [0.75, 0.5, 0.25]
    assert found.class_ids.tolist() == [1, 2, 0]
    assert found.boxes_xyxy.tolist() == [[0, 0, 60, 40], [7, 8, 9, 10], [1, 2, 3, 4]]
    assert found.scores.dtype == np.float32
    assert found.class_ids.dtype == np.int64
