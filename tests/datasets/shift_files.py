"""Small data sets in SHIFT's layout, made on the spot. Each image has one colour, which encodes the frame."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

CONFIG: Mapping[str, Any] = {"imageSize": {"width": 64, "height": 40}}
WriteView = Callable[..., Path]
"""The fixture ``write_view``."""


def colour_of(code: int) -> tuple[int, int, int]:
    """BGR of image number ``code``; steps of 20 are wider than JPEG's loss."""
    return (20 * (code % 12) + 10, 20 * (code // 12 % 12) + 10, 200)


def encode_jpeg(code: int, *, width: int = 64, height: int = 40) -> bytes:
    image = np.full((height, width, 3), colour_of(code), np.uint8)
    return bytes(cv2.imencode(".jpg", image, [cv2.IMWRITE_JPEG_QUALITY, 95])[1])


def make_label(
    category: str, box: Sequence[Any], *, source: str | None = None, label_id: Any = "7"
) -> dict[str, Any]:
    attributes = {"type": "vehicle.test"} if source is None else {"label_source": source}
    return {
        "id": label_id,
        "category": category,
        "attributes": attributes,
        "box2d": dict(zip(("x1", "y1", "x2", "y2"), box, strict=True)),
    }


def make_frame(video: str, index: int, labels: Any = (), **members: Any) -> dict[str, Any]:
    frame: dict[str, Any] = {
        "name": f"{index:08d}_img_front.jpg",
        "videoName": video,
        "frameIndex": index,
        "attributes": {"timeofday_coarse": "night", "town": "04"},
        "labels": list(labels) if isinstance(labels, (list, tuple)) else labels,
    }
    frame.update(members)
    return frame


def member_of(frame: dict[str, Any]) -> str:
    return f"{frame['videoName']}/{frame['name']}"


def write_images(path: Path, images: dict[str, bytes]) -> None:
    """Write images into a store of the kind that ``path`` says."""
    if path.suffix == ".zip":
        with zipfile.ZipFile(path, "w") as archive:
            for name, data in images.items():
                archive.writestr(name, data)
    elif path.suffix == ".tar":
        with tarfile.open(path, "w") as archive:
            for name, data in images.items():
                member = tarfile.TarInfo(name)
                member.size = len(data)
                archive.addfile(member, io.BytesIO(data))
    else:
        for name, data in images.items():
            (path / name).parent.mkdir(parents=True, exist_ok=True)
            (path / name).write_bytes(data)


def write_labels(
    path: Path,
    frames: Sequence[dict[str, Any]],
    *,
    config: Any = CONFIG,
) -> Path:
    document: dict[str, Any] = {"frames": list(frames)}
    if config is not None:
        document["config"] = config
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(document))
    return path
