"""Writes street videos as a SHIFT split or as an H.264 clip; one frame in memory at a time.

Output appears under its name only when it is whole.
"""

from __future__ import annotations

import io
import json
import os
import shutil
import tarfile
import zipfile
from collections.abc import Callable, Iterable
from fractions import Fraction
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Protocol, get_args

from pcmoe_det.datasets.street_video import StreetVideo
from pcmoe_det.datasets.street_workers import encoded_frames
from pcmoe_det.errors import OutputError, UsageError
from pcmoe_det.structures import SHIFT_CLASSES

__all__ = ["CLIP_FORMATS", "Archive", "write_clip", "write_shift_split"]

Archive = Literal["zip", "folder", "tar"]
Progress = Callable[[], None]

# Endings of clips, and what FFmpeg calls these containers.
CLIP_FORMATS = {".mp4": "mp4", ".mov": "mov", ".mkv": "matroska"}


class _Sink(Protocol):
    """Takes the pictures of a split."""

    def add(self, name: str, content: bytes) -> None: ...

    def close(self) -> None: ...


class _ZipSink:
    def __init__(self, path: Path) -> None:
        self._file = zipfile.ZipFile(path, "w", zipfile.ZIP_STORED)

    def add(self, name: str, content: bytes) -> None:
        # A fixed date keeps archives of the same seed byte for byte the same.
        self._file.writestr(zipfile.ZipInfo(name, (2020, 1, 1, 0, 0, 0)), content)

    def close(self) -> None:
        self._file.close()


class _TarSink:
    def __init__(self, path: Path) -> None:
        self._file = tarfile.open(path, "w")  # noqa: SIM115

    def add(self, name: str, content: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(content)
        self._file.addfile(member, io.BytesIO(content))

    def close(self) -> None:
        self._file.close()


class _FolderSink:
    def __init__(self, path: Path) -> None:
        self._root = path
        path.mkdir(parents=True)

    def add(self, name: str, content: bytes) -> None:
        target = self._root / name
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)

    def close(self) -> None:
        return


class _LabelFile:
    """Streams ``det_2d.json``: frames are written as they come."""

    def __init__(self, path: Path, config: dict[str, object]) -> None:
        self._file = path.open("w", encoding="utf-8")
        self._config = config
        self._first = True
        self._file.write('{"frames": [\n')

    def __enter__(self) -> _LabelFile:
        return self

    def add(self, label: dict[str, Any]) -> None:
        self._file.write("" if self._first else ",\n")
        self._first = False
        json.dump(label, self._file)

    def finish(self) -> None:
        self._file.write('\n], "config": ')
        json.dump(self._config, self._file)
        self._file.write("}\n")

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()


def _open_sink(folder: Path, archive: Archive, *, decompressed: bool) -> _Sink:
    stem = "img_decompressed" if decompressed else "img"
    if archive == "folder":
        return _FolderSink(folder / "img")
    return _ZipSink(folder / f"{stem}.zip") if archive == "zip" else _TarSink(folder / f"{stem}.tar")


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def write_shift_split(
    root: str | Path,
    *,
    subset: str = "discrete/videos",
    split: str = "val",
    view: str = "front",
    videos: Iterable[StreetVideo],
    archive: Archive = "zip",
    jpeg_quality: int = 92,
    overwrite: bool = False,
    workers: int = 1,
    on_frame: Progress | None = None,
) -> Path:
    """Write ``<root>/<subset>/<split>/<view>/`` with pictures and ``det_2d.json``.

    Pictures go to ``img.zip``, ``img.tar`` or ``img/``; archives of a subset that ends in ``videos``
    are called ``img_decompressed``, as in SHIFT. Members are
    ``<videoName>/<frameIndex:08d>_img_<view>.jpg``.

    Args:
        root: Folder of the data set; made if missing.
        subset: Part of SHIFT's path, such as ``discrete/videos`` or ``continuous/1x/videos``.
        split: ``train``, ``val`` or ``test``.
        view: SHIFT's camera; all videos must have it.
        videos: What to write, each with a name of its own.
        archive: ``zip``, ``tar`` or ``folder``.
        jpeg_quality: 1-100.
        overwrite: Replace a split that is there.
        workers: Processes that draw, a video each; the files are the same for any number.
        on_frame: Called after each frame.

    Returns:
        The folder that was written.

    Raises:
        UsageError: No videos, two of one name, another view, an unknown archive kind or quality, no workers.
        OutputError: The split exists already, or cannot be written.
    """
    shots = list(videos)
    _check(shots, view=view, archive=archive, jpeg_quality=jpeg_quality)
    if workers < 1:
        raise UsageError(f"{workers} workers cannot draw; use 1 or more")
    target = Path(root) / subset / split / view
    if target.exists() and not overwrite:
        raise OutputError(f"{target} already exists; choose another folder or use --overwrite to replace it")
    partial = target.with_name(f".{target.name}.partial-{os.getpid()}")
    try:
        _remove(partial)
        partial.mkdir(parents=True)
        _write_split(
            partial,
            shots,
            archive,
            jpeg_quality,
            decompressed=subset.rstrip("/").endswith("videos"),
            workers=workers,
            on_frame=on_frame,
        )
        if target.exists():
            _remove(target)
        partial.rename(target)
    except OSError as error:
        raise OutputError(f"cannot write {target}: {error}; check free space and permissions") from error
    finally:
        if partial.exists():
            _remove(partial)
    return target


def _check(shots: list[StreetVideo], *, view: str, archive: str, jpeg_quality: int) -> None:
    if not shots:
        raise UsageError("there are no videos to write; give at least one")
    if archive not in get_args(Archive):
        raise UsageError(f"unknown archive '{archive}'; choose one of {', '.join(get_args(Archive))}")
    if not 1 <= jpeg_quality <= 100:
        raise UsageError(f"JPEG quality {jpeg_quality} is outside 1 to 100")
    names: set[str] = set()
    for shot in shots:
        if shot.name in names:
            raise UsageError(f"two videos are called '{shot.name}'; give them different seeds or names")
        names.add(shot.name)
        if shot.view != view:
            raise UsageError(f"video '{shot.name}' has view '{shot.view}', the split is of '{view}'")


def _write_split(
    folder: Path,
    shots: list[StreetVideo],
    archive: Archive,
    jpeg_quality: int,
    *,
    decompressed: bool,
    workers: int,
    on_frame: Progress | None,
) -> None:
    config: dict[str, object] = {
        "imageSize": {"width": shots[0].width, "height": shots[0].height},
        "categories": [{"name": name} for name in SHIFT_CLASSES],
    }
    sink = _open_sink(folder, archive, decompressed=decompressed)
    try:
        with _LabelFile(folder / "det_2d.json", config) as labels:
            for frame in encoded_frames(
                shots, jpeg_quality=jpeg_quality, workers=workers, spool_folder=folder
            ):
                sink.add(frame.member, frame.jpeg)
                labels.add(frame.label)
                if on_frame is not None:
                    on_frame()
            labels.finish()
    finally:
        sink.close()


def write_clip(
    path: str | Path,
    video: StreetVideo,
    *,
    crf: int = 20,
    overwrite: bool = False,
    on_frame: Progress | None = None,
) -> Path:
    """Write ``video`` as an H.264 (yuv420p) file at its own frame rate.

    Args:
        path: File to write; its ending, one of ``CLIP_FORMATS``, decides the container. Its folder is made
            if missing.
        video: The video; width and height must be even.
        crf: Quality of x264, 0 (lossless) to 51.
        overwrite: Replace a file that is there.
        on_frame: Called after each frame.

    Returns:
        The path.

    Raises:
        UsageError: An ending of no container that is written, an odd size, or ``crf`` outside its range.
        OutputError: The file exists already, or cannot be written.
    """
    import av

    path = Path(path)
    container_format = CLIP_FORMATS.get(path.suffix.lower())
    if container_format is None:
        raise UsageError(f"the clip {path} must end in one of {', '.join(CLIP_FORMATS)}; give it such a name")
    if video.width % 2 or video.height % 2:
        raise UsageError(f"size {video.width}x{video.height} is odd; H.264 with yuv420p needs even sides")
    if not 0 <= crf <= 51:
        raise UsageError(f"crf {crf} is outside 0 to 51")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists; choose another name or use --overwrite to replace it")
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with av.open(str(partial), "w", format=container_format) as container:
            stream = container.add_stream("libx264", rate=Fraction(video.fps).limit_denominator(1001))
            stream.width, stream.height, stream.pix_fmt = video.width, video.height, "yuv420p"
            stream.options = {"crf": str(crf), "preset": "veryfast"}
            for frame in video:
                container.mux(stream.encode(av.VideoFrame.from_ndarray(frame.image, format="bgr24")))
                if on_frame is not None:
                    on_frame()
            container.mux(stream.encode())
        partial.replace(path)
    except (OSError, av.FFmpegError) as error:
        raise OutputError(f"cannot write {path}: {error}; check free space and permissions") from error
    finally:
        if partial.exists():
            partial.unlink()
    return path
