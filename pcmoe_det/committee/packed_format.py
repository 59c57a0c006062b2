"""The files of a packed model: names, description (``model.json``), header of the expert file.

Nothing in a packed model is executable. The description alone says where every record lies, so that
opening costs one small JSON file and the header of another.
"""

from __future__ import annotations

import json
import math
import struct
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch

from pcmoe_det.committee.layers import RECORD_ALIGNMENT_BYTES, ExpertKey, MoELayerSpec, RecordLayout
from pcmoe_det.errors import CheckpointError
from pcmoe_det.models.description import (
    WeightsInfo,
    check_version,
    info_from_fields,
    parse_json,
    whole_number,
)

__all__ = [
    "DENSE_FILE",
    "DESCRIPTION_FILE",
    "EXPERTS_FILE",
    "PACK_DTYPES",
    "PACK_FILES",
    "PACK_FORMAT_VERSION",
    "PackDescription",
    "description_checksum",
    "expert_file_header",
    "file_checksum",
]

PACK_FORMAT_VERSION = 2
"""Version 1 had no checksum of the description."""

DESCRIPTION_FILE = "model.json"
DENSE_FILE = "dense.safetensors"
EXPERTS_FILE = "experts.safetensors"
PACK_FILES = (DESCRIPTION_FILE, DENSE_FILE, EXPERTS_FILE)
PACK_DTYPES: Mapping[str, torch.dtype] = {"float32": torch.float32, "bfloat16": torch.bfloat16}

_FORMAT = "pcmoe_det packed model"


def expert_file_header(layers: tuple[MoELayerSpec, ...]) -> bytes:
    """Everything before the first record of the expert file.

    A safetensors header: its length (8 bytes, little endian) and JSON. Trailing spaces, which the
    format allows, pad it to whole pages, so that records start at pages.
    """
    entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    end = 0
    for spec in layers:
        for key in spec.keys:
            start, end = end, end + spec.record_bytes
            entries[f"{spec.name}/{key.expert}"] = {
                "dtype": "U8",
                "shape": [spec.record_bytes],
                "data_offsets": [start, end],
            }
    text = json.dumps(entries, separators=(",", ":")).encode()
    padded = -(-(8 + len(text)) // RECORD_ALIGNMENT_BYTES) * RECORD_ALIGNMENT_BYTES - 8
    return struct.pack("<Q", padded) + text.ljust(padded)


def file_checksum(path: Path) -> int:
    """CRC32 of a file, in pieces. Raises OSError."""
    checksum = 0
    with path.open("rb", buffering=0) as file:
        while piece := file.read(1 << 20):
            checksum = zlib.crc32(piece, checksum)
    return checksum


def description_checksum(content: Mapping[str, Any]) -> int:
    """CRC32 of what a description says, however it is laid out in the file.

    Args:
        content: As parsed; a ``crc32`` in it is left out.
    """
    said = {name: value for name, value in content.items() if name != "crc32"}
    return zlib.crc32(json.dumps(said, sort_keys=True, separators=(",", ":")).encode())


@dataclass(frozen=True)
class PackDescription:
    """Content of ``model.json``.

    Attributes:
        info: The detector: configuration, class names, input size.
        layers: Its MoE layers, first to last.
        dtype: Of the experts, and of the arithmetic.
        checksums: CRC32 of each record, padding included, by layer and expert.
        dense_bytes: Size of the dense file.
        dense_checksum: CRC32 of the dense file.
        package_version: Of the package that wrote it.
    """

    info: WeightsInfo
    layers: tuple[MoELayerSpec, ...]
    dtype: torch.dtype
    checksums: tuple[tuple[int, ...], ...]
    dense_bytes: int
    dense_checksum: int
    package_version: str

    def record_offsets(self) -> tuple[int, ...]:
        """Where each layer's first record starts in the expert file, and where the file ends."""
        sizes = (spec.expert_bytes for spec in self.layers)
        return tuple(accumulate(sizes, initial=len(expert_file_header(self.layers))))

    def checksum(self, key: ExpertKey) -> int:
        """CRC32 of an expert's record."""
        return self.checksums[key.layer][key.expert]

    def to_json(self) -> str:
        """The text of ``model.json``.

        Raises:
            TypeError: The configuration is no plain data.
            ValueError: It has a number that is not finite.
        """
        content = {
            "format": _FORMAT,
            "format_version": PACK_FORMAT_VERSION,
            "package_version": self.package_version,
            "info": asdict(self.info),
            "dtype": next(name for name, dtype in PACK_DTYPES.items() if dtype == self.dtype),
            "dense": {"bytes": self.dense_bytes, "crc32": self.dense_checksum},
            "experts": {"bytes": self.record_offsets()[-1]},
            "layers": [
                {
                    "name": spec.name,
                    "num_experts": spec.num_experts,
                    "channels": spec.channels,
                    "hidden": spec.hidden,
                    "record_bytes": spec.record_bytes,
                    "norms": spec.norms,
                    "crc32": self.checksums[spec.index],
                }
                for spec in self.layers
            ],
        }
        # Summed up as it will be read: JSON has no tuples, and makes text of keys that are numbers.
        content["crc32"] = description_checksum(json.loads(json.dumps(content, allow_nan=False)))
        return json.dumps(content, indent=1, allow_nan=False) + "\n"

    @classmethod
    def from_json(cls, text: str, *, source: str) -> PackDescription:
        """Parse ``model.json``.

        Args:
            text: Its content.
            source: Its path, for messages.

        Raises:
            CheckpointError: Written by a newer release, damaged, or not ours.
        """
        damaged = f"{source} is damaged or no description of a packed model"
        try:
            content = parse_json(text)
        except ValueError as error:
            raise CheckpointError(f"{damaged} ({error}); pack the model again") from error
        if not isinstance(content, dict) or content.get("format") != _FORMAT:
            raise CheckpointError(f"{damaged} (no 'format' of ours); check the path, or pack the model again")
        try:
            version = check_version(content["format_version"], newest=PACK_FORMAT_VERSION, source=source)
            if version >= 2:
                _check_checksum(content)
            return _parse(content, source=source)
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else str(error)
            raise CheckpointError(f"{damaged} ({reason}); pack the model again") from error


def _check_checksum(content: Mapping[str, Any]) -> None:
    if content["crc32"] != description_checksum(content):
        raise ValueError("it was changed since it was written: its CRC32 differs")


def _parse(content: Mapping[str, Any], *, source: str) -> PackDescription:
    dtype = PACK_DTYPES.get(content["dtype"])
    if dtype is None:
        raise ValueError(f"dtype is {content['dtype']!r}; there are {', '.join(PACK_DTYPES)}")
    layers = tuple(_parse_layer(index, entry, dtype) for index, entry in enumerate(content["layers"]))
    if not layers:
        raise ValueError("it has no MoE layers")
    checksums = []
    for spec, entry in zip(layers, content["layers"], strict=True):
        values = tuple(whole_number(value, "crc32", limit=1 << 32) for value in entry["crc32"])
        if len(values) != spec.num_experts:
            raise ValueError(f"layer {spec.name} has {spec.num_experts} experts and {len(values)} checksums")
        checksums.append(values)
    description = PackDescription(
        info=info_from_fields(content["info"], source=f"the model in {source}"),
        layers=layers,
        dtype=dtype,
        checksums=tuple(checksums),
        dense_bytes=whole_number(content["dense"]["bytes"], "dense bytes"),
        dense_checksum=whole_number(content["dense"]["crc32"], "dense crc32", limit=1 << 32),
        package_version=str(content["package_version"]),
    )
    if content["experts"]["bytes"] != description.record_offsets()[-1]:
        raise ValueError("the sizes of its layers do not add up to that of the expert file")
    return description


def _parse_layer(index: int, entry: Mapping[str, Any], dtype: torch.dtype) -> MoELayerSpec:
    channels = whole_number(entry["channels"], "channels")
    hidden = whole_number(entry["hidden"], "hidden")
    layout = RecordLayout.for_expert(channels, hidden, dtype)
    if entry["record_bytes"] != layout.record_bytes:
        raise ValueError(
            f"layer {entry['name']} has records of {entry['record_bytes']} bytes, "
            f"its sizes give {layout.record_bytes}"
        )
    norms = tuple(float(value) for value in entry["norms"])
    if not all(math.isfinite(value) and value >= 0 for value in norms):
        raise ValueError(f"layer {entry['name']} has a norm that is no number of 0 or more")
    return MoELayerSpec(
        index=index,
        name=str(entry["name"]),
        num_experts=whole_number(entry["num_experts"], "num_experts"),
        channels=channels,
        hidden=hidden,
        layout=layout,
        norms=norms,
    )
