"""Crops of detections, and whole frames, as JPEG files in a folder.

Files are named after the frame's index in the source, so that they sort in order:

* crops ``frame_000012_car_0.91.jpg``; a second car with the same score in that frame
  ``frame_000012_car_0.91-2.jpg``; with a track ``frame_000012_car_0.91_id7.jpg``
* frames ``frame_000012.jpg``

Each file appears under its name only when it is whole. A folder that the sinks write to also holds
``.pcmoe-images``: that is how a later run with ``overwrite`` knows that the pictures in it are results, which
it removes before its first one, so that old and new ones never lie side by side. Any other folder must be
empty, so that no picture of anybody else is ever replaced.
"""

from __future__ import annotations

import contextlib
import logging
import os
import re
from collections import Counter
from collections.abc import Sequence
from math import ceil, floor
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.structures import FrameResult

__all__ = ["CropSink", "FrameImageSink", "check_image_folder"]

_log = logging.getLogger(__name__)

_MARKER = ".pcmoe-images"
_OWN_NAME = re.compile(r"frame_\d{6,}(_.+)?\.jpg(\.part)?")
_JPEG_QUALITY = 90
# Names hold the class; what a file system may refuse becomes "-".
_UNSAFE = re.compile(r"[^\w.+-]+")


def check_image_folder(folder: str | Path, *, overwrite: bool, source: str | Path | None = None) -> None:
    """What the sinks' constructors check; call it before the model loads. Leaves nothing behind.

    Args:
        folder: An empty folder, or one to be made, with those that it lies in.
        overwrite: Whether results of an earlier run may be replaced.
        source: The file or folder being read, if it is one; its own folder is refused.

    Raises:
        OutputError: The folder cannot be made or written to, holds something else, or holds the source.
    """
    path = Path(folder)
    try:
        if not path.exists():
            missing = [folder for folder in (path, *path.parents) if not folder.exists()]
            path.mkdir(parents=True)
            for made in missing:
                made.rmdir()
            return
        if not path.is_dir():
            raise OutputError(f"{path} is not a folder; name a folder for the pictures")
        if source is not None and Path(source).exists():
            read = Path(source).resolve()
            if path.resolve() in (read, read.parent):
                raise OutputError(
                    f"the pictures would go to {path}, where the source is; choose another folder"
                )
        if not (path / _MARKER).exists():
            if any(path.iterdir()):
                raise OutputError(
                    f"the folder {path} is not empty and its content is not from an earlier run; "
                    "choose an empty folder"
                )
        elif not overwrite and any(_OWN_NAME.fullmatch(entry.name) for entry in path.iterdir()):
            raise OutputError(
                f"{path} holds pictures of an earlier run; use --overwrite to remove and replace them"
            )
        trial = path / f"{_MARKER}.trial"
        trial.write_bytes(b"")
        trial.unlink()
    except (OSError, ValueError) as error:  # ValueError: a NUL character in the path
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"pictures cannot be written to {path}: {reason}") from error


class _ImageFolder:
    """Takes JPEG files; made and cleared when the first one comes."""

    def __init__(
        self, folder: str | Path, *, overwrite: bool, source: str | Path | None, max_images: int | None
    ) -> None:
        check_image_folder(folder, overwrite=overwrite, source=source)
        self.path = Path(folder)
        self.count = 0
        self.left_out = 0
        self._max_images = max_images
        self._is_ready = False

    @property
    def is_full(self) -> bool:
        return self._max_images is not None and self.count >= self._max_images

    def leave_out(self, count: int) -> None:
        """Count pictures beyond ``max_images``."""
        if not self.left_out:
            _log.warning(
                "%s holds %d pictures, the most asked for; further ones are left out", self.path, self.count
            )
        self.left_out += count

    def write(self, name: str, image: NDArray[np.uint8]) -> None:
        """Write ``[height, width, 3]`` uint8 BGR as ``name``.

        Raises:
            OutputError: It cannot be written; pictures before it are there.
        """
        target = self.path / name
        partial = self.path / f"{name}.part"
        try:
            self._get_ready()
            ok, data = cv2.imencode(".jpg", image, (cv2.IMWRITE_JPEG_QUALITY, _JPEG_QUALITY))
            if not ok:
                raise OSError(f"a picture of {image.shape[1]}x{image.shape[0]} cannot be made a JPEG file")
            partial.write_bytes(data.tobytes())
            partial.replace(target)
        except (OSError, cv2.error) as error:
            with contextlib.suppress(OSError):
                partial.unlink(missing_ok=True)
            raise OutputError(
                f"{target} cannot be written: {getattr(error, 'strerror', None) or error}; "
                f"{self.count} pictures before it are kept in {self.path}"
            ) from error
        self.count += 1

    def close(self) -> list[Path]:
        if self.left_out:
            _log.warning("%s: %d pictures were left out, beyond %d", self.path, self.left_out, self.count)
        return [self.path] if self.count else []

    def _get_ready(self) -> None:
        if self._is_ready:
            return
        self.path.mkdir(parents=True, exist_ok=True)
        (self.path / _MARKER).touch()
        for entry in os.scandir(self.path):
            if _OWN_NAME.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
                Path(entry.path).unlink()
        self._is_ready = True


class CropSink:
    """Every detection cut out of the frame (without drawn boxes), at the frame's resolution.

    Args:
        folder: An empty folder, or one to be made; see the module for what ``overwrite`` may replace.
        class_names: Names by class id.
        overwrite: Whether results of an earlier run are removed, before the first new one.
        source: The file or folder being read, if it is one; its own folder is refused.
        max_images: Leave out and count crops beyond so many, which bounds the disk over weeks; None keeps
            all.

    Raises:
        OutputError: See ``check_image_folder``.
    """

    stage = "crops"
    needs_picture = False

    def __init__(
        self,
        folder: str | Path,
        *,
        class_names: Sequence[str],
        overwrite: bool,
        source: str | Path | None = None,
        max_images: int | None = None,
    ) -> None:
        self._folder = _ImageFolder(folder, overwrite=overwrite, source=source, max_images=max_images)
        self._class_names = tuple(_UNSAFE.sub("-", name) for name in class_names)

    @property
    def left_out(self) -> int:
        """Crops beyond ``max_images``."""
        return self._folder.left_out

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:  # noqa: ARG002
        found = result.detections
        image = result.frame.image
        taken: Counter[str] = Counter()
        for place, (box, class_id, score) in enumerate(
            zip(found.boxes_xyxy.tolist(), found.class_ids.tolist(), found.scores.tolist(), strict=True)
        ):
            if self._folder.is_full:
                self._folder.leave_out(len(found) - place)
                return
            name = f"frame_{result.frame.frame_index:06d}_{self._class_names[class_id]}_{score:.2f}"
            if found.track_ids is not None and found.track_ids[place] >= 0:
                name += f"_id{found.track_ids[place]}"
            taken[name] += 1
            suffix = f"-{taken[name]}" if taken[name] > 1 else ""
            self._folder.write(f"{name}{suffix}.jpg", _cut_out(image, box))

    def close(self, outcome: SinkOutcome) -> list[Path]:  # noqa: ARG002
        return self._folder.close()


class FrameImageSink:
    """Every frame as a picture.

    Args:
        folder: An empty folder, or one to be made; see the module for what ``overwrite`` may replace.
        annotated: With boxes drawn, or as it was read.
        overwrite: Whether results of an earlier run are removed, before the first new one.
        source: The file or folder being read, if it is one; its own folder is refused.
        max_images: Leave out and count frames beyond so many, which bounds the disk over weeks; None keeps
            all.

    Raises:
        OutputError: See ``check_image_folder``.
    """

    stage = "frames"

    def __init__(
        self,
        folder: str | Path,
        *,
        annotated: bool,
        overwrite: bool,
        source: str | Path | None = None,
        max_images: int | None = None,
    ) -> None:
        self._folder = _ImageFolder(folder, overwrite=overwrite, source=source, max_images=max_images)
        self._annotated = annotated

    @property
    def needs_picture(self) -> bool:
        return self._annotated and not self._folder.is_full

    @property
    def left_out(self) -> int:
        """Frames beyond ``max_images``."""
        return self._folder.left_out

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:
        if self._folder.is_full:
            self._folder.leave_out(1)
            return
        if self._annotated and picture is None:
            raise ValueError("annotated frames need the drawn picture; the stream did not make one")
        image = picture if self._annotated and picture is not None else result.frame.image
        self._folder.write(f"frame_{result.frame.frame_index:06d}.jpg", image)

    def close(self, outcome: SinkOutcome) -> list[Path]:  # noqa: ARG002
        return self._folder.close()


def _cut_out(image: NDArray[np.uint8], box_xyxy: Sequence[float]) -> NDArray[np.uint8]:
    """Every pixel that the box touches, one at least."""
    height, width = image.shape[:2]
    left, top = min(max(0, floor(box_xyxy[0])), width - 1), min(max(0, floor(box_xyxy[1])), height - 1)
    right = min(max(left + 1, ceil(box_xyxy[2])), width)
    bottom = min(max(top + 1, ceil(box_xyxy[3])), height)
    return np.ascontiguousarray(image[top:bottom, left:right])
