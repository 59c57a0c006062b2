"""What holds of every case, whatever goes wrong in it."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path

import av
import cv2
import jsonschema

from pcmoe_det.streaming.jsonl_sink import RECORD_SCHEMA
from tests.faults.bench import Bench, Case, Counted, Ran

__all__ = ["check", "count_of", "part_of"]

_VALIDATOR = jsonschema.Draft202012Validator(RECORD_SCHEMA)
_STOP_LIMIT_SECONDS = 4.0  # the contract's 2 s, on a machine that may be busy
_ORDER = ("mp4", "frames", "crops", "coco", "mot", "jsonl")


def check(case: Case, bench: Bench, ran: Ran) -> None:
    """Compare what happened with what the contract says."""
    expected = case.expected
    assert ran.code is not None, f"no end within {expected.seconds} s\n{ran.stacks}\n{ran.err}"
    everything = ran.out + ran.err
    assert ran.code in expected.codes, everything
    assert "Traceback" not in everything, everything
    assert ran.threads_left == []
    if ran.seconds_after_signal is not None:
        assert ran.seconds_after_signal < _STOP_LIMIT_SECONDS
    if expected.loads is not None and ran.loaded is not None:
        assert ran.loaded == expected.loads
    if ran.code in (1, 2):
        assert _says_one_sentence(ran, expected.says), everything
    else:
        assert re.search(expected.says, everything), everything
    _check_summaries(case, bench, ran)
    _check_secrets(bench, everything)
    _check_files(case, bench, ran)
    if case.look is not None:
        case.look(bench, ran)


def _says_one_sentence(ran: Ran, says: str) -> bool:
    errors = [line for line in ran.err.splitlines() if re.match(r"pcmoe-\w+: error: ", line)]
    return len(errors) == 1 and re.search(says, errors[0]) is not None


def _fits(value: int, expected: Counted) -> bool:
    return value in expected if isinstance(expected, range) else value == expected


def _check_counts(found: Mapping[str, int], expected: Mapping[str, Counted] | None, what: str) -> None:
    if expected is None:
        return
    for cause in {*found, *expected}:
        assert _fits(found.get(cause, 0), expected.get(cause, 0)), (what, found, expected)


def _check_summaries(case: Case, bench: Bench, ran: Ran) -> None:
    expected = case.expected
    path = bench.path_of("summary")
    if "summary" not in bench.outputs or expected.loads is False:
        return
    if not path.is_file():
        assert expected.files in ("none", "mixed"), "there is no summary"
        return
    record = json.loads(path.read_text())
    ran.summaries = record.get("sources", [record])
    has_sinks = any(kind != "summary" for kind in bench.outputs)
    for summary in ran.summaries:
        if has_sinks:
            lost = sum(summary["frames_dropped"].values())
            assert summary["frames_read"] == summary["frames_written"] + lost, summary
        assert ("error" in summary) == (summary["outcome"] == "failed"), summary
    outcomes = [summary["outcome"] for summary in ran.summaries]
    assert ran.code != 0 or "failed" not in outcomes, outcomes
    if expected.outcomes is not None:
        assert outcomes == list(expected.outcomes)
    if expected.reads is not None:
        assert _fits(ran.total("frames_read"), expected.reads), ran.summaries
    if expected.writes is not None:
        assert _fits(ran.total("frames_written"), expected.writes), ran.summaries
    _check_counts(ran.counts("frames_dropped"), expected.drops, "drops")
    _check_counts(ran.counts("source_faults"), expected.faults, "faults")


def _check_secrets(bench: Bench, shown: str) -> None:
    for secret in bench.secrets:
        assert secret not in shown
        for path in bench.out.rglob("*"):
            assert secret not in path.name
            if path.is_file():
                assert secret.encode() not in path.read_bytes()


def part_of(path: Path) -> Path:
    return path.with_name(f"{path.stem}.part{path.suffix}")


def count_of(kind: str, path: Path) -> int:
    """Frames (detections, pictures) of an output, one a frame from the scripted detector. Fails where the
    output is not whole."""
    if kind == "mp4":
        with av.open(str(path)) as container:
            return sum(1 for _ in container.decode(video=0))
    if kind in ("crops", "frames"):
        names = [name for name in path.iterdir() if name.name != ".pcmoe-images"]
        assert all(name.suffix == ".jpg" and cv2.imread(str(name)) is not None for name in names), names
        return len(names)
    text = path.read_text()
    if kind == "coco":
        rows = json.loads(text)
        assert all(set(row) >= {"image_id", "category_id", "bbox", "score"} for row in rows)
        return len(rows)
    assert text == "" or text.endswith("\n")
    lines = text.splitlines()
    if kind == "mot":
        assert all(len([float(number) for number in line.split(",")]) == 10 for line in lines)
        return len(lines)
    records = [json.loads(line) for line in lines]
    for record in records:
        _VALIDATOR.validate(record)
    indices = [record["frame_index"] for record in records]
    assert indices == sorted(set(indices)), "a frame was written twice, or out of order"
    return len(records)


def _check_files(case: Case, bench: Bench, ran: Ran) -> None:
    files = case.expected.files
    kinds = [kind for kind in _ORDER if kind in bench.outputs]
    if files == "none":
        left = sorted(path.name for path in bench.out.rglob("*") if path != bench.path_of("summary"))
        assert left == [], left
        return
    if files == "mixed" or bench.several:
        for kind in kinds:
            for path in bench.paths_of(kind):
                for name in (path, part_of(path)):
                    if name.exists() and name not in bench.not_ours:
                        count_of(kind, name)
        if files == "final":
            assert not list(bench.out.rglob("*.part*"))
        return
    written = ran.total("frames_written") if ran.summaries else None
    for kind in kinds:
        path = bench.path_of(kind)
        kept = path if files == "final" or kind in ("crops", "frames") else part_of(path)
        if files == "final":
            assert not part_of(path).exists(), kind
        elif kept != path:
            assert not path.exists(), f"{path} looks like a whole result"
        if written is None:
            count_of(kind, kept)
        elif written or (files == "final" and kind not in ("mp4", "crops", "frames")):
            count = count_of(kind, kept)
            # An output before the one that failed has taken that frame.
            assert count in ((written,) if files == "final" else (written, written + 1)), (kind, count)
        elif kept.exists():
            assert count_of(kind, kept) <= 1
