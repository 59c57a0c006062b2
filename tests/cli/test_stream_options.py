"""What the options of ``tools/stream.py`` mean."""

from __future__ import annotations

import math

import pytest

from pcmoe_det.cli import stream_options
from pcmoe_det.cli.stream_options import make_stream_parser
from pcmoe_det.streaming.modes import STREAM_MODES
from pcmoe_det.streaming.sources import SourceOptions
from pcmoe_det.streaming.tracking import TRACKER_NAMES


def _parsed(*options: str):
    return make_stream_parser().parse_args(["--source", "a", *options])


@pytest.mark.parametrize(
    ("text", "seconds"), [("200ms", 0.2), ("0.2s", 0.2), ("2min", 120.0), ("1.5 s", 1.5), (".5s", 0.5)]
)
def test_times_have_units(text: str, seconds: float) -> None:
    arguments = _parsed("--max-latency", text, "--read-timeout", text)
    assert arguments.max_latency == pytest.approx(seconds)
    assert arguments.read_timeout == pytest.approx(seconds)


def test_time_outs_without_a_unit_are_seconds() -> None:
    assert _parsed("--open-timeout", "3").open_timeout == 3.0


def test_words_for_no_limit() -> None:
    arguments = _parsed("--reconnect", "forever", "--frozen-after", "never")
    assert arguments.reconnect is None
    assert arguments.frozen_after == math.inf
    assert _parsed("--reconnect", "0").reconnect == 0


def test_defaults_are_those_of_the_library() -> None:
    arguments, options = _parsed(), SourceOptions()
    assert arguments.open_timeout == options.open_timeout_seconds
    assert arguments.read_timeout == options.read_timeout_seconds
    assert arguments.reconnect == options.reconnect_limit
    assert arguments.frozen_after == options.frozen_after_seconds
    assert (arguments.mode, arguments.max_latency, arguments.preview, arguments.track) == (
        "auto",
        None,
        None,
        None,
    )


def test_names_are_those_of_the_library() -> None:
    assert sorted(stream_options._MODES) == sorted(STREAM_MODES)
    assert sorted(stream_options._TRACKERS) == sorted(TRACKER_NAMES)


def test_options_with_an_optional_value() -> None:
    arguments = _parsed("--preview", "--track")
    assert (arguments.preview, arguments.track) == (8080, "bytetrack")
    assert _parsed("--preview", "9000").preview == 9000
