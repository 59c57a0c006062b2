"""``pcmoe-stream`` with a detector that costs nothing: python -m tests.faults.driver MOMENTS OPTIONS...

MOMENTS is JSON: seconds that a stage takes (``load``, ``detect``, ``close``, ``write``). What goes on is said
on standard error, for whoever wants to interrupt it.
"""

from __future__ import annotations

import json
import os
import sys
import time

from pcmoe_det.cli import stream
from pcmoe_det.streaming import jsonl_sink
from tests.streaming.stand_ins import CLASS_NAMES, detections

MOMENTS = json.loads(sys.argv.pop(1))


def _say(what: str) -> None:
    # In one piece: several threads say something at once, and ``print`` writes the end of a line apart.
    os.write(sys.stderr.fileno(), f"{what}\n".encode())


class _Detector:
    """Finds a box of nine tenths of the picture, which tells the picture's size."""

    class_names = CLASS_NAMES

    def __init__(self) -> None:
        self._count = 0

    def detect(self, images):
        time.sleep(MOMENTS.get("detect", 0.0))
        self._count += len(images)
        _say(f"detected {self._count}")
        height, width = images[0].shape[:2]
        return [detections((0, 0, width * 0.9, height * 0.9, 0.9, 1))]


def _load(arguments: object) -> _Detector:
    _say("loading")
    time.sleep(MOMENTS.get("load", 0.0))
    return _Detector()


class _Sink(jsonl_sink.JsonLinesSink):
    def write(self, result, picture):
        if MOMENTS.get("write"):
            _say("writing")
            time.sleep(MOMENTS["write"])
        super().write(result, picture)

    def close(self, outcome):
        _say("closing")
        time.sleep(MOMENTS.get("close", 0.0))
        return super().close(outcome)


stream._loader = lambda opened: _load
import pcmoe_det.streaming  # noqa: E402

pcmoe_det.streaming.JsonLinesSink = _Sink
raise SystemExit(stream.entry())
