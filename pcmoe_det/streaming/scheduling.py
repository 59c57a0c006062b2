"""Which stream the one detector serves next."""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence

from pcmoe_det.streaming.lanes import ReadFrame, StreamLane

__all__ = ["Bell", "take_in_turn"]


class Bell:
    """Wakes one thread that watches many queues. Ringing before the wait is not lost."""

    def __init__(self) -> None:
        self._changed = threading.Condition(threading.Lock())
        self._rings = 0

    def ring(self) -> None:
        """Something changed; any thread."""
        with self._changed:
            self._rings += 1
            self._changed.notify_all()

    @property
    def rings(self) -> int:
        """How often it rang."""
        with self._changed:
            return self._rings

    def wait(self, *, after: int) -> None:
        """Wait until it has rung more than ``after`` times."""
        with self._changed:
            self._changed.wait_for(lambda: self._rings > after)


def take_in_turn(lanes: Sequence[StreamLane], bell: Bell) -> Iterator[tuple[StreamLane, ReadFrame | None]]:
    """Waiting frames, round robin over the lanes that have one, until every lane has ended.

    A lane whose results wait for a slow output is passed over: the detector must never wait for one stream
    while another has a frame. When a lane ends it is given once with None.
    """
    running = list(lanes)
    turn = 0
    while running:
        rings = bell.rings
        for offset in range(len(running)):
            position = (turn + offset) % len(running)
            lane = running[position]
            if lane.to_detect.has_ended:
                del running[position]
                turn = position
                yield lane, None
                break
            if len(lane.to_detect) and lane.to_render.has_room:
                turn = position + 1
                # Only stopping or failing takes a frame away between the question and this.
                queued = lane.to_detect.take_waiting()
                if queued is not None:
                    yield lane, queued
                break
        else:
            bell.wait(after=rings)
