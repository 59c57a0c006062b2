"""Disks that are full or fill up, and permissions that are not there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.faults.bench import ALL_KINDS, FILE_NAMES, Bench, Case, Expected, Ran, done, refused
from tests.faults.checks import count_of, part_of
from tests.faults.clips import CLIP_FRAMES, make
from tests.faults.output_cases import FILE_KINDS, clip
from tests.faults.small_disk import can_mount, small_disk

__all__ = ["disk_cases"]


def disk_cases() -> list[Case]:
    return [*_full_before(), *_fills_up(), *_permissions()]


def _full_before() -> list[Case]:
    cases = []
    for kind in FILE_KINDS:

        def arrange(bench: Bench, kind: str = kind) -> list[object]:
            bench.outputs = ALL_KINDS
            disk = small_disk(bench, kib=80)
            (disk / "ballast").write_bytes(bytes(70_000))
            bench.out_of = {kind: disk}
            return clip(bench)

        cases.append(
            Case("disk full", kind, "before the start", refused("cannot be written to: No space"), arrange)
        )
    return cases


def _ballast(bench: Bench, disk: Path, room_bytes: int) -> Callable[[], None]:
    """Fills the disk but for some room; not before the run, because it would be found full before."""

    def fill() -> None:
        free = os.statvfs(disk).f_bavail * os.statvfs(disk).f_frsize if can_mount() else 120_000
        used = sum(file.stat().st_size for file in disk.rglob("*") if file.is_file())
        with (disk / "ballast").open("wb") as file:
            file.write(bytes(max(0, min(free, 120_000 - used) - room_bytes)))

    return fill


def _fills_up() -> list[Case]:
    cases = []
    for kind in (*ALL_KINDS, "mkv"):

        def arrange(bench: Bench, kind: str = kind) -> list[object]:
            bench.outputs = tuple(
                dict.fromkeys(("jsonl", "mp4", "summary", "mp4" if kind == "mkv" else kind))
            )
            disk = small_disk(bench, kib=120)
            bench.out_of = {"mp4" if kind == "mkv" else kind: disk}
            if kind == "mkv":
                bench.patch.setitem(FILE_NAMES, "mp4", "o.mkv")
            room_bytes = {"summary": 0, "mp4": 90_000, "mkv": 90_000}.get(kind, 8_200)
            bench.detector.at[0] = _ballast(bench, disk, room_bytes=room_bytes)
            return clip(bench, frames=200, width=160, height=120)

        def look(bench: Bench, ran: Ran, kind: str = kind) -> None:
            own = "mp4" if kind == "mkv" else kind
            written = ran.total("frames_written") if kind != "summary" else 200
            path = bench.path_of(own)
            if kind in ("crops", "frames"):
                assert count_of(kind, path) >= 1
            elif kind not in ("mp4", "mkv", "summary"):
                assert not path.exists()
                assert count_of(kind, part_of(path)) in (written, written + 1)
            elif kind != "summary":
                assert not path.exists()
                assert 0 < count_of("mp4", part_of(path)) <= written + 1
            other = bench.path_of("jsonl")
            if kind != "jsonl":
                assert count_of("jsonl", other if kind == "summary" else part_of(other)) == written

        expected = Expected(
            code=1, says="No space left on device", files="mixed", faults={},
            writes=None if kind == "summary" else range(1, 199),
        )  # fmt: skip
        cases.append(Case("disk full", kind, "it fills up", expected, arrange, look))

    def less_than_a_second(bench: Bench) -> list[object]:
        disk = small_disk(bench, kib=120)
        bench.out_of = {"mp4": disk}
        bench.detector.at[0] = _ballast(bench, disk, room_bytes=8_200)
        return clip(bench, frames=200, width=160, height=120)

    def no_video_is_kept(bench: Bench, ran: Ran) -> None:
        assert not list(bench.path_of("mp4").parent.glob("*.mp4"))
        assert "there is nothing to keep yet" in ran.err

    def no_room_for_copy(bench: Bench) -> list[object]:
        """The video fits, its copy with the index in front does not: it stays as it was written."""
        from pcmoe_det.streaming import video_file

        bench.out_of = {"mp4": small_disk(bench, kib=1500)}
        disk_usage = video_file.shutil.disk_usage
        if not can_mount():
            bench.patch.setattr(video_file.shutil, "disk_usage", lambda p: disk_usage(p)._replace(free=0))
        return clip(bench, frames=200, width=160, height=120)

    def categories(bench: Bench) -> list[object]:
        """The results fit, the list of the classes does not."""
        bench.outputs = ("coco", "jsonl", "summary")
        disk = small_disk(bench, kib=120)
        bench.out_of = {"coco": disk}
        bench.detector.at[CLIP_FRAMES - 1] = _ballast(bench, disk, room_bytes=0)
        return clip(bench)

    def detections_are_kept(bench: Bench, ran: Ran) -> None:
        path = bench.path_of("coco")
        rows = json.loads((path if path.exists() else part_of(path)).read_text())
        assert len(rows) >= CLIP_FRAMES - 8

    cases += [
        Case("disk full", "mp4", "no room for the copy with its index in front", done(200), no_room_for_copy),
        Case("disk full", "mp4", "not even a second of video fits",
             Expected(code=1, says="No space", files="mixed", writes=range(1, 199)), less_than_a_second,
             no_video_is_kept),
        Case("disk full", "coco", "no room for the categories",
             Expected(code=1, says="No space", files="mixed"), categories, detections_are_kept),
    ]  # fmt: skip
    return cases


def _permissions() -> list[Case]:
    """As root these run as nobody, who may do no more than the bits say."""

    def as_nobody(prepare: Callable[[Bench], list[object]]) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            options = prepare(bench)
            if os.geteuid() == 0:
                try:
                    _become_nobody(bench)
                except OSError as error:
                    pytest.skip(f"root ignores permissions and cannot become nobody: {error}")
            return options

        return arrange

    def unreadable(bench: Bench) -> list[object]:
        (clip := make(bench.folder)).chmod(0)
        return ["--source", clip]

    def locked_folder(bench: Bench) -> list[object]:
        (folder := bench.folder / "locked").mkdir()
        make(folder)
        folder.chmod(0)
        return ["--source", folder / "clip.mp4"]

    def unwritable(*kinds: str) -> Callable[[Bench], list[object]]:
        def prepare(bench: Bench) -> list[object]:
            bench.outputs = ("mp4", "jsonl", "crops", "summary")
            (folder := bench.folder / "read-only").mkdir()
            folder.chmod(0o555)
            bench.out_of = dict.fromkeys(kinds, folder)
            return clip(bench)

        return prepare

    rows = [
        ("file", "cannot be read", refused("[Pp]ermission denied"), unreadable),
        ("file", "in a folder that cannot be entered", refused("[Pp]ermission denied"), locked_folder),
        ("jsonl", "in a read-only folder", refused("cannot be written to: Perm"), unwritable("jsonl")),
        ("crops", "in a read-only folder", refused("cannot be written to .*: Perm"), unwritable("crops")),
        ("summary", "in a read-only folder", refused("cannot be written to: Perm"), unwritable("summary")),
    ]
    return [Case("permission denied", source, fault, exp, as_nobody(of)) for source, fault, exp, of in rows]


def _become_nobody(bench: Bench) -> None:
    """Until the case is over. The folders above those of the case are opened for passing through."""
    for path in (bench.out, bench.folder):
        for parent in path.parents:
            before = parent.stat().st_mode & 0o7777
            if parent.stat().st_uid == 0 and before & 0o011 != 0o011:  # the group stays root's
                parent.chmod(before | 0o011)
                bench.while_running.callback(parent.chmod, before)
    bench.out.chmod(0o777)
    bench.while_running.callback(os.seteuid, 0)
    os.seteuid(65534)
