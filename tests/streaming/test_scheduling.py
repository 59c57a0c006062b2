"""Turns of the one detector."""

from __future__ import annotations

import threading

import pytest

from pcmoe_det.streaming.lanes import ReadFrame, Stream, StreamLane
from pcmoe_det.streaming.scheduling import Bell, take_in_turn
from pcmoe_det.structures import FrameResult
from tests.streaming.stand_ins import StandInSource, detections, frame

pytestmark = pytest.mark.timeout(30)


def _lanes(bell: Bell, counts: dict[str, int]) -> list[StreamLane]:
    """Lanes whose readers have already put so many frames and ended."""
    lanes = []
    for name, count in counts.items():
        lane = StreamLane(Stream(StandInSource(0, source_id=name)), on_change=bell.ring)
        for index in range(count):
            lane.to_detect.put(ReadFrame(frame(index), 0.0, 0.0))
        lanes.append(lane)
    return lanes


def _taken(turns) -> list[str]:
    return [f"{lane.name}{'' if queued is None else queued.frame.frame_index}" for lane, queued in turns]


def test_lanes_take_turns_and_end_once_each() -> None:
    bell = Bell()
    lanes = _lanes(bell, {"a": 3, "b": 1, "c": 2})
    for lane in lanes:
        lane.to_detect.finish()
    taken = _taken(take_in_turn(lanes, bell))
    assert [turn for turn in taken if len(turn) > 1] == ["a0", "b0", "c0", "a1", "c1", "a2"]
    assert sorted(turn for turn in taken if len(turn) == 1) == ["a", "b", "c"]
    assert taken.index("b") > taken.index("b0")


def test_a_lane_whose_results_wait_is_passed_over_until_there_is_room() -> None:
    bell = Bell()
    slow, quick = _lanes(bell, {"s": 2, "q": 3})
    result = FrameResult(frame=frame(), detections=detections())
    while slow.to_render.has_room:
        slow.to_render.put(result)
    turns = take_in_turn([slow, quick], bell)
    assert [next(turns)[0].name for _ in range(3)] == ["q", "q", "q"]
    threading.Thread(target=slow.to_render.get).start()  # wakes the wait for a turn
    assert next(turns)[0].name == "s"


def test_a_frame_wakes_the_waiting_detector() -> None:
    bell = Bell()
    (lane,) = _lanes(bell, {"a": 0})
    threading.Timer(0.05, lambda: lane.to_detect.put(ReadFrame(frame(), 0.0, 0.0))).start()
    assert next(take_in_turn([lane], bell))[1] is not None


def test_a_ring_before_the_wait_is_not_lost() -> None:
    bell = Bell()
    seen = bell.rings
    bell.ring()
    bell.wait(after=seen)  # returns
