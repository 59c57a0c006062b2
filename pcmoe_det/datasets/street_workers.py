"""Frames of street videos as JPEG files with labels, drawn by one or several processes."""

from __future__ import annotations

import json
import multiprocessing
import signal
import tempfile
import zipfile
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2

from pcmoe_det.datasets.street_video import StreetFrame, StreetVideo
from pcmoe_det.errors import OutputError

__all__ = ["EncodedFrame", "encoded_frames"]

_LABELS = "labels.jsonl"


@dataclass(frozen=True, slots=True, eq=False)
class EncodedFrame:
    """One frame as a data set holds it.

    Attributes:
        member: Its name in the archive, ``<videoName>/<frameIndex:08d>_img_<view>.jpg``.
        jpeg: The picture.
        label: The frame's entry of ``det_2d.json``.
    """

    member: str
    jpeg: bytes
    label: dict[str, Any]


def encoded_frames(
    videos: Sequence[StreetVideo], *, jpeg_quality: int, workers: int, spool_folder: Path
) -> Iterator[EncodedFrame]:
    """Draw and encode ``videos``, in their order and the same to the byte for any number of workers.

    Args:
        videos: What to draw. A video is drawn by one process.
        jpeg_quality: 1-100.
        workers: Processes; 1 draws in this one, a frame at a time. With more, programs need the usual
            ``if __name__ == "__main__"``, as the processes are spawned.
        spool_folder: Where workers keep finished videos until their turn.

    Raises:
        OutputError: A frame cannot be encoded, or a worker died.
        OSError: The spool folder cannot be written to.
    """
    if workers == 1 or len(videos) == 1:
        for video in videos:
            for frame in video:
                yield _encode(frame, jpeg_quality)
        return
    context = multiprocessing.get_context("spawn")
    with (
        tempfile.TemporaryDirectory(prefix="spool-", dir=spool_folder) as spool,
        ProcessPoolExecutor(min(workers, len(videos)), context, initializer=_prepare_worker) as pool,
    ):
        try:
            paths = [Path(spool) / f"{index}.zip" for index in range(len(videos))]
            for job, path in zip(_start_jobs(pool, videos, paths, jpeg_quality), paths, strict=True):
                job.result()
                yield from _read_spooled(path)
                path.unlink()
        except BrokenProcessPool as error:
            raise OutputError(
                f"one of {workers} processes that draw has died; was there enough memory? Use fewer --workers"
            ) from error
        except BaseException:  # also when the caller wants no more frames
            _kill_workers(pool)
            raise


def _start_jobs(
    pool: ProcessPoolExecutor, videos: Sequence[StreetVideo], paths: Sequence[Path], jpeg_quality: int
) -> list[Future[None]]:
    """Hand out all videos. The processes that this starts inherit a mask without Ctrl-C."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        return [
            pool.submit(_draw_into, video, path, jpeg_quality)
            for video, path in zip(videos, paths, strict=True)
        ]
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _kill_workers(pool: ProcessPoolExecutor) -> None:
    """End the processes at once: a shutdown would wait until they have drawn the videos they are at."""
    for process in list(pool._processes.values()):
        process.kill()


def _prepare_worker() -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches every process; the main one answers
    cv2.setNumThreads(1)


def _encode(frame: StreetFrame, quality: int) -> EncodedFrame:
    done, content = cv2.imencode(".jpg", frame.image, [cv2.IMWRITE_JPEG_QUALITY, quality])
    if not done:
        height, width = frame.image.shape[:2]
        raise OutputError(f"cannot encode a frame of {width}x{height} as JPEG")
    return EncodedFrame(f"{frame.video_name}/{frame.file_name()}", bytes(content), frame.as_scalabel())


def _draw_into(video: StreetVideo, path: Path, jpeg_quality: int) -> None:
    """Draw one video into a spool file: its pictures in order, then a line of JSON for each."""
    lines = []
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as spool:
        for frame in video:
            encoded = _encode(frame, jpeg_quality)
            spool.writestr(encoded.member, encoded.jpeg)
            lines.append(json.dumps(encoded.label))
        spool.writestr(_LABELS, "\n".join(lines))


def _read_spooled(path: Path) -> Iterator[EncodedFrame]:
    with zipfile.ZipFile(path) as spool:
        *members, labels = spool.namelist()
        lines = spool.read(labels).decode().splitlines()
        for member, line in zip(members, lines, strict=True):
            yield EncodedFrame(member, spool.read(member), json.loads(line))
