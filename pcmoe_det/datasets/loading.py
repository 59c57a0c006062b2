"""The mmdet transform that decodes an image of an image store."""

from __future__ import annotations

import logging
from typing import Any, Literal, get_args

import cv2
import numpy as np
from mmcv.transforms import BaseTransform
from mmdet.registry import TRANSFORMS
from numpy.typing import NDArray

from pcmoe_det.datasets.archives import ImageStore, shared_image_store
from pcmoe_det.datasets.image_header import is_jpeg_cut_short
from pcmoe_det.errors import ConfigError, DataError

__all__ = ["LoadShiftImage", "decode_image"]

_logger = logging.getLogger(__name__)

BrokenImages = Literal["error", "skip"]


def decode_image(data: bytes, *, where: str) -> NDArray[np.uint8]:
    """Decode a JPEG or PNG.

    Args:
        data: The encoded image.
        where: Archive and frame, for the error.

    Returns:
        ``[height, width, 3]`` uint8, BGR.

    Raises:
        DataError: The data is empty, cut short, or no image.
    """
    if is_jpeg_cut_short(data):
        raise DataError(f"{where}: the JPEG is cut short ({len(data)} bytes)")
    try:
        image = cv2.imdecode(np.frombuffer(data, np.uint8), cv2.IMREAD_COLOR)
    except cv2.error:  # an empty buffer, or a size beyond OpenCV's limit
        image = None
    if image is None:
        raise DataError(f"{where}: not a readable image ({len(data)} bytes)")
    decoded: NDArray[np.uint8] = image
    return decoded


@TRANSFORMS.register_module()
class LoadShiftImage(BaseTransform):  # type: ignore[misc]
    """Put the image of a ``ShiftDataset`` frame into the results.

    Required keys: ``archive_path``, ``archive_member``, ``height``, ``width``.
    Added keys: ``img`` (``[height, width, 3]`` uint8, BGR), ``img_shape`` and ``ori_shape`` (height, width).

    Args:
        broken_images: ``error`` raises; ``skip`` logs the frame and returns None, for which mmengine takes
            another random frame in training. In test mode mmengine refuses None, so use ``error`` there.
        to_float32: Convert the image to float32.
    """

    def __init__(self, *, broken_images: BrokenImages = "error", to_float32: bool = False) -> None:
        if broken_images not in get_args(BrokenImages):
            raise ConfigError(
                f"broken_images {broken_images!r}: choose one of {', '.join(get_args(BrokenImages))}"
            )
        self.broken_images = broken_images
        self.to_float32 = to_float32
        self.num_skipped = 0
        self._store_path: str | None = None
        self._store: ImageStore | None = None

    def transform(self, results: dict[str, Any]) -> dict[str, Any] | None:
        """Load one image.

        Raises:
            DataError: The image is missing or unreadable, or its size is not what the labels say.
        """
        try:
            image = self._load(results)
        except DataError as error:
            if self.broken_images == "error":
                raise
            self.num_skipped += 1
            _logger.warning("skipped %s (%d in this process so far)", error, self.num_skipped)
            return None
        results["img"] = image.astype(np.float32) if self.to_float32 else image
        results["img_shape"] = image.shape[:2]
        results["ori_shape"] = image.shape[:2]
        return results

    def __getstate__(self) -> dict[str, Any]:
        # Worker processes find their own store; the index of a large archive is not worth sending.
        return {**self.__dict__, "_store": None, "_store_path": None}

    def __repr__(self) -> str:
        return f"{type(self).__name__}(broken_images={self.broken_images!r}, to_float32={self.to_float32})"

    def _load(self, results: dict[str, Any]) -> NDArray[np.uint8]:
        store, member = self._open(results["archive_path"]), results["archive_member"]
        where = store.locate(member)
        image = decode_image(store.read(member), where=where)
        height, width = results["height"], results["width"]
        if image.shape[:2] != (height, width):
            raise DataError(
                f"{where}: the image is {image.shape[1]}x{image.shape[0]} but its labels are for "
                f"{width}x{height}; give the frame its own size in the label file"
            )
        return image

    def _open(self, path: str) -> ImageStore:
        if self._store is None or self._store_path != path:
            self._store = shared_image_store(path)
            self._store_path = path
        return self._store
