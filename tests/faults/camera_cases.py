"""Cameras that are not there, are lost, hang, freeze or send odd pictures."""

# ruff: noqa: E501 - a table reads best with a line for a case.

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

import pcmoe_det.streaming
from pcmoe_det.streaming.camera_source import CameraSource
from pcmoe_det.streaming.reconnect import Backoff
from tests.faults.bench import Bench, Case, Expected, Ran, at_least, done, refused
from tests.faults.checks import count_of
from tests.faults.clips import CLIP_FRAMES, make
from tests.faults.network_cases import QUICK_TIME_OUTS

__all__ = ["camera_cases"]


class _Camera:
    """A ``cv2.VideoCapture`` that gives a picture every 10 ms, and what ``odd`` says instead."""

    def __init__(
        self, odd: dict[int, Any], *, opens: bool = True, width: int = 64, still: bool = False
    ) -> None:
        self._odd, self._opens, self._width, self._still = odd, opens, width, still
        self._reads = -1

    def isOpened(self) -> bool:
        return self._opens

    def read(self) -> tuple[bool, Any]:
        time.sleep(0.01)
        self._reads += 1
        answer = self._odd.get(
            self._reads, self._odd.get(-1) if self._reads > self._odd.get(-2, 10**9) else None
        )
        if callable(answer):
            answer = answer()
        if answer is False:
            return False, None
        if isinstance(answer, np.ndarray):
            return True, answer
        value = 30 if self._still else 10 + self._reads % 200
        return True, np.full((48, self._width, 3), value, np.uint8)

    def get(self, property_id: int) -> float:
        return 100.0 if property_id == cv2.CAP_PROP_FPS else 0.0

    def release(self) -> None:
        pass


def camera_cases() -> list[Case]:
    def camera(*words: object, captures: Callable[[int], _Camera]) -> Callable[[Bench], list[object]]:
        """The n-th time it is opened it is the n-th capture."""

        def arrange(bench: Bench) -> list[object]:
            opened = itertools.count()

            def open_camera(index: int, *, options: Any) -> CameraSource:
                return CameraSource(
                    index,
                    options=options,
                    open_capture=lambda _: captures(next(opened)),
                    backoff=Backoff(options.reconnect_limit, first_seconds=0.05),
                )

            bench.patch.setattr(pcmoe_det.streaming, "open_camera", open_camera)
            return ["--camera", "0", "--mode", "every-frame", *QUICK_TIME_OUTS, *words]

        return arrange

    def raises() -> None:
        raise RuntimeError("the driver is confused")

    def cv_error() -> None:
        raise cv2.error("unknown pixel format")

    unplugged = {-1: False, -2: 20}
    forty = ["--max-frames", "40"]
    lost = Expected(code=1, says="camera:0 was lost after .* 2 attempts", files="part", reads=range(5, 25),
                    outcomes=["failed"])  # fmt: skip
    back = Expected(
        reads=40, writes=40, drops={}, faults={"reconnects": at_least(1), "failed_reads": at_least(0)},
    )  # fmt: skip
    grey = np.full((48, 64), 90, np.uint8)
    rows: list[tuple[str, Expected, Callable[[Bench], list[object]]]] = [
        ("is not there", refused("camera:0 cannot be opened"), camera(captures=lambda n: _Camera({}, opens=False))),
        ("gives no picture", refused("gives no pictures"), camera(captures=lambda n: _Camera({-1: False, -2: -1}))),
        ("hangs from the start", refused("no picture came within"),
         camera(captures=lambda n: _Camera({0: lambda: time.sleep(2.5)}))),
        ("refused by OpenCV", refused("camera:0 cannot be opened.*unknown pixel"),
         camera(captures=lambda n: cv_error())),
        ("one read fails", Expected(reads=40, writes=40, drops={}, faults={"failed_reads": 1}),
         camera(*forty, captures=lambda n: _Camera({25: False}))),
        ("unplugged for good", lost, camera("--reconnect", "2", captures=lambda n: _Camera(unplugged, opens=not n))),
        ("unplugged and plugged in again", back, camera(*forty, captures=lambda n: _Camera({} if n else unplugged))),
        ("back with another size", back,
         camera(*forty, captures=lambda n: _Camera({} if n else unplugged, width=96 if n else 64))),
        ("its driver raises", back,
         camera(*forty, captures=lambda n: _Camera({} if n else {20: raises}))),
        ("its driver hangs", back, camera(*forty, captures=lambda n: _Camera({} if n else {20: lambda: time.sleep(3)}))),
        ("frozen", Expected(reads=90, drops={}, faults={"frozen": 1, "reconnects": at_least(1)}, says="is frozen"),
         camera("--max-frames", "90", "--frozen-after", "200ms", captures=lambda n: _Camera({}, still=not n))),
        ("gives one grey picture", done(40), camera(*forty, captures=lambda n: _Camera({25: grey}))),
        ("changes its size", done(40), camera(*forty, captures=lambda n: _Camera({25: np.zeros((96, 64, 3), np.uint8)}))),
        ("gives an empty picture", Expected(reads=40, drops={}, faults={"failed_reads": 1}),
         camera(*forty, captures=lambda n: _Camera({25: np.zeros((0, 0, 3), np.uint8)}))),
    ]  # fmt: skip
    cases = [Case("camera", "camera", fault, expected, arrange) for fault, expected, arrange in rows]

    def beside_a_file(bench: Bench) -> list[object]:
        bench.several = True
        options = camera("--reconnect", "1", captures=lambda n: _Camera(unplugged, opens=not n))(bench)
        return [*options, "--source", make(bench.folder)]

    def file_is_whole(bench: Bench, ran: Ran) -> None:
        for kind in ("mp4", "jsonl"):
            assert count_of(kind, bench.paths_of(kind)[0]) == CLIP_FRAMES

    expected = Expected(code=1, says="camera:0 was lost", files="mixed", outcomes=["complete", "failed"])
    return [
        *cases,
        Case("camera", "camera and file", "the camera is lost", expected, beside_a_file, file_is_whole),
    ]
