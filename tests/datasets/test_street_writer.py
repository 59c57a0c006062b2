"""SHIFT's layout and clips as other programs read them."""

from __future__ import annotations

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import av
import cv2
import numpy as np
import pytest

from pcmoe_det.datasets import load_frames
from pcmoe_det.datasets.street_video import StreetVideo
from pcmoe_det.datasets.street_writer import write_clip, write_shift_split
from pcmoe_det.errors import OutputError, UsageError
from pcmoe_det.structures import SHIFT_CLASSES

NUM_FRAMES = 3


def videos(count: int = 2, **arguments: Any) -> list[StreetVideo]:
    settings: dict[str, Any] = {"width": 160, "height": 96, "num_frames": NUM_FRAMES, "shift": "clear"}
    return [StreetVideo(seed, **(settings | arguments)) for seed in range(count)]


def check_labels(folder: Path, shots: list[StreetVideo]) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / "det_2d.json").read_text())
    assert [c["name"] for c in content["config"]["categories"]] == list(SHIFT_CLASSES)
    expected = [(shot.name, index) for shot in shots for index in range(NUM_FRAMES)]
    assert [(f["videoName"], f["frameIndex"]) for f in content["frames"]] == expected
    for frame in content["frames"]:
        assert frame["size"] == {"width": 160, "height": 96}
        for label in frame["labels"]:
            assert isinstance(label["id"], str)
            assert label["category"] in SHIFT_CLASSES
            assert label["attributes"]["label_source"] == "annotated"
            assert 0 <= float(label["attributes"]["occlusion"]) <= 1
    return content


@pytest.mark.parametrize("archive", ["zip", "tar", "folder"])
def test_split_holds_every_picture(tmp_path: Path, archive: Any) -> None:
    shots = videos()
    folder = write_shift_split(tmp_path, videos=shots, archive=archive, split="train")
    assert folder == tmp_path / "discrete/videos/train/front"
    content = check_labels(folder, shots)
    members = [f"{f['videoName']}/{f['name']}" for f in content["frames"]]
    if archive == "zip":
        with zipfile.ZipFile(folder / "img_decompressed.zip") as file:
            assert file.namelist() == members
            pictures = [file.read(name) for name in members]
    elif archive == "tar":
        with tarfile.open(folder / "img_decompressed.tar") as tar:
            assert tar.getnames() == members
            pictures = [tar.extractfile(name).read() for name in members]  # type: ignore[union-attr]
    else:
        pictures = [(folder / "img" / name).read_bytes() for name in members]
    frames = [frame for shot in shots for frame in shot]
    for picture, frame in zip(pictures, frames, strict=True):
        image = cv2.imdecode(np.frombuffer(picture, np.uint8), cv2.IMREAD_COLOR)
        assert image.shape == (96, 160, 3)
        assert np.abs(image.astype(np.int16) - frame.image).mean() < 8


def test_stills_are_called_img(tmp_path: Path) -> None:
    folder = write_shift_split(tmp_path, subset="discrete/images", videos=videos(1))
    assert sorted(p.name for p in folder.iterdir()) == ["det_2d.json", "img.zip"]


def test_our_reader_reads_it(tmp_path: Path) -> None:
    shots = videos()
    folder = write_shift_split(tmp_path, videos=shots)
    frames = load_frames(folder / "det_2d.json").frames
    assert [f.video_name for f in frames] == [shot.name for shot in shots for _ in range(NUM_FRAMES)]


def test_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    one, other = (write_shift_split(tmp_path / name, videos=videos(1)) for name in ("a", "b"))
    for name in ("det_2d.json", "img_decompressed.zip"):
        assert (one / name).read_bytes() == (other / name).read_bytes()


def test_existing_output_is_kept_unless_told(tmp_path: Path) -> None:
    folder = write_shift_split(tmp_path, videos=videos(1))
    marker = folder / "det_2d.json"
    marker.write_text("mine")
    with pytest.raises(OutputError, match="already exists"):
        write_shift_split(tmp_path, videos=videos(1))
    assert marker.read_text() == "mine"
    write_shift_split(tmp_path, videos=videos(1), overwrite=True)
    assert marker.read_text() != "mine"


def test_a_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    def fail() -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_shift_split(tmp_path, videos=videos(1), on_frame=fail)
    with pytest.raises(KeyboardInterrupt):
        write_clip(tmp_path / "clip.mp4", videos(1)[0], on_frame=fail)
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"videos": []}, "no videos"),
        ({"archive": "rar"}, "rar"),
        ({"jpeg_quality": 0}, "0"),
        ({"view": "left_90"}, "view"),
    ],
    ids=["none", "archive", "quality", "view"],
)
def test_bad_arguments_are_refused(tmp_path: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(UsageError, match=message):
        write_shift_split(tmp_path, **({"videos": videos(1)} | arguments))


def test_two_videos_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="two videos"):
        write_shift_split(tmp_path, videos=videos(1) + videos(1))


def test_an_unwritable_place_is_reported(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputError, match="cannot write"):
        write_shift_split(tmp_path / "file", videos=videos(1))
    with pytest.raises(OutputError, match="cannot write"):
        write_clip(tmp_path / "file" / "clip.mp4", videos(1)[0])


def test_clip_has_all_frames_at_its_rate(tmp_path: Path) -> None:
    shot = videos(1, num_frames=7, fps=12.5)[0]
    path = write_clip(tmp_path / "new" / "clip.mp4", shot)
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        assert stream.codec_context.name == "h264"
        assert stream.codec_context.pix_fmt == "yuv420p"
        assert float(stream.average_rate or 0) == pytest.approx(12.5)
        decoded = [frame.to_ndarray(format="bgr24") for frame in container.decode(stream)]
    assert len(decoded) == 7
    for picture, frame in zip(decoded, shot, strict=True):
        assert np.abs(picture.astype(np.int16) - frame.image).mean() < 12
    assert io.BytesIO(path.read_bytes()).read(8)[4:] == b"ftyp"
    assert [p.name for p in path.parent.iterdir()] == ["clip.mp4"]


@pytest.mark.parametrize(
    ("name", "start"), [("c.mov", b"ftypqt"), ("c.MKV", b"\x1a\x45\xdf\xa3"), ("c.mp4", b"ftypisom")]
)
def test_the_ending_of_a_clip_decides_the_container(tmp_path: Path, name: str, start: bytes) -> None:
    path = write_clip(tmp_path / name, videos(1, fps=12.5)[0])
    assert start in path.read_bytes()[:16]
    with av.open(str(path)) as container:
        assert float(container.streams.video[0].average_rate or 0) == pytest.approx(12.5)
        assert sum(1 for _ in container.decode(video=0)) == NUM_FRAMES
    assert [p.name for p in tmp_path.iterdir()] == [name]


def test_other_endings_of_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"c\.avi must end in one of \.mp4, \.mov, \.mkv"):
        write_clip(tmp_path / "c.avi", videos(1)[0])
    assert list(tmp_path.iterdir()) == []


def test_odd_sizes_of_clips_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="161x96"):
        write_clip(tmp_path / "clip.mp4", videos(1, width=161)[0])
