"""Time stamps of a written video: the source's own, made acceptable to a container."""

from __future__ import annotations

from fractions import Fraction

__all__ = ["DEFAULT_FRAME_RATE", "TimeStamps", "choose_time_base"]

DEFAULT_FRAME_RATE = Fraction(25)
_DEFAULT_TIME_BASE = Fraction(1, 90_000)
# MP4 counts in 1/n with 32 bits; a finer unit would overflow after an hour or two.
_FINEST_TIME_BASE = Fraction(1, 1_000_000)
# A file may start a little late, and its video then does too. Recordings of broadcasts start at any hour of
# their clock: those start at 0, else players show hours of nothing.
_LATEST_START_SECONDS = 10.0
# MP4 stores how long a picture stands in 32 bits: 71 minutes in the finest unit. A camera that was away for a
# night is shown as one hour of its last picture; the JSON Lines tell how long it was.
_LONGEST_STEP_SECONDS = 3600.0
# After a gap a source's clock may go on or begin at any number. Going on means: by the gap's length, give or
# take what it took to connect.
_GAP_TOLERANCE_SECONDS = 2.0


def choose_time_base(source_time_base: Fraction | None) -> Fraction:
    """The unit ``1/n`` s in which the source's time stamps are whole numbers, or 1/90000 s.

    A unit ``m/n`` becomes ``1/n``, because MP4 can only count in ``1/n``.
    """
    if source_time_base is None or source_time_base <= 0:
        return _DEFAULT_TIME_BASE
    unit = Fraction(1, source_time_base.denominator)
    return unit if unit >= _FINEST_TIME_BASE else _DEFAULT_TIME_BASE


class TimeStamps:
    """Turns ``pts_seconds`` into ticks that strictly increase, as a container demands.

    Sources that behave keep their times exactly. A time that repeats or steps back by up to a second is
    moved to the next tick; a larger step back (a clock that was reset) continues one frame after the last.
    A frame without a time comes one frame after the last. A gap takes the time that it took, whatever the
    source's clock does in it. A step of more than an hour becomes an hour. ``adjusted`` counts all of these.
    """

    def __init__(self, time_base: Fraction, frame_rate: Fraction) -> None:
        self.time_base = time_base
        self.frame_ticks = max(1, round(1 / (frame_rate * time_base)))
        self.adjusted = 0
        self._longest_step_ticks = max(self.frame_ticks, int(_LONGEST_STEP_SECONDS / time_base))
        self._offset_ticks = 0
        self._last: int | None = None

    def next_ticks(self, pts_seconds: float | None, *, gap_seconds: float | None = None) -> int:
        """Ticks of the next frame; ``gap_seconds`` is how long nothing came before it, if there was a gap."""
        ticks = None if pts_seconds is None else round(pts_seconds / float(self.time_base))
        if self._last is None:
            self._last = self._start(0 if ticks is None else ticks)
        elif ticks is None:
            self.adjusted += 1
            self._last += self._gap_ticks(gap_seconds or 0.0)
        else:
            step = ticks + self._offset_ticks - self._last
            taken, moves_clock = self._step(step, gap_seconds)
            self.adjusted += taken != step
            self._last += taken
            if moves_clock:
                self._offset_ticks = self._last - ticks
        return self._last

    def _start(self, first: int) -> int:
        if 0 <= first * self.time_base <= _LATEST_START_SECONDS:
            return first
        self._offset_ticks = -first
        return 0

    def _step(self, step: int, gap_seconds: float | None) -> tuple[int, bool]:
        """The step to take where the source's clock makes ``step``, and whether that moves the clock."""
        seconds = float(step * self.time_base)
        if gap_seconds is not None and not 0 < seconds <= gap_seconds + _GAP_TOLERANCE_SECONDS:
            return self._gap_ticks(gap_seconds), True
        if step <= 0:
            return (self.frame_ticks, True) if seconds < -1 else (1, False)
        return min(step, self._longest_step_ticks), step > self._longest_step_ticks

    def _gap_ticks(self, gap_seconds: float) -> int:
        return min(max(self.frame_ticks, round(gap_seconds / self.time_base)), self._longest_step_ticks)
