"""Experts on disk: positional reads straight into the buffer, checked before anybody may use them."""

from __future__ import annotations

import io
import logging
import mmap
import os
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from pcmoe_det.committee.layers import RECORD_ALIGNMENT_BYTES, ExpertKey, MoELayerSpec
from pcmoe_det.committee.store_bandwidth import BandwidthLimit
from pcmoe_det.committee.store_base import (
    LONGEST_WAIT_SECONDS,
    ExpertReadError,
    ReadFailure,
    ReadMode,
    ReadResult,
    StoreClosedError,
    StoreCounters,
    StoreError,
    StoreTally,
    check_buffer,
    spec_of,
)

if TYPE_CHECKING:
    from pcmoe_det.committee.packed_model import PackedModel

__all__ = ["DiskExpertStore", "lies_in_memory"]

# Read and check in pieces: a close or a bandwidth limit takes effect between them. Pieces of 0.25 to
# 4 MiB and whole records are equally fast (read and checksum: 3.1 to 3.2 GB/s from the page cache).
_PIECE_BYTES = 1 << 20
_IN_MEMORY_FILE_SYSTEMS = ("tmpfs", "ramfs", "hugetlbfs")
_log = logging.getLogger(__name__)


class DiskExpertStore:
    """The expert file of a packed model.

    Reads hold no lock and release the interpreter (system call and checksum), so several threads read
    at once. Nothing is ever written.

    Args:
        packed: The model.
        cold: Read from the disk itself, not from the system's page cache. ``read_mode`` says how;
            where it cannot be done (a file system in memory) reads stay ``warm``, with a logged warning.
        bandwidth_bytes_per_second: Read no faster than this; None does not limit.
        clock: Seconds, monotonic.
        sleep: Replaces waiting for the bandwidth limit (in tests); the default ends with ``close``.

    Raises:
        StoreError: The file cannot be opened.
    """

    def __init__(
        self,
        packed: PackedModel,
        *,
        cold: bool = False,
        bandwidth_bytes_per_second: float | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], object] | None = None,
    ) -> None:
        self._packed = packed
        self._path: Path = packed.experts_path
        self._clock = clock
        self._closing = threading.Event()
        self._idle = threading.Condition()
        self._readers = 0
        self._failed = False
        self._tally = StoreTally()
        self._limit: BandwidthLimit | None = None
        if bandwidth_bytes_per_second is not None:
            self._limit = BandwidthLimit(
                bandwidth_bytes_per_second, clock=clock, sleep=sleep or self._closing.wait
            )
        self._cold = cold
        try:
            self._file, self._direct_file, self._mode = self._open_files()
        except OSError as error:
            raise StoreError(
                f"cannot open {self._path} ({error.strerror}); check the packed folder"
            ) from error
        if cold and self._mode == "warm":
            _log.warning("%s cannot be read past the system's memory: reads are warm", self._path)

    @property
    def layers(self) -> tuple[MoELayerSpec, ...]:
        """The MoE layers, first to last."""
        return self._packed.layers

    @property
    def read_mode(self) -> ReadMode:
        """How page-aligned buffers (slots) are filled; in mode ``direct`` others are read as ``dropped``."""
        return self._mode

    @property
    def counters(self) -> StoreCounters:
        """Totals so far."""
        return self._tally.counters

    def read_into(self, key: ExpertKey, buffer: Tensor) -> ReadResult:
        """Fill ``buffer`` with an expert's record; see ``ExpertStore.read_into``."""
        try:
            spec = spec_of(self.layers, key)
            check_buffer(buffer, spec)
            if buffer.device.type != "cpu":
                raise ValueError(f"a disk is read into host memory, not into a buffer on {buffer.device}")
            with self._reading():
                result = self._read(key, spec, buffer)
        except ExpertReadError:
            self._tally.add_failure()
            raise
        self._tally.add(result)
        return result

    def close(self) -> None:
        """Wake waiting reads, let running ones end, and close the files. May be called twice.

        The files of a read that hangs stay open until the process ends: their numbers must not serve others.
        """
        with self._idle:
            self._closing.set()
            if not self._idle.wait_for(lambda: self._readers == 0, timeout=LONGEST_WAIT_SECONDS):
                _log.warning("a read of %s has not ended; the file stays open", self._path)
                return
            self._file.close()
            if self._direct_file is not None:
                self._direct_file.close()

    def __enter__(self) -> DiskExpertStore:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Keeps the files open: a number of a closed file may belong to another file already."""
        with self._idle:
            self._check_open()
            self._readers += 1
            open_again = self._failed and self._readers == 1
        try:
            if open_again:
                self._open_again()
            yield
        finally:
            with self._idle:
                self._readers -= 1
                self._idle.notify_all()

    def _open_files(self) -> tuple[io.FileIO, io.FileIO | None, ReadMode]:
        """The file, the same for direct reads where there are some, and how to read. Raises OSError."""
        in_memory = self._cold and (lies_in_memory(self._path) or not hasattr(os, "posix_fadvise"))
        file = io.FileIO(self._path)
        if not self._cold or in_memory:
            return file, None, "warm"
        direct = _open_direct(self._path)
        return file, direct, "dropped" if direct is None else "direct"

    def _open_again(self) -> None:
        """After a failure of the system: a disk that was plugged in or mounted again has a new file.

        Without the lock, because opening may hang as reading may. The files change while no other read uses
        them.
        """
        try:
            fresh = self._open_files()
        except OSError:
            return  # still away, or deleted: the file that is open may recover
        with self._idle:
            alone = self._readers == 1
            if alone:
                unused: tuple[io.FileIO | None, ...] = (self._file, self._direct_file)
                self._file, self._direct_file, self._mode = fresh
                self._failed = False
            else:
                unused = fresh[:2]
        for file in unused:
            if file is not None:
                file.close()

    def _check_open(self) -> None:
        if self._closing.is_set():
            raise StoreClosedError(f"the store of {self._path} is closed; open it again")

    def _read(self, key: ExpertKey, spec: MoELayerSpec, buffer: Tensor) -> ReadResult:
        started = self._clock()
        offset = self._packed.record_offset_bytes(key)
        memory = buffer.numpy().data
        mode = self._mode
        file = self._file
        if mode == "direct" and self._direct_file is not None:
            if buffer.data_ptr() % RECORD_ALIGNMENT_BYTES == 0:
                file = self._direct_file
            else:
                mode = "dropped"
        throttled = 0.0
        checksum = 0
        try:
            if mode == "dropped":
                _drop_pages(file)
            done = 0
            while done < spec.record_bytes:
                self._check_open()
                piece = memory[done : done + _PIECE_BYTES]
                if self._limit is not None:
                    throttled += self._limit.take(len(piece))
                    self._check_open()
                count = os.preadv(file.fileno(), [piece], offset + done)
                # A direct read that ends inside a block has met the end of the file.
                if count == 0 or (mode == "direct" and count % 512):
                    raise self._error(key, spec, "short", f"the file ends after {done + count} bytes of it")
                checksum = zlib.crc32(piece[:count], checksum)
                done += count
            if mode == "dropped":
                _drop_pages(file)
        except OSError as error:
            self._failed = True
            raise self._error(key, spec, "io", error.strerror or str(error)) from error
        expected = self._packed.checksum(key)
        if checksum != expected:
            raise self._error(
                key, spec, "checksum", f"its CRC32 is {checksum:08x}, that of the packed one {expected:08x}"
            )
        return ReadResult(spec.record_bytes, self._clock() - started, throttled, mode)

    def _error(
        self, key: ExpertKey, spec: MoELayerSpec, failure: ReadFailure, reason: str
    ) -> ExpertReadError:
        advice = {
            "io": "check the disk and its connection",
            "short": "the file is truncated: pack the model again",
            "checksum": "the record was changed or damaged: pack the model again",
            "missing": "check the key",
        }[failure]
        return ExpertReadError(
            f"cannot read expert {key.expert} of layer {spec.name} from {self._path}: {reason}; {advice}",
            key=key,
            layer_name=spec.name,
            failure=failure,
        )


def _drop_pages(file: io.FileIO) -> None:
    """Drop the file's pages from the page cache (those that no process maps).

    All of them, because the system keeps pages in blocks of up to megabytes, and a block that reaches
    beyond the given range stays (seen on ext4, Linux 6.18: dropping 7 pages of a copied file dropped none).
    """
    os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def _open_direct(path: Path) -> io.FileIO | None:
    """The file for reads past the page cache; None where the file system has none."""
    flag = getattr(os, "O_DIRECT", None)
    if flag is None:
        return None
    try:
        file = io.FileIO(os.open(path, os.O_RDONLY | flag))
    except OSError:
        return None
    try:
        # Some file systems take the flag and refuse the read; anonymous memory is page aligned.
        with mmap.mmap(-1, RECORD_ALIGNMENT_BYTES) as page:
            os.preadv(file.fileno(), [page], 0)
    except OSError:
        file.close()
        return None
    return file


def lies_in_memory(path: Path) -> bool:
    """Whether the file system of ``path`` is memory by another name (Linux)."""
    table = Path("/proc/self/mountinfo")
    if not table.is_file():
        return False
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    for line in table.read_text(errors="surrogateescape").splitlines():
        before, _, after = line.partition(" - ")
        if before.split()[2] == wanted:
            return after.split()[0] in _IN_MEMORY_FILE_SYSTEMS
    return False
