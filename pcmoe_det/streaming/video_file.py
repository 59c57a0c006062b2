"""What lies under a written video: a file that a crash or a full disk leaves playable, and its final form.

While frames come, an MP4 is written in fragments of a second, each with its own index, and no more than that
is ever lost: a killed process leaves whole fragments, and where the disk is full the one that did not fit is
cut off and nothing more is written. Fragments also keep memory flat, since a plain MP4's index grows by 80
bytes a frame until the end.

At the end the packets are copied, not encoded again, into a plain MP4 with its index in front, which seeks
better, tells its length and plays while it loads. The copy is a second file, so that a full disk or a crash
meanwhile costs nothing: the fragmented one is valid MP4, too, and browsers play it.
"""

from __future__ import annotations

import contextlib
import logging
import os
import shutil
from fractions import Fraction
from io import FileIO
from pathlib import Path

import av

from pcmoe_det.errors import OutputError

__all__ = ["FragmentFile", "container_options", "copy_with_index_in_front"]

_log = logging.getLogger(__name__)

_FRAGMENT_MICROSECONDS = 1_000_000
# First bytes of what the muxers write at once: an MP4 fragment, a Matroska cluster.
_MP4_FRAGMENT, _MATROSKA_CLUSTER = b"moof", b"\x1f\x43\xb6\x75"
# Room that must be left on the disk beside the copy.
_SPARE_BYTES = 64 * 1024 * 1024


def container_options(suffix: str, time_base: Fraction) -> tuple[str, dict[str, str]]:
    """PyAV's format and options for a file that is sound while it grows."""
    if suffix.lower() == ".mkv":
        return "matroska", {"cluster_time_limit": str(_FRAGMENT_MICROSECONDS // 1000)}
    return "mp4", {
        # The header waits for the first fragment, because only then the first time stamp is known.
        # A closing index of fragments would grow in memory for as long as the file does.
        "movflags": "+frag_keyframe+empty_moov+delay_moov+default_base_moof+skip_trailer",
        "frag_duration": str(_FRAGMENT_MICROSECONDS),
        "movie_timescale": str(time_base.denominator),
    }


class FragmentFile:
    """A file object for PyAV over an unbuffered file.

    The first error ends all writing: the file is cut back to the last whole fragment, and what the muxer
    writes while it is being closed is thrown away, since half a closing index would harm what is there.

    Args:
        file: Open for writing; closed by ``close``.

    Attributes:
        error: The first error.
        whole_bytes: Where the newest fragment begins, once there is one before it.
    """

    def __init__(self, file: FileIO) -> None:
        self._file = file
        self._position = 0
        self._has_fragment = False
        self.whole_bytes = 0
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        view = memoryview(data)
        if self.error is None:
            if data[4:8] == _MP4_FRAGMENT or data[:4] == _MATROSKA_CLUSTER:
                if self._has_fragment:  # before the first one there is a header only, which nobody can play
                    self.whole_bytes = self._position
                self._has_fragment = True
            try:
                rest = view
                while rest:
                    rest = rest[self._file.write(rest) or 0 :]
            except OSError as error:
                self.error = error
                with contextlib.suppress(OSError):
                    os.truncate(self._file.fileno(), self.whole_bytes)
                raise
        self._position += len(view)
        return len(view)

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        if self.error is None:
            self._position = self._file.seek(offset, whence)
        elif whence == os.SEEK_SET:
            self._position = offset
        return self._position

    def tell(self) -> int:
        return self._position

    def close(self) -> None:
        self._file.close()


def copy_with_index_in_front(path: Path, copy: Path, *, time_base: Fraction) -> bool:
    """Copy an MP4's packets into a plain MP4 with its index in front.

    Args:
        path: The fragmented file; not changed.
        copy: Where the copy goes; an older file there is replaced, and removed where the copy fails.
        time_base: Unit of the time stamps in seconds.

    Returns:
        Whether there is a copy now. There is none if the disk has no room for it; the log tells.
    """
    size_bytes = path.stat().st_size
    free_bytes = shutil.disk_usage(path.parent).free
    if free_bytes < size_bytes + min(size_bytes, _SPARE_BYTES):
        _log.info("%s stays fragmented: the disk has no room for a copy", path)
        return False
    # ``faststart`` makes room in front by writing the file once more, which costs less than it seems: the
    # pages are in memory.
    options = {"movflags": "+faststart", "movie_timescale": str(time_base.denominator)}
    try:
        with (
            av.open(f"file:{path}") as source,
            av.open(f"file:{copy}", "w", format="mp4", options=options) as target,
        ):
            stream = source.streams.video[0]
            copied = target.add_stream_from_template(stream)
            copied.time_base = time_base
            for packet in source.demux(stream):
                if packet.dts is not None:
                    packet.stream = copied
                    target.mux(packet)
    except (av.error.FFmpegError, OSError, OutputError) as error:
        _log.info("%s stays fragmented: %s", path, getattr(error, "strerror", None) or error)
        with contextlib.suppress(OSError):
            copy.unlink(missing_ok=True)
        return False
    return True
