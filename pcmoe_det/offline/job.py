"""Which files a job has, and what each becomes."""

from __future__ import annotations

import fnmatch
import hashlib
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pcmoe_det.errors import SourceError, UsageError
from pcmoe_det.offline.status import Fingerprint

__all__ = [
    "VIDEO_FILE_SUFFIXES",
    "FileList",
    "JobOptions",
    "SourceFile",
    "find_sources",
    "fingerprint_of",
    "output_name",
    "printable",
]

VIDEO_FILE_SUFFIXES = (
    ".3gp", ".asf", ".avi", ".flv", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4",
    ".mpeg", ".mpg", ".mts", ".mxf", ".ogv", ".ts", ".webm", ".wmv",
)  # fmt: skip
# File systems take names of 255 bytes. Room is left for the ending and for ".part" before it.
_LONGEST_NAME_BYTES = 240


@dataclass(frozen=True)
class JobOptions:
    """One job: a folder of videos and what is to be made of them.

    Attributes:
        folder: Searched with its subfolders. Links to folders are not followed, names that begin with a dot
            are left out.
        output: Where the results go, in the same tree. May lie inside ``folder``.
        globs: Patterns for names (or, with a ``/``, for paths relative to ``folder``); empty takes every
            file with a video's ending.
        pictures: Whether a folder that holds pictures is one source, too (its pictures in their natural
            order; those of its subfolders are sources of their own).
        video: Whether an annotated video is written beside the records.
        score_threshold: Detections below are left out.
        max_frames: Of each file; None is all.
        retry_failed: Whether files that failed in an earlier run are tried again.
        overwrite: Whether outputs may be replaced that this job did not make, or made with other settings.
        settings: What decides the results besides the files, as plain data; results of other settings are
            not taken for results of these.
    """

    folder: Path
    output: Path
    globs: tuple[str, ...] = ()
    pictures: bool = False
    video: bool = False
    score_threshold: float = 0.0
    max_frames: int | None = None
    retry_failed: bool = False
    overwrite: bool = False
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def output_suffixes(self) -> tuple[str, ...]:
        """Endings of what each file becomes."""
        return (".jsonl", ".mp4") if self.video else (".jsonl",)


@dataclass(frozen=True, slots=True)
class SourceFile:
    """A file, or a folder of pictures, to process.

    Attributes:
        name: Relative to the job's folder, with ``/``; its key in the status.
        path: To open it.
        fingerprint: As it was when the folder was searched; None where it cannot be looked at.
    """

    name: str
    path: Path
    fingerprint: Fingerprint | None


@dataclass(frozen=True)
class FileList:
    """What a folder holds.

    Attributes:
        files: Sorted by name.
        problems: Sentences about folders that could not be searched.
        links_skipped: How many links to folders were not followed.
    """

    files: tuple[SourceFile, ...]
    problems: tuple[str, ...]
    links_skipped: int


def find_sources(options: JobOptions) -> FileList:
    """Search ``options.folder``.

    Raises:
        SourceError: It is no folder, or holds nothing to process.
        UsageError: The output folder is the folder itself or around it, or two files would get the same
            output.
    """
    folder, output = options.folder, options.output
    if not folder.is_dir():
        reason = "is not a folder" if folder.exists() else "does not exist"
        raise SourceError(f"{printable(folder)} {reason}; name the folder that holds the videos")
    if folder.resolve().is_relative_to(output.resolve()):
        raise UsageError(
            f"--output {printable(output)} is or holds the folder of the videos, so that results would be "
            "taken for videos; name another folder (it may lie inside the videos' folder)"
        )
    search = _Search(folder, skip=output.resolve(), globs=options.globs, pictures=options.pictures)
    files = tuple(sorted(search.files(), key=lambda file: file.name))
    if not files:
        wanted = ", ".join(options.globs) or "video files (*.mp4, *.mkv, *.avi ...; others with --glob)"
        wanted += " and no pictures" if options.pictures else ""
        also = f"; {search.problems[0]}" if search.problems else ""
        raise SourceError(f"{printable(folder)} holds no {wanted}{also}")
    _check_distinct(files, options)
    return FileList(files, tuple(search.problems), search.links_skipped)


def output_name(source_name: str, suffix: str) -> str:
    """What a file becomes, relative to the output folder: its own name with ``suffix`` added.

    The whole name stays (``a.mp4.jsonl``), so that ``a.mp4`` and ``a.avi`` do not meet. A name too long for
    the addition is cut and gets a checksum instead of its end.
    """
    parent, slash, name = source_name.rpartition("/")
    encoded = os.fsencode(name)
    if len(encoded) > _LONGEST_NAME_BYTES:
        checksum = hashlib.blake2b(encoded, digest_size=6).hexdigest()
        kept = encoded[: _LONGEST_NAME_BYTES - len(checksum) - 1].decode("utf-8", "ignore")
        name = f"{kept}~{checksum}"
    return f"{parent}{slash}{name}{suffix}"


def fingerprint_of(path: Path) -> Fingerprint | None:
    """The size and time of a file (of a link's target) or of the files in a folder, or None where it cannot
    be looked at."""
    try:
        status = path.stat()
        if not stat.S_ISDIR(status.st_mode):
            return Fingerprint(status.st_size, status.st_mtime_ns)
        with os.scandir(path) as entries:
            found = [entry.stat() for entry in entries if entry.is_file()]
    except (OSError, ValueError):
        return None
    return Fingerprint(
        sum(status.st_size for status in found), max((status.st_mtime_ns for status in found), default=0)
    )


def printable(name: str | Path) -> str:
    """A name that can be put into a line of text: line breaks, control characters and bytes that are no
    Unicode are escaped."""
    return "".join(
        character if character.isprintable() else character.encode("unicode_escape").decode()
        for character in str(name)
    )


class _Search:
    """One walk through a folder; ``problems`` and ``links_skipped`` are complete after ``files``."""

    def __init__(self, folder: Path, *, skip: Path, globs: Sequence[str], pictures: bool) -> None:
        self._folder = folder
        self._pictures = pictures
        self._skip = skip
        self._globs = globs
        self.problems: list[str] = []
        self.links_skipped = 0

    def files(self) -> Iterator[SourceFile]:
        waiting = [""]
        while waiting:
            parent = waiting.pop()
            path = self._folder / parent
            try:
                if path.resolve() == self._skip:
                    continue
                with os.scandir(path) as entries:
                    listed = list(entries)
            except (OSError, RuntimeError) as error:
                reason = getattr(error, "strerror", None) or error
                self.problems.append(f"the folder {printable(path)} cannot be searched ({reason})")
                continue
            if self._pictures and any(_is_picture(entry) for entry in listed):
                yield SourceFile(parent or self._folder.resolve().name, path, fingerprint_of(path))
            for entry in listed:
                name = f"{parent}/{entry.name}" if parent else entry.name
                if entry.name.startswith("."):
                    continue
                if _is_folder(entry, follow=False):
                    waiting.append(name)
                elif _is_folder(entry, follow=True):
                    self.links_skipped += 1
                elif self._is_wanted(name):
                    # Links that lead nowhere, pipes and the like stay in the list, to fail with a sentence.
                    source = self._folder / name
                    yield SourceFile(name, source, fingerprint_of(source))

    def _is_wanted(self, name: str) -> bool:
        own_name = name.rpartition("/")[2]
        if not self._globs:
            return own_name.lower().endswith(VIDEO_FILE_SUFFIXES)
        return any(
            fnmatch.fnmatchcase(name if "/" in pattern else own_name, pattern) for pattern in self._globs
        )


def _is_picture(entry: os.DirEntry[str]) -> bool:
    from pcmoe_det.streaming.still_pictures import PICTURE_SUFFIXES

    return (
        entry.name.lower().endswith(PICTURE_SUFFIXES) and not entry.name.startswith(".") and entry.is_file()
    )


def _is_folder(entry: os.DirEntry[str], *, follow: bool) -> bool:
    try:
        return stat.S_ISDIR(entry.stat(follow_symlinks=follow).st_mode)
    except OSError:
        return False


def _check_distinct(files: Sequence[SourceFile], options: JobOptions) -> None:
    taken: dict[str, str] = {}
    for file in files:
        for suffix in options.output_suffixes:
            for ending in (suffix, f".part{suffix}"):
                name = output_name(file.name, ending)
                if name in taken:
                    raise UsageError(
                        f"{printable(taken[name])} and {printable(file.name)} would both write "
                        f"{printable(name)}; rename one, or leave one out with --glob"
                    )
                taken[name] = file.name
