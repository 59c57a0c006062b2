"""Sources that are lost and come back, with scripted connections and made-up times."""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Iterator
from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

from pcmoe_det.errors import SourceError
from pcmoe_det.streaming import live_source
from pcmoe_det.streaming.faults import FaultCounter
from pcmoe_det.streaming.live_connection import ConnectionFacts, Picture
from pcmoe_det.streaming.live_source import LiveSource
from pcmoe_det.streaming.reconnect import Backoff
from pcmoe_det.streaming.sources import SourceOptions
from pcmoe_det.structures import Gap

pytestmark = pytest.mark.timeout(30)

_chance = np.random.default_rng(5)


def _picture(at_seconds: float, *, width: int = 32, stamp: float | None = None, value: int | None = None):
    shape = (24, width, 3)
    image = _chance.integers(0, 255, shape, np.uint8) if value is None else np.full(shape, value, np.uint8)
    return Picture(image=image, stamp_seconds=stamp, captured_at_seconds=at_seconds)


class Script:
    """One connection: pictures, an error to raise, or an event to wait for; then it ends. ``refuse`` fails to
    open, ``open_wait`` blocks in opening. The first connection of a source goes on behind its first step only
    after ``go``, because pictures that come before the iteration make room for newer ones."""

    def __init__(self, *steps, refuse: str | None = None, open_wait=None, is_live: bool = True) -> None:
        self.steps, self.refuse, self.open_wait = steps, refuse, open_wait
        self.facts = ConnectionFacts(is_live=is_live, frame_rate=Fraction(25))
        self.opened = threading.Event()
        self.go = threading.Event()
        self.closed = threading.Event()

    def open(self) -> Script:
        self.opened.set()
        if self.open_wait is not None:
            self.open_wait.wait()
        if self.refuse is not None:
            raise SourceError(self.refuse)
        return self

    def pictures(self) -> Iterator[Picture]:
        for index, step in enumerate(self.steps):
            if index == 1:
                self.go.wait()
            if isinstance(step, threading.Event):
                step.wait()
            elif isinstance(step, BaseException):
                raise step
            else:
                yield step

    def close(self) -> None:
        self.closed.set()


def _source(*scripts: Script, limit: int | None = None, first_seconds: float = 0.0, **options) -> LiveSource:
    """A source whose n-th connection follows the n-th script."""
    waiting = list(scripts)
    for script in scripts[1:]:
        script.go.set()

    def connect(faults: FaultCounter) -> Script:
        return waiting.pop(0).open()

    return LiveSource(
        connect,
        source_id="made",
        options=SourceOptions(reconnect_limit=limit, **options),
        clock=lambda: 1000.0,
        backoff=Backoff(limit, first_seconds=first_seconds),
    )


def _until_error(source: LiveSource, first: Script) -> tuple[list, str]:
    frames = []
    with pytest.raises(SourceError) as caught:
        for frame in source:
            frames.append(frame)
            first.go.set()
    source.close()
    return frames, str(caught.value)


def test_what_follows_a_loss_carries_the_gap_and_goes_on_counting(caplog: pytest.LogCaptureFixture) -> None:
    first = Script(_picture(10.0), _picture(10.5), SourceError("the cable"))
    source = _source(
        first,
        Script(refuse="nobody there"),
        Script(_picture(14.5, width=48), _picture(15.0, width=48)),
        limit=1,
    )
    # The third connection ends too and the one attempt after it fails: there is no fourth script.
    source._backoff._limit = 2
    frames, message = _until_error(source, first)
    assert [frame.frame_index for frame in frames] == [0, 1, 2, 3]
    assert [frame.pts_seconds for frame in frames] == [0.0, 0.5, 4.5, 5.0]
    assert [frame.captured_at_seconds for frame in frames] == [10.0, 10.5, 14.5, 15.0]
    assert [frame.gap for frame in frames] == [None, None, Gap("reconnected", 4.0), None]
    assert [frame.image.shape[1] for frame in frames] == [32, 32, 48, 48]
    assert source.faults == {"reconnects": 1, "failed_reconnects": 3}
    assert "made was lost after 4 frames: it ended; 2 attempts" in message
    warnings = [record.message for record in caplog.records if record.levelno >= logging.WARNING]
    assert warnings[:2] == [
        "made was lost after 2 frames: the cable; trying to get it back",
        "made is back after 4.0 s",
    ]


def test_stamps_of_the_sender_are_kept_and_a_new_sender_goes_on_by_the_clock() -> None:
    pictures = ((10.0, 95443.0), (10.1, 95443.04), (10.11, 95443.08))
    first = Script(*(_picture(at_seconds, stamp=stamp) for at_seconds, stamp in pictures))
    source = _source(first, Script(_picture(12.11, stamp=7.0), _picture(12.3, stamp=7.04)), limit=1)
    frames, _ = _until_error(source, first)
    assert [frame.pts_seconds for frame in frames] == pytest.approx([0.0, 0.04, 0.08, 2.08, 2.12])


def test_the_seconds_lost_add_up_and_a_loss_that_lasts_counts_too() -> None:
    hold = threading.Event()
    first = Script(_picture(10.0), SourceError("x"))
    first.go.set()
    source = _source(
        first,
        Script(_picture(13.0), SourceError("y")),
        Script(_picture(990.0), SourceError("z")),
        Script(open_wait=hold),
    )
    frames = iter(source)
    assert [next(frames).captured_at_seconds for _ in range(3)] == [10.0, 13.0, 990.0]
    assert source.seconds_lost == 3.0 + 977.0
    ended = threading.Thread(target=lambda: list(frames), daemon=True)
    ended.start()
    while source.seconds_lost == 980.0:
        pass
    assert source.seconds_lost == 980.0 + 10.0  # the clock stands at 1000
    source.interrupt()
    ended.join(5)
    assert not ended.is_alive()
    hold.set()


def test_the_first_connection_is_tried_once_and_its_reason_named() -> None:
    spare = Script(_picture(0.0))
    with pytest.raises(SourceError, match=r"^made cannot be opened: no route$"):
        _source(Script(refuse="no route"), spare)
    assert not spare.opened.is_set()


def test_a_source_without_a_picture_is_refused() -> None:
    with pytest.raises(SourceError, match="ended before the first picture"):
        _source(Script())


def test_an_unforeseen_error_of_a_connection_is_a_loss() -> None:
    first = Script(_picture(1.0), RuntimeError("odd"))
    source = _source(first, limit=0)
    frames, message = _until_error(source, first)
    assert len(frames) == 1
    assert "RuntimeError: odd" in message


def test_a_change_of_size_in_mid_stream_is_a_gap_without_loss() -> None:
    first = Script(_picture(1.0), _picture(1.1, width=40), _picture(1.2, width=40))
    source = _source(first, limit=0)
    frames, _ = _until_error(source, first)
    assert [frame.gap for frame in frames] == [None, Gap("size_changed", 0.0), None]
    assert source.faults == {}


def test_a_file_on_a_server_ends_at_its_end() -> None:
    spare = Script(_picture(9.0))
    pictures = [Picture(_picture(0.0).image, index / 10, float(index), index) for index in (0, 1, 4)]
    first = Script(*pictures, is_live=False)
    first.go.set()
    source = _source(first, spare)
    frames = list(source)
    assert [frame.frame_index for frame in frames] == [0, 1, 4]
    assert [frame.pts_seconds for frame in frames] == [0.0, 0.1, 0.4]
    assert not source.is_live
    assert not spare.opened.is_set()


@pytest.mark.parametrize("end", [[], [SourceError("reset")]])
def test_a_live_source_that_has_become_a_recording_has_ended(end, caplog: pytest.LogCaptureFixture) -> None:
    first = Script(_picture(0.0), _picture(1.0), *end)
    recording = [replace(_picture(index / 10), index=index) for index in range(3)]
    again = [Script(*recording, is_live=False) for _ in range(3)]
    first.go.set()
    source = _source(first, *again)
    source._clock = itertools.count(1000.0, 20.0).__next__
    assert [frame.frame_index for frame in source] == [0, 1]
    assert [script.opened.is_set() for script in again] == [True, True, True]
    assert source.faults == {"failed_reconnects": 2}
    assert "made has ended: what is there now is a recording" in caplog.text


def test_a_recording_that_answers_for_a_moment_is_passed_over() -> None:
    first, recording = Script(_picture(0.0)), Script(_picture(0.0), is_live=False)
    first.go.set()
    source = _source(first, recording, Script(_picture(5.0)), limit=2)
    frames, _ = _until_error(source, first)
    assert [frame.captured_at_seconds for frame in frames] == [0.0, 5.0]
    assert source.faults["reconnects"] == 1


def test_a_file_on_a_server_that_breaks_off_is_an_error() -> None:
    spare = Script(_picture(9.0))
    first = Script(_picture(0.0), SourceError("reset"), is_live=False)
    source = _source(first, spare)
    frames, message = _until_error(source, first)
    assert len(frames) == 1
    assert message == "made was lost after 1 frames: reset"
    assert not spare.opened.is_set()


def test_a_frozen_source_is_counted_logged_once_and_opened_again(caplog: pytest.LogCaptureFixture) -> None:
    still = [_picture(10.0 + second, value=7) for second in range(40)]
    first, second = Script(*still), Script(_picture(60.0, value=7), _picture(61.0), _picture(62.0))
    source = _source(first, second, limit=0, frozen_after_seconds=5.0)
    source._backoff._limit = 1
    frames, _ = _until_error(source, first)
    assert [frame.captured_at_seconds for frame in frames] == [10, 11, 12, 13, 14, 15, 60, 61, 62]
    assert frames[6].gap == Gap("reconnected", 45.0)
    assert source.faults == {"frozen": 1, "reconnects": 1, "failed_reconnects": 1}
    assert sum("is frozen" in record.message for record in caplog.records) == 1
    assert first.closed.wait(5)


def test_before_the_iteration_old_pictures_make_room_for_new_ones() -> None:
    sent, hold = threading.Event(), threading.Event()

    class Sent(threading.Event):
        def wait(self, timeout: float | None = None) -> bool:
            sent.set()
            return hold.wait()

    first = Script(*(_picture(float(second)) for second in range(50)), Sent())
    first.go.set()
    source = _source(first, limit=0)
    assert sent.wait(5)
    assert next(iter(source)).captured_at_seconds == 48.0  # the newest two are held
    source.close()
    hold.set()


@pytest.mark.parametrize("where", ["reading", "opening", "waiting"])
def test_interrupt_ends_whatever_it_waits_for(where: str) -> None:
    hold = threading.Event()
    lost = SourceError("gone")
    scripts = {
        "reading": [Script(_picture(1.0), hold)],
        "opening": [Script(_picture(1.0), lost), Script(open_wait=hold)],
        "waiting": [Script(_picture(1.0), lost), Script(_picture(2.0))],
    }[where]
    scripts[0].go.set()
    source = _source(*scripts, first_seconds=1000.0 if where == "waiting" else 0.0)
    frames: list = []
    first = threading.Event()

    def read() -> None:
        for frame in source:
            frames.append(frame)
            first.set()

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert first.wait(5)
    if where == "opening":
        assert scripts[1].opened.wait(5)
    source.interrupt()
    reader.join(5)
    assert not reader.is_alive()
    assert len(frames) == 1
    source.close()
    hold.set()
    if where != "waiting":
        assert scripts[0].closed.wait(5)  # the thread left behind closes what it opened


def test_a_connection_that_hangs_is_left_behind_after_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_source, "_GRACE_SECONDS", 0.05)
    hold = threading.Event()
    hanging = Script(_picture(1.0), hold)
    hanging.go.set()
    source = _source(hanging, Script(_picture(5.0)), limit=1, read_timeout_seconds=0.1)
    frames = iter(source)
    assert next(frames).gap is None
    assert next(frames).gap == Gap("reconnected", 4.0)
    assert not hanging.closed.is_set()
    hold.set()
    assert hanging.closed.wait(5)
    source.close()


def test_opening_that_hangs_ends_at_the_time_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(live_source, "_GRACE_SECONDS", 0.0)
    hold = threading.Event()
    hanging = Script(_picture(1.0), open_wait=hold)
    with pytest.raises(SourceError, match=r"no answer within 0\.1 s"):
        _source(hanging, open_timeout_seconds=0.1)
    hold.set()
    assert hanging.closed.wait(5)
