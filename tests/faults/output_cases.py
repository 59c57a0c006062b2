"""Outputs that exist, cannot be written, are the source, or are touched by somebody else."""

# ruff: noqa: E501 - a table reads best with a line for a case.

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from tests.faults.bench import ALL_KINDS, FILE_NAMES, Bench, Case, Expected, Ran, done, refused
from tests.faults.checks import count_of, part_of
from tests.faults.clips import CLIP_FRAMES, make

__all__ = ["FILE_KINDS", "clip", "output_cases"]

FILE_KINDS = tuple(FILE_NAMES)


def output_cases() -> list[Case]:
    return [*_existing(), *_impossible(), *_meanwhile()]


def clip(bench: Bench, **settings: int) -> list[object]:
    return ["--source", make(bench.folder, **settings)]


def _existing() -> list[Case]:
    cases = []
    for kind in FILE_KINDS:

        def arrange(bench: Bench, kind: str = kind) -> list[object]:
            # The others are not there, and must not be afterwards.
            bench.outputs, bench.out_of = ALL_KINDS, {kind: bench.folder}
            bench.path_of(kind).write_text("older")
            return clip(bench)

        def look(bench: Bench, ran: Ran, kind: str = kind) -> None:
            assert bench.path_of(kind).read_text() == "older"

        name = FILE_NAMES[kind]
        cases.append(
            Case("output exists", kind, "without --overwrite", refused(f"{name} already exists; use --over"), arrange,
                 look)
        )  # fmt: skip

    def left(bench: Bench) -> list[object]:
        bench.out_of = {"jsonl": bench.folder}
        part_of(bench.path_of("jsonl")).write_text("hours of work\n")
        return clip(bench)

    def left_is_there(bench: Bench, ran: Ran) -> None:
        assert part_of(bench.path_of("jsonl")).read_text() == "hours of work\n"

    def categories(bench: Bench) -> list[object]:
        bench.outputs, bench.out_of = ("coco", "jsonl"), {"coco": bench.folder}
        (bench.folder / "o.categories.json").write_text("mine")
        return clip(bench)

    def pictures(kind: str, name: str) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            bench.outputs, bench.out_of = (kind, "jsonl"), {kind: bench.folder}
            folder = bench.folder / kind
            folder.mkdir()
            (folder / name).write_text("mine")
            if name.startswith("frame_"):
                (folder / ".pcmoe-images").touch()
            return clip(bench)

        return arrange

    def overwrite(bench: Bench) -> list[object]:
        bench.outputs = ALL_KINDS
        for kind in FILE_KINDS:
            bench.path_of(kind).write_text("older")
            part_of(bench.path_of(kind)).write_text("left")
        return [*clip(bench), "--overwrite"]

    def overwrite_fails(bench: Bench) -> list[object]:
        def stop() -> None:
            raise RuntimeError("no kernel")

        bench.detector.at[0] = stop
        bench.not_ours = {bench.path_of(kind) for kind in ("mp4", "jsonl")}
        for path in bench.not_ours:
            path.write_text("older")
        return [*clip(bench), "--overwrite"]

    def older_is_there(bench: Bench, ran: Ran) -> None:
        assert [bench.path_of(kind).read_text() for kind in ("mp4", "jsonl")] == ["older", "older"]

    failed = Expected(
        code=1, says="no kernel", reads=range(1, 8), writes=0, files="mixed", outcomes=["failed"]
    )
    return [
        *cases,
        Case("output exists", "jsonl", "as what a killed run left", refused("earlier run.*has left"), left,
             left_is_there),
        Case("output exists", "coco categories", "of somebody else", refused("categories.json already ex"), categories),
        Case("output exists", "crops", "a folder with other things", refused("is not empty"), pictures("crops", "x.jpg")),
        Case("output exists", "frames", "a folder with other things", refused("is not empty"), pictures("frames", "a")),
        Case("output exists", "frames", "a folder of an earlier run", refused("use --overwrite to remove"),
             pictures("frames", "frame_000001.jpg")),
        Case("output exists", "all kinds", "with --overwrite", done(CLIP_FRAMES), overwrite),
        Case("output exists", "mp4 and jsonl", "with --overwrite, and the run fails at once", failed, overwrite_fails,
             older_is_there),
    ]  # fmt: skip


def _impossible() -> list[Case]:
    def go_to(where: Callable[[Bench], Path], *kinds: str) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            bench.outputs = ("mp4", "jsonl", "crops", "summary")
            bench.out_of = dict.fromkeys(kinds or ("jsonl",), where(bench))
            return clip(bench)

        return arrange

    def file_as_folder(bench: Bench) -> Path:
        (bench.folder / "file").write_text("x")
        return bench.folder / "file"

    def same(how: str) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            clip = make(bench.folder, name="o.mp4" if how == "itself" else "clip.mp4")
            bench.out_of = {"mp4": bench.folder}
            if how == "a symbolic link to it":
                bench.path_of("mp4").symlink_to(clip)
            elif how == "a hard link to it":
                os.link(clip, bench.path_of("mp4"))
            return ["--source", clip, "--overwrite"]

        return arrange

    def source_is_whole(bench: Bench, ran: Ran) -> None:
        clip = next(path for path in bench.folder.iterdir() if path.is_file() and not path.is_symlink())
        assert count_of("mp4", clip) == CLIP_FRAMES

    def options(*words: object) -> Callable[[Bench], list[object]]:
        def arrange(bench: Bench) -> list[object]:
            bench.outputs = ()
            return [*clip(bench), *(bench.out / word[1:] if str(word)[0] == "@" else word for word in words)]  # type: ignore[index]

        return arrange

    def folder_named_so(bench: Bench) -> list[object]:
        bench.out_of = {"summary": bench.folder}
        (bench.folder / "s.json").mkdir()
        return clip(bench)

    rows = [
        ("jsonl", "the folder is missing", refused("does not exist; create it"), go_to(lambda b: b.out / "no")),
        ("mp4", "the folder is missing", refused("does not exist"), go_to(lambda b: b.out / "no", "mp4")),
        ("summary", "the folder is missing", refused("does not exist"), go_to(lambda b: b.out / "no", "summary")),
        ("jsonl", "the folder is a file", refused("is not a folder"), go_to(file_as_folder)),
        ("crops", "the folder is in a file", refused("cannot be written"), go_to(file_as_folder, "crops")),
        ("jsonl", "the kernel's own file system", refused("cannot be written to"), go_to(lambda b: Path("/proc"))),
        ("crops", "the kernel's own file system", refused("cannot be written"), go_to(lambda b: Path("/proc"), "crops")),
        ("summary", "is a folder", refused("not a regular file"), folder_named_so),
        ("mp4", "no video's ending", refused("must end in", code=2), options("--output", "@o.gif")),
        ("jsonl", "two outputs of one name", refused("both write", code=2),
         options("--jsonl", "@a.txt", "--mot", "@a.txt")),
        ("jsonl", "its name is too long", refused("too long"), options("--jsonl", "@" + "x" * 300)),
        ("crops", "its name is too long", refused("too long"), options("--crops", "@" + "x" * 300)),
        ("jsonl", "a device", refused("not a regular file"), options("--jsonl", "/dev/full", "--overwrite")),
    ]  # fmt: skip
    cases = [
        Case("unwritable", source, fault, expected, arrange) for source, fault, expected, arrange in rows
    ]
    for how in ("itself", "a symbolic link to it", "a hard link to it"):
        says = refused("is the source itself")
        cases.append(Case("output is the source", "mp4", how, says, same(how), source_is_whole))
    return cases


def _meanwhile() -> list[Case]:
    """Something happens to the files while the command runs."""

    def at_frame_5(bench: Bench, act: Callable[[], object]) -> list[object]:
        bench.detector.at[5] = act
        return clip(bench)

    def appears(bench: Bench) -> list[object]:
        bench.not_ours = {bench.path_of("jsonl")}
        return at_frame_5(bench, lambda: bench.path_of("jsonl").write_text("another run's"))

    def not_replaced(bench: Bench, ran: Ran) -> None:
        assert bench.path_of("jsonl").read_text() == "another run's"
        assert count_of("jsonl", part_of(bench.path_of("jsonl"))) == CLIP_FRAMES

    def removed(bench: Bench) -> list[object]:
        return at_frame_5(bench, lambda: part_of(bench.path_of("jsonl")).unlink())

    def folder_removed(bench: Bench) -> list[object]:
        bench.outputs = ("crops", "jsonl", "summary")
        # Renamed, which is one step: while it is emptied file by file, the next picture may come.
        return at_frame_5(bench, lambda: bench.path_of("crops").rename(bench.folder / "elsewhere"))

    def source_removed(bench: Bench) -> list[object]:
        return at_frame_5(bench, lambda: (bench.folder / "clip.mp4").unlink())

    def source_cut(bench: Bench) -> list[object]:
        clip = make(bench.folder, "ts", frames=200)
        bench.detector.seconds = 0.002
        bench.detector.at[5] = lambda: os.truncate(clip, clip.stat().st_size // 2)
        return ["--source", clip]

    whole = dict(reads=CLIP_FRAMES, writes=CLIP_FRAMES, drops={})
    return [
        Case("meanwhile", "jsonl", "another run writes the same name",
             Expected(code=1, says="appeared while", files="mixed", **whole), appears, not_replaced),
        Case("meanwhile", "jsonl", "its temporary file is removed",
             Expected(code=1, says="was removed or renamed", files="mixed", **whole), removed),
        Case("meanwhile", "crops", "the folder is removed",
             Expected(code=1, says="crops.* cannot be written", files="mixed", outcomes=["failed"]), folder_removed),
        Case("meanwhile", "source", "it is removed", done(CLIP_FRAMES), source_removed),
        Case("meanwhile", "source", "it becomes shorter",
             Expected(code=(0, 1), reads=range(10, 200), files="mixed"), source_cut),
    ]  # fmt: skip
