"""A packed model: opened without its experts, which a committee or a store then reads one by one."""

from __future__ import annotations

import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec
from pcmoe_det.committee.packed_format import (
    DENSE_FILE,
    DESCRIPTION_FILE,
    EXPERTS_FILE,
    PACK_FILES,
    PackDescription,
    expert_file_header,
    file_checksum,
)
from pcmoe_det.committee.packed_skeleton import PackedExperts, build_skeleton, experts_of, moe_layers
from pcmoe_det.committee.store_base import ExpertStore, spec_of
from pcmoe_det.committee.store_disk import DiskExpertStore
from pcmoe_det.errors import CheckpointError, UsageError
from pcmoe_det.models.devices import checked_device
from pcmoe_det.models.experts import ExpertFFN, experts_without_memory
from pcmoe_det.models.inference import prepare_for_inference
from pcmoe_det.models.moe import MoELayer
from pcmoe_det.models.weights_file import WeightsInfo, load_into

__all__ = ["PackedExperts", "PackedModel", "is_packed", "materialize_experts"]


def is_packed(path: Path) -> bool:
    """Whether ``path`` is to be opened as a packed model (a folder) rather than as a weights file."""
    return os.path.isdir(path)  # noqa: PTH112 (Path.is_dir raises where a name is too long)


class PackedModel:
    """A detector in a folder, made by ``pack``. Open it with ``PackedModel.open``.

    Attributes:
        path: The folder.
        info: The detector: configuration, class names, input size.
        layers: Its MoE layers, first to last.
        dtype: Of the experts, and of the arithmetic that they are for.
    """

    def __init__(self, path: Path, description: PackDescription) -> None:
        self.path = path
        self.info: WeightsInfo = description.info
        self.layers: tuple[MoELayerSpec, ...] = description.layers
        self.dtype: torch.dtype = description.dtype
        self._description = description
        self._offsets = description.record_offsets()

    @classmethod
    def open(cls, path: str | Path) -> PackedModel:
        """Open a packed model. Quick: no weights are read.

        Raises:
            CheckpointError: The folder or a file of it is missing, half-written, truncated, damaged in
                structure, or of a newer format.
        """
        path = Path(path)
        if not is_packed(path):
            reason = "is a file, not a packed folder" if os.path.isfile(path) else "does not exist"  # noqa: PTH113
            raise CheckpointError(f"{path} {reason}; name a folder made by tools/pack.py")
        try:
            missing = [name for name in PACK_FILES if not (path / name).is_file()]
            if missing:
                raise CheckpointError(
                    f"{path} has no {' and no '.join(missing)}: it is no packed model, or one that was not "
                    "written to its end; pack the model again"
                )
            text = (path / DESCRIPTION_FILE).read_text(encoding="utf-8")
            description = PackDescription.from_json(text, source=str(path / DESCRIPTION_FILE))
            packed = cls(path, description)
            _check_size(path / DENSE_FILE, description.dense_bytes)
            _check_size(path / EXPERTS_FILE, packed._offsets[-1])
            header = expert_file_header(packed.layers)
            with (path / EXPERTS_FILE).open("rb") as file:
                if file.read(len(header)) != header:
                    raise CheckpointError(
                        f"the header of {path / EXPERTS_FILE} does not belong to {DESCRIPTION_FILE} "
                        "beside it; pack the model again"
                    )
        except UnicodeDecodeError as error:
            raise CheckpointError(
                f"{path / DESCRIPTION_FILE} is damaged ({error}); pack the model again"
            ) from error
        except OSError as error:
            raise CheckpointError(f"cannot read {path}: {error.strerror or error}") from error
        return packed

    @property
    def experts_path(self) -> Path:
        """The file of the experts' records."""
        return self.path / EXPERTS_FILE

    @property
    def expert_bytes(self) -> int:
        """Size of all experts, padding of the records included."""
        return sum(spec.expert_bytes for spec in self.layers)

    @property
    def dense_bytes(self) -> int:
        """Size of the file of everything that is no expert."""
        return self._description.dense_bytes

    def record_offset_bytes(self, key: ExpertKey) -> int:
        """Where an expert's record starts in the expert file."""
        spec = spec_of(self.layers, key)
        return self._offsets[key.layer] + key.expert * spec.record_bytes

    def checksum(self, key: ExpertKey) -> int:
        """CRC32 of an expert's record, padding included."""
        spec_of(self.layers, key)
        return self._description.checksum(key)

    def build_detector_model(self, *, device: torch.device | str = "cpu") -> nn.Module:
        """Build the mmdet detector, prepared for inference in the pack's dtype, without its experts.

        Each ``MoELayer.experts`` is a ``PackedExperts``, which reads an expert whenever one is needed: exact
        and slow, until a committee is patched in. Everything else is, bit for bit, what
        ``prepare_for_inference`` makes of the unpacked weights in the same dtype. No expert is read.

        Args:
            device: Where the model runs.

        Raises:
            CheckpointError: The dense weights are damaged or do not fit the configuration, or that names
                more than parts of a model.
            ConfigError: The configuration does not build.
            UsageError: There is no such device.
        """
        target = checked_device(device)
        model = build_skeleton(self.info, source=str(self.path / DESCRIPTION_FILE))
        self._place_placeholders(model)
        path = self.path / DENSE_FILE
        try:
            if file_checksum(path) != self._description.dense_checksum:
                raise CheckpointError(
                    f"{path} was changed or damaged (its CRC32 differs); pack the model again"
                )
            with safe_open(str(path), framework="pt") as file:
                # Mapped, not read: the copies in the model are the only ones in the process's memory.
                tensors: dict[str, Tensor] = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{path} cannot be read ({error}); pack the model again") from error
        load_into(model, tensors, source=str(path))
        del tensors
        return prepare_for_inference(model, dtype=self.dtype, device=target)

    def _place_placeholders(self, model: nn.Module) -> None:
        built = moe_layers(model)
        expected = [(spec.name, spec.num_experts, spec.channels, spec.hidden) for spec in self.layers]
        found = []
        for name, layer in built:
            num_experts, hidden, channels = experts_of(layer).fc1_weight.shape
            found.append((name, num_experts, channels, hidden))
        if found != expected:
            raise CheckpointError(
                f"{self.path / DESCRIPTION_FILE} contradicts itself: its configuration builds other MoE "
                "layers than it lists; pack the model again"
            )
        store = DiskExpertStore(self)  # closed with the process: it holds one file descriptor
        for spec, (_, layer) in zip(self.layers, built, strict=True):
            placeholder = PackedExperts(spec, store, drop=layer.experts.drop)
            layer.experts = placeholder  # type: ignore[assignment]

    def materialize_experts(self, model: nn.Module) -> None:
        """Put all experts into a model of ``build_detector_model``: see ``materialize_experts``."""
        with DiskExpertStore(self) as store:
            materialize_experts(model, store)


def materialize_experts(model: nn.Module, store: ExpertStore) -> None:
    """Replace every ``PackedExperts`` of a model by the whole experts. In place.

    The result is the unpatched model: the exact reference for anything that runs fewer experts.

    Args:
        model: A detector of ``PackedModel.build_detector_model``.
        store: Of the same packed model.

    Raises:
        ExpertReadError: A record is missing or damaged; layers before it are whole already.
        UsageError: The model has no such placeholders.
    """
    layers = [
        (layer, layer.experts)
        for module in model.modules()
        for layer in ([module] if isinstance(module, MoELayer) else [])
        if isinstance(layer.experts, PackedExperts)
    ]
    if not layers:
        raise UsageError("the model has no packed experts to load; it is whole, or it is patched")
    for layer, placeholder in layers:
        layer.experts = _read_experts(placeholder, store, device=next(layer.gate.parameters()).device)


def _read_experts(placeholder: PackedExperts, store: ExpertStore, *, device: torch.device) -> ExpertFFN:
    spec = placeholder.spec
    with experts_without_memory():
        experts = ExpertFFN(spec.channels, spec.hidden, spec.num_experts, drop=placeholder.drop)
    experts = experts.to(spec.layout.dtype).to_empty(device=device).requires_grad_(False).eval()
    buffer = torch.empty(spec.record_bytes, dtype=torch.uint8)
    views = spec.layout.views(buffer)
    for key in spec.keys:
        store.read_into(key, buffer)
        for name, view in views.items():
            experts.get_parameter(name)[key.expert].copy_(view)
    return experts


def _check_size(path: Path, expected_bytes: int) -> None:
    size = path.stat().st_size
    if size != expected_bytes:
        what = "truncated" if size < expected_bytes else "longer than it was"
        raise CheckpointError(
            f"{path} has {size} bytes and should have {expected_bytes}: it is {what}; pack the model again"
        )
