"""Runs in processes of its own: packing that is killed, and memory that is measured.

``python -m tests.committee.packed_child PACK SMALL_WEIGHTS LARGE_WEIGHTS FOLDER`` prints JSON. Torch has one
thread here (the caller sets it), so that forking is safe.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from pcmoe_det.committee.packed_model import PackedModel
from pcmoe_det.committee.packing import pack
from pcmoe_det.committee.store import DiskExpertStore
from pcmoe_det.errors import CheckpointError

_CALLS = ("open", "mkdir", "write", "fsync", "rename", "unlink", "rmdir", "chmod")


def _count_calls(at_call: Callable[[int], None]) -> None:
    """Call ``at_call(n)`` before the n-th call that changes files."""
    count = 0

    def wrap(function: Callable[..., Any]) -> Callable[..., Any]:
        def wrapped(*args: Any, **options: Any) -> Any:
            nonlocal count
            count += 1
            at_call(count)
            return function(*args, **options)

        return wrapped

    for name in _CALLS:
        setattr(os, name, wrap(getattr(os, name)))


def _in_child(work: Callable[[], None]) -> int:
    """Wait status of a forked process."""
    process = os.fork()
    if process == 0:
        try:
            work()
        except BaseException:
            sys.excepthook(*sys.exc_info())
            os._exit(1)
        os._exit(0)
    return os.waitpid(process, 0)[1]


def _state(folder: Path) -> str:
    """``refused``, or the dtype of a pack all of whose records are whole."""
    try:
        packed = PackedModel.open(folder)
    except CheckpointError:
        return "refused"
    dense = json.loads((folder / "model.json").read_text())["dense"]
    if zlib.crc32((folder / "dense.safetensors").read_bytes()) != dense["crc32"]:
        return "damaged"
    with DiskExpertStore(packed) as store:
        for spec in packed.layers:
            for key in spec.keys:
                store.read_into(key, torch.empty(spec.record_bytes, dtype=torch.uint8))
    return str(packed.dtype)


def kill(weights: Path, folder: Path) -> list[dict[str, Any]]:
    """Pack in bfloat16, fresh and over a float32 pack, killed before every call that changes files."""
    results = []
    for overwrite in (False, True):
        moment = 0
        while True:
            moment += 1
            target = folder / f"{overwrite}-{moment}"
            if overwrite:
                pack(None, weights, target, dtype=torch.float32)

            def killed(target: Path = target, moment: int = moment) -> None:
                def at_call(number: int) -> None:
                    if number == moment:
                        os.kill(os.getpid(), signal.SIGKILL)

                _count_calls(at_call)
                pack(None, weights, target, dtype=torch.bfloat16, overwrite=True)

            status = _in_child(killed)
            if not os.WIFSIGNALED(status):
                results.append({"overwrite": overwrite, "moments": moment - 1, "exit": status})
                break
            after = _state(target)
            again = pack(None, weights, target, dtype=torch.bfloat16, overwrite=True)
            left = sorted(entry.name for entry in folder.iterdir())
            results.append(
                {
                    "overwrite": overwrite,
                    "moment": moment,
                    "after_kill": after,
                    "after_next": _state(again.path),
                    "only_the_pack_is_left": left == [target.name],
                }
            )
            shutil.rmtree(target)
        shutil.rmtree(target)
    return results


def _anonymous_bytes() -> int:
    match = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert match
    return int(match[1]) * 1024


class _Peak:
    """Largest anonymous memory while the block runs, above that at its start."""

    def __enter__(self) -> _Peak:
        self._start = _anonymous_bytes()
        self.growth_bytes = 0
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def _watch(self) -> None:
        while not self._done.is_set():
            self.growth_bytes = max(self.growth_bytes, _anonymous_bytes() - self._start)
            time.sleep(0.001)

    def __exit__(self, *_: object) -> None:
        self._done.set()
        self._thread.join()
        self.growth_bytes = max(self.growth_bytes, _anonymous_bytes() - self._start)


def memory(weights: Path, folder: Path) -> dict[str, int]:
    """Growth of anonymous memory in each step."""
    with _Peak() as packing:
        packed = pack(None, weights, folder, dtype=torch.float32)
    with _Peak() as opening:
        packed = PackedModel.open(folder)
        model = packed.build_detector_model()
    with _Peak() as reading, DiskExpertStore(packed) as store:
        buffers = {spec.layout: torch.zeros(spec.record_bytes, dtype=torch.uint8) for spec in packed.layers}
        for spec in packed.layers:
            for key in spec.keys:
                store.read_into(key, buffers[spec.layout])
    with _Peak() as loading:
        packed.materialize_experts(model)
    return {
        "packing": packing.growth_bytes,
        "opening": opening.growth_bytes,
        "reading": reading.growth_bytes,
        "loading": loading.growth_bytes,
        "buffers": sum(layout.record_bytes for layout in buffers),
        "dense": packed.dense_bytes,
        "experts": packed.expert_bytes,
    }


if __name__ == "__main__":
    pack_folder, small, large, target_folder = map(Path, sys.argv[1:])
    # A first model takes what importing and building cost once.
    PackedModel.open(pack_folder).build_detector_model()
    (target_folder / "killed").mkdir()
    used = memory(large, target_folder / "large")
    print(json.dumps({"memory": used, "kills": kill(small, target_folder / "killed")}))
