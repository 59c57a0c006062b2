"""A window with the newest picture."""

from __future__ import annotations

import contextlib
import os
import re
import socket
import sys
import threading
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from pcmoe_det.errors import OutputError
from pcmoe_det.streaming.sinks import SinkOutcome
from pcmoe_det.structures import FrameResult

__all__ = ["WindowSink", "check_display"]

_LARGEST_WINDOW = (1280, 720)
_QUIT_KEYS = (ord("q"), ord("Q"), 27)
_CONNECT_TIMEOUT_SECONDS = 2.0
_WITHOUT = "leave --show out, and write a video with --output instead"


def check_display() -> None:
    """Raise ``OutputError`` where a window cannot be opened.

    On Linux the display is also connected to, because OpenCV's window system ends the whole process when
    that fails.
    """
    if not sys.platform.startswith("linux"):
        return
    display = os.environ.get("DISPLAY", "")
    if not display:
        wayland = "only WAYLAND_DISPLAY is set, and OpenCV's windows need X11 (XWayland)"
        reason = (
            wayland if os.environ.get("WAYLAND_DISPLAY") else "neither DISPLAY nor WAYLAND_DISPLAY is set"
        )
        raise OutputError(f"--show needs a screen and this session has none ({reason}); {_WITHOUT}")
    match = re.fullmatch(r"(?P<host>.*):(?P<number>\d+)(\.\d+)?", display)
    if match is None:
        raise OutputError(
            f"--show cannot use DISPLAY={display}, which is not of the form host:number; {_WITHOUT}"
        )
    host, number = match["host"].removeprefix("unix/"), int(match["number"])
    if not _can_connect(host, number):
        raise OutputError(f"--show needs a screen and nothing answers at DISPLAY={display}; {_WITHOUT}")


class WindowSink:
    """Keeps the newest picture for ``show_newest``, which the main thread must call often.

    Window systems want to be used from one thread, on some systems from the main one, so the renderer thread
    only leaves the picture here.

    Args:
        title: The window's title.
    """

    stage = "show"
    needs_picture = True

    def __init__(self, title: str) -> None:
        self._title = title
        self._lock = threading.Lock()
        self._newest: NDArray[np.uint8] | None = None
        self._is_open = False

    def write(self, result: FrameResult, picture: NDArray[np.uint8] | None) -> None:  # noqa: ARG002
        with self._lock:
            self._newest = picture

    def close(self, outcome: SinkOutcome) -> list[Path]:  # noqa: ARG002
        return []

    def show_newest(self) -> bool:
        """Show the newest picture and handle keys; main thread only.

        Returns:
            False if the user pressed q or Escape or closed the window.

        Raises:
            OutputError: No window can be opened.
        """
        with self._lock:
            picture, self._newest = self._newest, None
        try:
            if picture is not None:
                self._open(height=picture.shape[0], width=picture.shape[1])
                cv2.imshow(self._title, picture)
            if not self._is_open:
                return True
            if (cv2.waitKey(1) & 0xFF) in _QUIT_KEYS:
                return False
            return cv2.getWindowProperty(self._title, cv2.WND_PROP_VISIBLE) >= 1
        except cv2.error as error:
            raise OutputError(
                f"no window can be opened with this build of OpenCV; {_WITHOUT} ({error})"
            ) from error

    def close_window(self) -> None:
        """Close the window; main thread only."""
        if self._is_open:
            with contextlib.suppress(cv2.error):
                cv2.destroyWindow(self._title)
            self._is_open = False

    def _open(self, *, height: int, width: int) -> None:
        if self._is_open:
            return
        cv2.namedWindow(self._title, cv2.WINDOW_NORMAL | cv2.WINDOW_KEEPRATIO | cv2.WINDOW_GUI_NORMAL)
        scale = min(1.0, _LARGEST_WINDOW[0] / width, _LARGEST_WINDOW[1] / height)
        cv2.resizeWindow(self._title, max(1, round(width * scale)), max(1, round(height * scale)))
        self._is_open = True


def _can_connect(host: str, number: int) -> bool:
    if host in ("", "unix"):
        path = f"/tmp/.X11-unix/X{number}"
        addresses: list[tuple[int, str | tuple[str, int]]] = [
            (socket.AF_UNIX, path),
            (socket.AF_UNIX, "\0" + path),
        ]
    else:
        addresses = [(socket.AF_INET, (host, 6000 + number))]
    for family, address in addresses:
        with contextlib.suppress(OSError), socket.socket(family, socket.SOCK_STREAM) as connection:
            connection.settimeout(_CONNECT_TIMEOUT_SECONDS)
            connection.connect(address)
            return True
    return False
