"""From what a user typed to an open source."""

from __future__ import annotations

import glob
from pathlib import Path

from pcmoe_det.streaming.addresses import is_address
from pcmoe_det.streaming.camera_source import CameraSource
from pcmoe_det.streaming.file_source import FileSource
from pcmoe_det.streaming.image_source import ImageSource
from pcmoe_det.streaming.mjpeg_source import MjpegSource
from pcmoe_det.streaming.network_source import NetworkSource
from pcmoe_det.streaming.sources import FrameSource, SourceOptions
from pcmoe_det.streaming.still_pictures import PICTURE_SUFFIXES

__all__ = ["open_camera", "open_source"]

_DEFAULT_OPTIONS = SourceOptions()


def open_source(location: str, *, options: SourceOptions = _DEFAULT_OPTIONS) -> FrameSource:
    """Open a source.

    Args:
        location: A video file; a picture, a folder of pictures or a pattern such as ``street/*.jpg``; an
            address ``rtsp://``, ``rtsps://``, ``http://``, ``https://`` or ``udp://``; or ``-`` for MJPEG on
            standard input. What exists under the very name is never taken for a pattern.
        options: Time-outs, and what a live source does when it is lost.

    Raises:
        UsageError: An address that cannot be understood, or a terminal as standard input.
        SourceError: The source cannot be used; the message never holds credentials.
    """
    if location == "-":
        return MjpegSource()
    if is_address(location):
        return NetworkSource(location, options=options)
    if _holds_pictures(location):
        return ImageSource(location)
    return FileSource(location, options=options)


def open_camera(index: int, *, options: SourceOptions = _DEFAULT_OPTIONS) -> FrameSource:
    """Open a camera by its index from 0.

    Raises:
        SourceError: There is no such camera, or it gives no picture.
    """
    return CameraSource(index, options=options)


def _holds_pictures(location: str) -> bool:
    path = Path(location)
    try:
        if path.is_dir():
            return True
        if path.exists():
            return path.suffix.lower() in PICTURE_SUFFIXES
    except (OSError, ValueError):  # ValueError: a NUL character in the path
        return False
    return glob.has_magic(location)
