"""From what a user typed to an open source."""

from __future__ import annotations

import re

from pcmoe_det.errors import UsageError
from pcmoe_det.streaming.camera_source import CameraSource
from pcmoe_det.streaming.file_source import FileSource
from pcmoe_det.streaming.sources import FrameSource

__all__ = ["open_camera", "open_source"]

_ADDRESS = re.compile(r"^([a-z][a-z0-9+.-]*)://", re.IGNORECASE)


def open_source(location: str) -> FrameSource:
    """Open a video file.

    Raises:
        UsageError: ``location`` is a network address or standard input, which are not supported yet.
        SourceError: The file cannot be used.
    """
    address = _ADDRESS.match(location)
    if address is not None:
        # Only the scheme is named: the rest may hold a password.
        raise UsageError(
            f"network sources are not supported yet ({address.group(1)}://...); give a video file"
        )
    if location == "-":
        raise UsageError("standard input is not supported as a source yet; give a video file")
    return FileSource(location)


def open_camera(index: int) -> FrameSource:
    """Open a camera by its index from 0.

    Raises:
        SourceError: There is no such camera.
    """
    return CameraSource(index)
