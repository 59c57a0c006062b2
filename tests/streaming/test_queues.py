"""Queues: order, policies, ends."""

from __future__ import annotations

import threading

import pytest

from pcmoe_det.streaming.queues import BoundedQueue, QueueEnded, QueuePolicy

pytestmark = pytest.mark.timeout(30)


def _in_thread(work) -> tuple[threading.Thread, list[object]]:
    """Runs ``work``; its result or exception lands in the list."""
    outcome: list[object] = []

    def body() -> None:
        try:
            outcome.append(work())
        except BaseException as error:
            outcome.append(error)

    thread = threading.Thread(target=body, daemon=True)
    thread.start()
    return thread, outcome


def test_items_come_out_in_order_and_end_with_the_end_marker() -> None:
    queue: BoundedQueue[int] = BoundedQueue(3)
    for number in range(3):
        queue.put(number)
    queue.finish()
    assert list(queue) == [0, 1, 2]
    assert queue.dropped == {}
    with pytest.raises(QueueEnded):
        queue.get()


def test_every_frame_waits_for_room_and_loses_nothing() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, policy=QueuePolicy.EVERY_FRAME)
    producer, outcome = _in_thread(lambda: [queue.put(number) for number in range(50)] and queue.finish())
    received = list(queue)
    producer.join()
    assert received == list(range(50))
    assert outcome == [None]
    assert queue.dropped == {}


def test_a_full_queue_times_out_and_does_not_take_the_item() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.put(0)
    with pytest.raises(TimeoutError):
        queue.put(1, timeout_seconds=0.01)
    queue.finish()
    assert list(queue) == [0]


def test_freshest_drops_the_oldest_and_counts_it() -> None:
    queue: BoundedQueue[int] = BoundedQueue(2, policy=QueuePolicy.FRESHEST)
    for number in range(5):
        queue.put(number)
    assert len(queue) == 2
    queue.finish()
    assert list(queue) == [3, 4]
    assert queue.dropped == {"replaced_by_newer": 3}


def test_close_wakes_a_waiting_producer_and_counts_its_item() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.put(0)
    producer, outcome = _in_thread(lambda: queue.put(1))
    queue.close(cause="stopped")
    producer.join()
    assert isinstance(outcome[0], QueueEnded)
    assert queue.dropped == {"stopped": 2}


@pytest.mark.parametrize("end", ["close", "finish"])
def test_both_ends_wake_a_waiting_consumer(end: str) -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    consumer, outcome = _in_thread(queue.get)
    if end == "close":
        queue.close(cause="failed")
    else:
        queue.finish()
    consumer.join()
    assert isinstance(outcome[0], QueueEnded)


def test_the_first_cause_stays() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.close(cause="failed")
    queue.close(cause="stopped")
    with pytest.raises(QueueEnded):
        queue.put(1)
    assert queue.dropped == {"failed": 1}


def test_get_times_out_on_an_open_empty_queue() -> None:
    with pytest.raises(TimeoutError):
        BoundedQueue(1).get(timeout_seconds=0.01)


def test_put_after_the_end_marker_is_a_bug() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    queue.finish()
    with pytest.raises(RuntimeError, match="after finish"):
        queue.put(1)


def test_a_queue_needs_room() -> None:
    with pytest.raises(ValueError, match="at least 1, not 0"):
        BoundedQueue(0)


def test_it_tells_whether_there_is_room_and_whether_it_has_ended() -> None:
    queue: BoundedQueue[int] = BoundedQueue(1)
    assert queue.has_room
    queue.put(0)
    assert not queue.has_room
    queue.finish()
    assert not queue.has_ended  # one is left
    assert queue.take_waiting() == 0
    assert queue.take_waiting() is None
    assert queue.has_ended
    full: BoundedQueue[int] = BoundedQueue(1)
    full.put(0)
    full.close(cause="failed")
    assert full.has_room  # a put is answered at once, with QueueEnded
    assert full.has_ended


def test_every_change_is_told() -> None:
    changes: list[int] = []
    queue: BoundedQueue[int] = BoundedQueue(2, on_change=lambda: changes.append(len(queue)))
    queue.put(0)
    queue.put(1)
    queue.get()
    queue.take_waiting()
    queue.take_waiting()  # nothing there: no change
    queue.finish()
    queue.close(cause="stopped")
    assert changes == [1, 2, 1, 0, 0, 0]
