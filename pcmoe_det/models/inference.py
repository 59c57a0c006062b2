"""From a weights file to something that finds objects in pictures."""

from __future__ import annotations

import importlib.resources
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np
import torch
from mmcv.cnn.utils import fuse_conv_bn
from mmdet.registry import MODELS
from mmdet.structures import DetDataSample
from mmengine.config import ConfigDict
from mmengine.registry import init_default_scope
from numpy.typing import NDArray
from torch import Tensor, nn

import pcmoe_det.models.registry  # noqa: F401  (registers the model types)
from pcmoe_det.errors import CheckpointError, ConfigError, PcmoeError, UsageError
from pcmoe_det.models.config_files import read_config
from pcmoe_det.models.description import class_names_problem
from pcmoe_det.models.detector import use_low_precision
from pcmoe_det.models.devices import checked_device
from pcmoe_det.models.prepacked import can_prepack, prepack
from pcmoe_det.models.trusted_types import registered_names_only, untrusted_type, without_downloads
from pcmoe_det.models.weights_file import WeightsInfo, load_into, read_weights
from pcmoe_det.structures import SHIFT_CLASSES, Detections

__all__ = [
    "Detector",
    "build_model",
    "fast_bfloat16",
    "inference_dtype",
    "info_from_config",
    "load_detector",
    "prepare_for_inference",
    "shipped_weights",
]

DtypeChoice = Literal["auto", "float32", "bfloat16"]
_SHIPPED = "cascade_swin_moe_small_8e.safetensors"


def shipped_weights() -> Path:
    """The weights that are used when none are named."""
    return Path(str(importlib.resources.files("pcmoe_det.weights").joinpath(_SHIPPED)))


def info_from_config(path: Path) -> WeightsInfo:
    """Describe the model of an mmengine config file.

    The names of its classes are its ``class_names``; without them SHIFT's.

    Raises:
        ConfigError: The file is missing, is not a config, has no model, or names another number of
            classes than its model finds.
    """
    config = read_config(path)
    model = config.model.to_dict() if isinstance(config.model, ConfigDict) else dict(config.model)
    class_names = tuple(str(name) for name in config.get("class_names", SHIFT_CLASSES))
    problem = class_names_problem(model, class_names)
    if problem is not None:
        raise ConfigError(f"{path}: {problem}; write class_names = (...) with a name for each class")
    return WeightsInfo(model=model, class_names=class_names, long_side=int(config.get("long_side", 0)))


def build_model(model: Mapping[str, Any], *, source: str | None = None) -> nn.Module:
    """Build an mmdet detector from its configuration, with random weights.

    Args:
        model: The configuration.
        source: The weights file or packed model that it came with: it may then name registered parts only
            (``untrusted_type``). None for a configuration that the user named, which may do more.

    Raises:
        CheckpointError: What came with the weights names something else.
        ConfigError: Names what the registry or a constructor did not accept.
    """
    init_default_scope("mmdet")
    config = without_downloads(dict(model))
    if source is not None:
        untrusted = untrusted_type(config)
        if untrusted is not None:
            raise CheckpointError(
                f"{source} is not opened, because it could run code: {untrusted}; "
                "get weights that name registered parts only"
            )
    limits = nullcontext() if source is None else registered_names_only()
    try:
        with limits:
            # Plain data throughout: JSON has no tuples, and ConfigDict gives attribute access.
            built: nn.Module = MODELS.build(ConfigDict(config))
    except PcmoeError:
        raise
    except Exception as error:  # constructors check their arguments each in its own way, or not at all
        place = "" if source is None else f"{source}: "
        step = "correct it" if source is None else "get the file again"
        raise ConfigError(
            f"{place}the model's configuration does not build: {_reason(error)}; {step}"
        ) from error
    return built


def _reason(error: Exception) -> str:
    """On one line; with the kind of error, where its text is short of saying what happened."""
    text = " ".join(str(error).split())
    text = text if len(text) <= 300 else f"{text[:300]}..."
    if isinstance(error, KeyError | TypeError | ValueError | AttributeError):
        return text
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 are faster than in float32 on this device."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported())
    capabilities = torch.backends.cpu.get_cpu_capability()
    if capabilities != "AVX512":
        return False
    flags = Path("/proc/cpuinfo")
    return not flags.is_file() or any(name in flags.read_text() for name in ("amx_bf16", "avx512_bf16"))


def inference_dtype(choice: DtypeChoice, device: torch.device) -> torch.dtype:
    """Dtype of features and heads: ``auto`` is bfloat16 where the hardware is fast in it."""
    low = choice == "bfloat16" or (choice == "auto" and fast_bfloat16(device))
    return torch.bfloat16 if low else torch.float32


def prepare_for_inference(model: nn.Module, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
    """Fold batch normalisation and cast features and heads to ``dtype``. In place.

    Boxes, non-maximum suppression and RoIAlign coordinates stay float32.
    """
    model.eval()
    model = fuse_conv_bn(model)
    if dtype != torch.float32:
        use_low_precision(model, dtype)
        for name, part in model.named_children():
            if name != "data_preprocessor":
                part.to(dtype)
    model.requires_grad_(False)
    model = model.to(device)
    if can_prepack(device):
        prepack(model.backbone)  # type: ignore[arg-type]
    return model


class Detector:
    """A detector for pictures of any size.

    Args:
        model: An mmdet detector, prepared for inference.
        class_names: By class id.
        long_side: Images are resized, keeping their aspect ratio, to this longer side; 0 keeps them.
        score_threshold: Detections below it are dropped.
    """

    def __init__(
        self, model: nn.Module, *, class_names: Sequence[str], long_side: int, score_threshold: float = 0.0
    ) -> None:
        if not 0 <= score_threshold <= 1:
            raise UsageError(f"the score threshold is {score_threshold}; it must be between 0 and 1")
        self.model = model
        self._class_names = tuple(class_names)
        self.long_side = long_side
        self.score_threshold = score_threshold

    @property
    def class_names(self) -> tuple[str, ...]:
        """Names by class id."""
        return self._class_names

    def detect(self, images: Sequence[NDArray[np.uint8]]) -> list[Detections]:
        """Find objects in ``[height, width, 3]`` uint8 BGR images.

        Images are run one by one: a frame's result does not depend on its neighbours.
        """
        return [self._detect_one(image) for image in images]

    def _detect_one(self, image: NDArray[np.uint8]) -> Detections:
        height, width = image.shape[:2]
        resized = _resize(image, self.long_side)
        data = {
            "inputs": [torch.from_numpy(np.ascontiguousarray(resized.transpose(2, 0, 1)))],
            "data_samples": [
                DetDataSample(
                    metainfo={
                        "ori_shape": (height, width),
                        "img_shape": resized.shape[:2],
                        "scale_factor": (resized.shape[1] / width, resized.shape[0] / height),
                    }
                )
            ],
        }
        with torch.inference_mode():
            batch = self.model.data_preprocessor(data, False)  # type: ignore[operator]
            result = self.model.predict(batch["inputs"], batch["data_samples"], rescale=True)[0]  # type: ignore[operator]
        return self._to_detections(result.pred_instances, height=height, width=width)

    def _to_detections(self, instances: Any, *, height: int, width: int) -> Detections:
        scores: Tensor = instances.scores.float()
        order = torch.argsort(scores, descending=True, stable=True)
        order = order[scores[order] >= self.score_threshold]
        boxes = instances.bboxes.float()[order].cpu().numpy()
        boxes[:, 0::2] = boxes[:, 0::2].clip(0, width)
        boxes[:, 1::2] = boxes[:, 1::2].clip(0, height)
        return Detections(
            boxes_xyxy=boxes,
            scores=scores[order].cpu().numpy(),
            class_ids=instances.labels[order].long().cpu().numpy(),
        )


def _resize(image: NDArray[np.uint8], long_side: int) -> NDArray[np.uint8]:
    height, width = image.shape[:2]
    scale = long_side / max(height, width) if long_side else 1.0
    if scale == 1.0:
        return image
    size = (max(1, int(width * scale + 0.5)), max(1, int(height * scale + 0.5)))
    resized: NDArray[np.uint8] = cv2.resize(image, size, interpolation=cv2.INTER_LINEAR)  # type: ignore[assignment]
    return resized


def load_detector(
    model: str | None = None,
    *,
    config: str | None = None,
    device: str = "cpu",
    threads: int | None = None,
    score_threshold: float = 0.3,
    dtype: DtypeChoice = "auto",
) -> Detector:
    """Load a detector.

    Args:
        model: A weights file; None takes the shipped one.
        config: An mmengine config, for weights that do not describe their model.
        device: A torch device, such as ``cpu`` or ``cuda:0`` (the latter is unmeasured).
        threads: Threads of torch in this process; None leaves them.
        score_threshold: Detections below it are dropped.
        dtype: Arithmetic of features and heads; ``auto`` is bfloat16 where the hardware has it.

    Raises:
        CheckpointError: The weights are missing, damaged, do not fit, or describe more than a model.
        ConfigError: The configuration is missing or does not build.
        UsageError: A device or a number that cannot be.
    """
    path = shipped_weights() if model is None else Path(model)
    target = checked_device(device)
    if threads is not None:
        if threads < 1:
            raise UsageError(f"--threads is {threads}; it must be 1 or more")
        torch.set_num_threads(threads)
    tensors, info = read_weights(path, described=config is None)
    source: str | None = str(path)
    if config is not None:
        source = None
        info = info_from_config(Path(config))
    if info is None:
        raise CheckpointError(f"{path} does not describe its model; name its configuration with --config")
    if info.is_backbone:
        raise CheckpointError(
            f"{path} holds a backbone without a detector around it; "
            f"train one: pcmoe-train CONFIG --weights {path}"
        )
    plain = {**info.model, "precision": "float32"} if "precision" in info.model else info.model
    built = build_model(plain, source=source)
    load_into(built, tensors, source=str(path))
    prepared = prepare_for_inference(built, dtype=inference_dtype(dtype, target), device=target)
    return Detector(
        prepared, class_names=info.class_names, long_side=info.long_side, score_threshold=score_threshold
    )
