"""``tools/stream.py`` with a live source, as a process."""

from __future__ import annotations

import json
import signal
import time
from itertools import count
from pathlib import Path

import pytest

from tests.cli.test_stream import _process
from tests.streaming.servers import HttpServer, jpeg, multipart
from tests.streaming.stand_ins import make_clip, read_clip

pytestmark = pytest.mark.timeout(60)


def _records(path: Path) -> list[dict]:
    lines = path.read_text().splitlines(keepends=True) if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("\n")]


def _wait_for(path: Path, enough, process) -> list[dict]:
    """Records in ``path`` once there are enough."""
    deadline_seconds = time.monotonic() + 40
    while not enough(records := _records(path)):
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline_seconds, records[-3:]
        time.sleep(0.02)
    return records


def _server(width: int, port: int = 0) -> HttpServer:
    return HttpServer(multipart(jpeg(n % 20, width=width, noise=n) for n in count()), port=port)


def test_a_camera_that_comes_back_with_another_size_disturbs_no_file(tmp_path: Path) -> None:
    clip = make_clip(tmp_path / "clip.mp4", ticks=range(400))
    out = tmp_path / "out"
    out.mkdir()
    names = ["--output", out / "{n}.mp4", "--jsonl", out / "{n}.jsonl", "--summary", out / "s.json"]
    first = _server(64)
    try:
        process = _process("--source", first.url(user="me:secret@"), "--source", clip, *names,
                           "--read-timeout", "1s", seconds=0.002)  # fmt: skip
        live = out / "1.part.jsonl"
        _wait_for(live, lambda records: len(records) >= 10, process)
    finally:
        first.kill()
    with _server(96, port=first.port):
        _wait_for(live, lambda records: any("gap" in record for record in records), process)
        enough = len(_records(live)) + 10
        _wait_for(live, lambda records: len(records) >= enough, process)
        _wait_for(out / "2.jsonl", lambda records: len(records) == 400, process)  # the file has ended
        process.send_signal(signal.SIGTERM)
        printed, errors = process.communicate(timeout=40)
    assert process.returncode == 130, errors
    records = _records(out / "1.jsonl")
    gaps = [record["gap"] for record in records if "gap" in record]
    assert [gap["cause"] for gap in gaps] == ["reconnected"]
    indices = [record["frame_index"] for record in records]
    assert indices == sorted(set(indices))
    assert len(read_clip(out / "1.mp4")[0]) == len(records)
    assert [record["frame_index"] for record in _records(out / "2.jsonl")] == list(range(400))
    summary = json.loads((out / "s.json").read_text())["sources"]
    assert [one["outcome"] for one in summary] == ["interrupted", "complete"]
    assert summary[0]["source_seconds_lost"] > 0
    assert summary[0]["source_faults"]["reconnects"] == 1
    for text in (
        printed,
        errors,
        *(path.read_text() for path in out.glob("*.json*")),
    ):
        assert "secret" not in text
