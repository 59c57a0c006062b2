"""A disk with little room: a small tmpfs where mounting is allowed, else writes that fail at a limit."""

from __future__ import annotations

import errno
import os
import subprocess
from functools import lru_cache
from io import FileIO
from pathlib import Path
from typing import Any

from tests.faults.bench import Bench

__all__ = ["can_mount", "small_disk"]


@lru_cache(maxsize=1)
def can_mount() -> bool:
    """Whether this process may mount a tmpfs; ``PCMOE_NO_MOUNT=1`` says no."""
    if os.geteuid() != 0 or "PCMOE_NO_MOUNT" in os.environ:
        return False
    probe = subprocess.run(["unshare", "-m", "true"], capture_output=True, check=False)
    return probe.returncode == 0


def small_disk(bench: Bench, *, kib: int, name: str = "disk") -> Path:
    """A folder on a disk of ``kib`` KiB, until the case is over."""
    folder = bench.folder / name
    folder.mkdir()
    if can_mount():
        options = f"size={kib}k,mode=755"
        mounted = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "pcmoe-test", str(folder)],
            capture_output=True,
            check=False,
        )
        if mounted.returncode == 0:
            bench.stack.callback(subprocess.run, ["umount", "-l", str(folder)], check=False)
            return folder
    _limit_writes(bench, folder, kib * 1024)
    return folder


def _limit_writes(bench: Bench, folder: Path, budget_bytes: int) -> None:
    """Have every way in which outputs are written fail beyond what the folder has room for."""
    from pcmoe_det.streaming import output_files

    def check(path: str | Path, more: int) -> None:
        if Path(path).is_relative_to(folder):
            used = sum(file.stat().st_blocks * 512 for file in folder.rglob("*") if file.is_file())
            if more and used + more > budget_bytes:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    class File(FileIO):
        def write(self, data: Any) -> int:
            check(str(self.name), len(data))
            return super().write(data)

    pwrite, write_bytes, path_open = os.pwrite, Path.write_bytes, Path.open

    def limited_pwrite(descriptor: int, data: Any, offset: int) -> int:
        allocated = os.fstat(descriptor).st_blocks * 512
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        check(path, max(0, offset + len(data) - allocated))
        return pwrite(descriptor, data, offset)

    def limited_write_bytes(path: Path, data: Any) -> int:
        check(path, len(data))
        return write_bytes(path, data)

    def limited_open(path: Path, mode: str = "r", *arguments: Any, **settings: Any) -> Any:
        if mode == "ab":  # the trial before the model is loaded
            check(path, 64 * 1024)
        return path_open(path, mode, *arguments, **settings)

    bench.patch.setattr(output_files, "FileIO", File)
    bench.patch.setattr(os, "pwrite", limited_pwrite)
    bench.patch.setattr(Path, "write_bytes", limited_write_bytes)
    bench.patch.setattr(Path, "open", limited_open)
