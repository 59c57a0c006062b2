"""Names of outputs of one and of several sources."""

from __future__ import annotations

import importlib.resources
from pathlib import Path

import pytest

from pcmoe_det.cli.stream_options import make_stream_parser
from pcmoe_det.cli.stream_outputs import check_outputs, file_stem
from pcmoe_det.errors import OutputError, PcmoeError, UsageError


def _names(locations: list[str | int], *options: object) -> list[dict[str, str]]:
    arguments = make_stream_parser().parse_args([str(option) for option in options])
    outputs, _ = check_outputs(arguments, locations)
    return [{option: target.path.name for option, target in output.files.items()} for output in outputs]


@pytest.mark.parametrize(
    ("location", "stem"),
    [
        ("videos/street one.mp4", "street-one"),
        (2, "camera-2"),
        ("-", "stdin"),
        ("rtsp://me:secret@cam.local:554/live/1?key=hidden", "cam.local-554-live-1"),
        ("http://cam.local/user=admin_password=hidden_channel=1", None),
        ("frames/*.png", "source"),
        ("..", "source"),
    ],
)
def test_names_of_sources(location: str | int, stem: str | None) -> None:
    found = file_stem(location)
    assert "hidden" not in found
    assert "secret" not in found
    assert "/" not in found
    if stem is not None:
        assert found == stem


def test_one_source_takes_names_as_they_are_and_folders(tmp_path: Path) -> None:
    assert _names(["a.mp4"], "--jsonl", tmp_path / "x.jsonl") == [{"jsonl": "x.jsonl"}]
    assert _names(["a.mp4"], "--jsonl", tmp_path, "--output", tmp_path) == [
        {"output": "a.mp4", "jsonl": "a.jsonl"}
    ]


def test_a_limit_of_pictures_needs_pictures(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--max-images needs --crops or --frames"):
        _names(["a.mp4"], "--max-images", 5, "--jsonl", tmp_path / "x.jsonl")
    assert _names(["a.mp4"], "--max-images", 5, "--crops", tmp_path / "crops") == [{}]


def test_several_sources_need_names_of_their_own(tmp_path: Path) -> None:
    several: list[str | int] = ["a.mp4", "b.mp4", 0]
    assert _names(several, "--jsonl", tmp_path / "{source}.jsonl", "--mot", tmp_path / "{n}.txt") == [
        {"jsonl": "a.jsonl", "mot": "1.txt"},
        {"jsonl": "b.jsonl", "mot": "2.txt"},
        {"jsonl": "camera-0.jsonl", "mot": "3.txt"},
    ]
    assert [names["output"] for names in _names(several, "--output", tmp_path)] == [
        "a.mp4",
        "b.mp4",
        "camera-0.mp4",
    ]
    with pytest.raises(UsageError, match=r"--jsonl .*x\.jsonl names one file for several sources") as caught:
        _names(several, "--jsonl", tmp_path / "x.jsonl")
    assert str(tmp_path / "{source}.jsonl") in str(caught.value)
    with pytest.raises(UsageError, match=r"two sources would both write .*a\.jsonl with --jsonl; put \{n\}"):
        _names(["x/a.mp4", "y/a.mp4"], "--jsonl", tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_a_video_is_not_written_over_another_source(tmp_path: Path) -> None:
    clips = [tmp_path / "a.mp4", tmp_path / "b.mp4"]
    for clip in clips:
        clip.write_bytes(b"video")
    with pytest.raises(PcmoeError, match="is the source itself"):
        _names([str(clip) for clip in clips], "--output", tmp_path, "--overwrite")


def test_two_options_cannot_write_one_file(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="--jsonl and --summary both write"):
        _names(["a.mp4"], "--jsonl", tmp_path / "x.json", "--summary", tmp_path / "x.json")
    (tmp_path / "link").symlink_to(tmp_path)
    with pytest.raises(UsageError, match="--jsonl and --trace both write"):
        _names(["a.mp4"], "--jsonl", tmp_path / "x.jsonl", "--trace", tmp_path / "link" / "x.jsonl")


@pytest.mark.parametrize("option", ["--trace", "--summary", "--jsonl"])
def test_what_is_read_is_never_written(tmp_path: Path, option: str) -> None:
    packed, pictures = tmp_path / "packed", tmp_path / "pictures"
    for folder in (packed, pictures):
        folder.mkdir()
    read = [tmp_path / "a.mp4", tmp_path / "b.part.mp4", tmp_path / "config.py", packed / "model.json"]
    read += [pictures / "1.png"]
    for path in read:
        path.write_bytes(b"precious")
    given = ("--model", packed, "--config", read[2], "--overwrite")
    for source, output, reason in (
        (read[0], read[0], "is the source itself"),
        (read[1], tmp_path / "b.mp4", "is the source itself"),  # under its temporary name
        (pictures, read[4], "is the source itself"),
        (read[0], read[2], "is the input"),
        (read[0], read[3], "lies in the input"),
        (read[0], packed / "new.jsonl", "lies in the input"),
    ):
        with pytest.raises(OutputError, match=reason):
            _names([str(source)], option, output, *given)
    _names([str(pictures)], option, pictures / "t.jsonl", *given)
    assert all(path.read_bytes() == b"precious" for path in read)
    shipped = Path(str(importlib.resources.files("pcmoe_det.weights"))) / "cascade.safetensors"
    with pytest.raises(OutputError, match="lies in the input"):
        _names([0], option, shipped, "--overwrite")


def test_an_existing_trace_is_replaced_only_on_request(tmp_path: Path) -> None:
    path = tmp_path / "t.jsonl"
    path.write_text("older")
    with pytest.raises(OutputError, match="already exists; use --overwrite"):
        _names([0], "--trace", path)
    _names([0], "--trace", path, "--overwrite")
    with pytest.raises(OutputError, match="is not a regular file"):
        _names([0], "--trace", "/dev/full", "--overwrite")
    assert path.read_text() == "older"
