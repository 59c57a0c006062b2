"""Stores: the right bytes or an error that names the expert, under damage, threads and limits."""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from pcmoe_det.committee import store_disk
from pcmoe_det.committee.layers import ExpertKey
from pcmoe_det.committee.loading import BackgroundLoader, Load
from pcmoe_det.committee.packed_model import PackedModel
from pcmoe_det.committee.packing import pack_random
from pcmoe_det.committee.store import (
    DiskExpertStore,
    ExpertReadError,
    ExpertStore,
    PinnedHostStore,
    StoreClosedError,
    StoreError,
)
from pcmoe_det.committee.store_bandwidth import BandwidthLimit
from pcmoe_det.errors import PcmoeError, UsageError
from tests.committee.packed_samples import LAYERS, flip_bit, page_aligned, record_positions, tiny_info

pytestmark = pytest.mark.timeout(30)


@pytest.fixture(scope="module")
def made_once(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack_random(tiny_info(), tmp_path_factory.mktemp("store") / "packed", dtype=torch.float32).path


@pytest.fixture
def packed(made_once: Path, tmp_path: Path) -> PackedModel:
    """A packed model to damage."""
    return PackedModel.open(shutil.copytree(made_once, tmp_path / "packed"))


def keys(store: ExpertStore) -> list[ExpertKey]:
    return [key for spec in store.layers for key in spec.keys]


def buffer_for(store: ExpertStore, key: ExpertKey) -> torch.Tensor:
    return page_aligned(store.layers[key.layer].record_bytes)


def expected_records(packed: PackedModel) -> dict[ExpertKey, torch.Tensor]:
    """By safetensors' own reader; copies, because mapped pages stay in the page cache."""
    records = {name: record.clone() for name, record in load_file(str(packed.experts_path)).items()}
    return {key: records[f"{spec.name}/{key.expert}"] for spec in packed.layers for key in spec.keys}


def read_whole(store: ExpertStore) -> dict[ExpertKey, torch.Tensor]:
    result = {}
    for key in keys(store):
        result[key] = buffer_for(store, key)
        store.read_into(key, result[key])
    return result


def cached(path: Path, start: int) -> bool:
    """Whether the page cache holds the page at ``start``. (A trial read would start reading ahead.)"""
    size = path.stat().st_size
    with path.open("rb") as file, mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) as mapped:
        address = np.frombuffer(mapped, dtype=np.uint8).ctypes.data
        pages = (ctypes.c_ubyte * -(-size // mmap.PAGESIZE))()
        libc = ctypes.CDLL(None, use_errno=True)
        if libc.mincore(ctypes.c_void_p(address), ctypes.c_size_t(size), pages) != 0:
            pytest.skip(f"mincore: {os.strerror(ctypes.get_errno())}")
        return bool(pages[start // mmap.PAGESIZE] & 1)


def test_reads_what_was_packed_and_counts_it(packed: PackedModel) -> None:
    with DiskExpertStore(packed) as store:
        found = read_whole(store)
        assert store.read_mode == "warm"
        counters = store.counters
    expected = expected_records(packed)
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert (counters.reads, counters.failures) == (6, 0)
    assert counters.bytes_read == sum(size for _, size in record_positions(packed.path).values())


def test_cold_reads_go_past_the_page_cache(packed: PackedModel) -> None:
    expected = expected_records(packed)  # this fills the page cache
    os.sync()
    with DiskExpertStore(packed, cold=True) as store:
        if store.read_mode == "warm":
            pytest.skip("the temporary folder lies in memory")
        key = ExpertKey(1, 1)
        start = packed.record_offset_bytes(key)
        spec = packed.layers[1]
        mode = store.read_mode

        aligned = buffer_for(store, key)
        result = store.read_into(key, aligned)
        assert (result.read_mode, result.bytes_read) == (mode, spec.record_bytes)
        assert torch.equal(aligned, expected[key])

        # A buffer that the disk cannot write to directly: the record's pages are dropped instead.
        odd = torch.zeros(spec.record_bytes + 4160, dtype=torch.uint8)
        odd = odd[-odd.data_ptr() % 4096 + 64 :][: spec.record_bytes]
        assert store.read_into(key, odd).read_mode == "dropped"
        assert torch.equal(odd, expected[key])
        assert not cached(packed.experts_path, start)
        store.read_into(key, aligned)
        assert not cached(packed.experts_path, start)
    with DiskExpertStore(packed) as store:
        store.read_into(key, aligned)
    assert cached(packed.experts_path, start)


@pytest.mark.parametrize("refused_at", ["open", "read"])
def test_without_direct_reads_pages_are_dropped(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch, refused_at: str
) -> None:
    def refuse(*_: object) -> Any:
        raise OSError(errno.EINVAL, "no O_DIRECT here")

    with monkeypatch.context() as patch:
        patch.setattr(store_disk, "lies_in_memory", lambda _path: False)
        patch.setattr(os, "open" if refused_at == "open" else "preadv", refuse)
        store = DiskExpertStore(packed, cold=True)
    expected = expected_records(packed)
    assert store.read_mode == "dropped"
    assert all(torch.equal(value, expected[key]) for key, value in read_whole(store).items())
    store.close()


def test_pages_are_dropped_before_a_read_and_after_it(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    os.sync()
    with DiskExpertStore(packed, cold=True) as store:
        if store.read_mode == "warm":
            pytest.skip("the temporary folder lies in memory")
        store._mode = "dropped"
        start = packed.record_offset_bytes(ExpertKey(0, 1))
        preadv = os.preadv
        was_cached: list[bool] = []

        def observed(*arguments: Any) -> int:
            was_cached.append(cached(packed.experts_path, start))
            return preadv(*arguments)

        monkeypatch.setattr(os, "preadv", observed)
        packed.experts_path.read_bytes()  # as another process may do
        assert cached(packed.experts_path, start)
        store.read_into(ExpertKey(0, 1), buffer_for(store, ExpertKey(0, 1)))
        assert was_cached[0] is False
        assert not cached(packed.experts_path, start)


def test_memory_by_another_name_is_not_called_cold(made_once: Path, caplog: pytest.LogCaptureFixture) -> None:
    shared_memory = Path("/dev/shm")
    if not shared_memory.is_dir() or not os.access(shared_memory, os.W_OK):
        pytest.skip("no /dev/shm")
    folder = shared_memory / f"pcmoe-test-{os.getpid()}"
    try:
        packed = PackedModel.open(shutil.copytree(made_once, folder))
        with DiskExpertStore(packed, cold=True) as store:
            assert store.read_mode == "warm"
            read_whole(store)
    finally:
        shutil.rmtree(folder, ignore_errors=True)
    assert "reads are warm" in caplog.text


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("place", [0, 5000, -1], ids=["first", "middle", "padding"])
def test_a_changed_record_is_refused_by_name_and_others_are_not(
    packed: PackedModel, place: int, cold: bool
) -> None:
    start, size = record_positions(packed.path)[f"{LAYERS[1]}/2"]
    flip_bit(packed.experts_path, start + place % size)
    os.sync()
    bad = ExpertKey(1, 2)
    with DiskExpertStore(packed, cold=cold) as store:
        for key in keys(store):
            if key != bad:
                store.read_into(key, buffer_for(store, key))
        for _ in range(2):
            with pytest.raises(ExpertReadError, match=f"expert 2 of layer {LAYERS[1]} .*CRC32") as caught:
                store.read_into(bad, buffer_for(store, bad))
        counters = store.counters
    assert (caught.value.key, caught.value.layer_name) == (bad, LAYERS[1])
    assert caught.value.failure == "checksum"
    assert isinstance(caught.value, PcmoeError)
    assert (counters.reads, counters.failures) == (5, 2)


@pytest.mark.parametrize("cold", [False, True])
@pytest.mark.parametrize("missing_bytes", [1, 4096, 5000])
def test_a_file_cut_after_opening_is_refused_by_name(
    packed: PackedModel, missing_bytes: int, cold: bool
) -> None:
    last = ExpertKey(1, 2)
    with DiskExpertStore(packed, cold=cold) as store:
        os.truncate(packed.experts_path, packed.experts_path.stat().st_size - missing_bytes)
        store.read_into(ExpertKey(1, 1), buffer_for(store, ExpertKey(1, 1)))
        with pytest.raises(ExpertReadError, match=f"expert 2 of layer {LAYERS[1]} .*truncated") as caught:
            store.read_into(last, buffer_for(store, last))
    assert caught.value.failure == "short"


def test_an_error_of_the_disk_is_translated_and_a_retry_works(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ExpertKey(0, 1)
    with DiskExpertStore(packed) as store:
        with monkeypatch.context() as patch:
            patch.setattr(
                os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, os.strerror(errno.EIO)))
            )
            with pytest.raises(
                ExpertReadError, match=f"expert 1 of layer {LAYERS[0]} .*output error"
            ) as caught:
                store.read_into(key, buffer_for(store, key))
        assert caught.value.failure == "io"
        buffer = buffer_for(store, key)
        store.read_into(key, buffer)
        assert torch.equal(buffer, expected_records(packed)[key])
        assert (store.counters.reads, store.counters.failures) == (1, 1)


def test_a_file_that_was_put_back_is_opened_again(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    key = ExpertKey(0, 1)
    with DiskExpertStore(packed) as store:
        before = store._file
        with monkeypatch.context() as patch:
            patch.setattr(
                os,
                "preadv",
                lambda *_: (_ for _ in ()).throw(OSError(errno.ESTALE, os.strerror(errno.ESTALE))),
            )
            with pytest.raises(ExpertReadError):
                store.read_into(key, buffer_for(store, key))
        store.read_into(key, buffer_for(store, key))
        assert before.closed
        assert store._file is not before


@pytest.mark.timeout(30)
def test_closing_does_not_wait_for_a_read_that_hangs(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hanging, go_on = threading.Event(), threading.Event()
    preadv = os.preadv

    def hang(*arguments: Any) -> int:
        hanging.set()
        assert go_on.wait(20)
        return preadv(*arguments)

    monkeypatch.setattr(os, "preadv", hang)
    monkeypatch.setattr(store_disk, "LONGEST_WAIT_SECONDS", 0.05)
    store = DiskExpertStore(packed)
    loader = BackgroundLoader(store, patience_seconds=0.05)
    key = ExpertKey(0, 0)
    load = Load(key, 0, buffer_for(store, key), None, submitted_at_seconds=0.0, submitted_frame=0)
    loader.submit(load)
    assert hanging.wait(10)
    loader.close()
    store.close()
    assert "left behind" in caplog.text
    assert not store._file.closed  # its number must not serve another file while the read is under way
    go_on.set()


@pytest.mark.timeout(30)
def test_closing_does_not_wait_for_a_file_that_hangs_when_opened_again(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hanging, go_on = threading.Event(), threading.Event()
    key = ExpertKey(0, 0)
    store = DiskExpertStore(packed)
    buffers = [buffer_for(store, key) for _ in range(2)]
    open_files = store._open_files

    def hang() -> Any:
        hanging.set()
        assert go_on.wait(20)
        return open_files()

    with monkeypatch.context() as patch:
        patch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "broken")))
        with pytest.raises(ExpertReadError):
            store.read_into(key, buffers[0])
    monkeypatch.setattr(store, "_open_files", hang)
    monkeypatch.setattr(store_disk, "LONGEST_WAIT_SECONDS", 0.05)

    errors: list[BaseException] = []

    def read() -> None:
        try:
            store.read_into(key, buffers[0])
        except StoreClosedError as error:
            errors.append(error)

    reader = threading.Thread(target=read, daemon=True)
    reader.start()
    assert hanging.wait(10)
    store.read_into(key, buffers[1])  # by way of the file that is open
    assert torch.equal(buffers[1], expected_records(packed)[key])
    store.close()
    assert "stays open" in caplog.text
    go_on.set()
    reader.join(10)
    assert not reader.is_alive()
    assert len(errors) == 1


def test_reads_in_small_portions_are_put_together(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    preadv = os.preadv
    monkeypatch.setattr(os, "preadv", lambda file, buffers, offset: preadv(file, [buffers[0][:1000]], offset))
    monkeypatch.setattr(store_disk, "_PIECE_BYTES", 3000)
    with DiskExpertStore(packed) as store:
        found = read_whole(store)
    expected = expected_records(packed)
    assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_experts_and_buffers_that_cannot_be(packed: PackedModel) -> None:
    with DiskExpertStore(packed) as store:
        with pytest.raises(
            ExpertReadError, match=f"layer {LAYERS[0]} has no expert 3: it has experts 0 to 2"
        ):
            store.read_into(ExpertKey(0, 3), buffer_for(store, ExpertKey(0, 0)))
        with pytest.raises(ExpertReadError, match="the model has layers 0 to 1") as caught:
            store.read_into(ExpertKey(2, 0), buffer_for(store, ExpertKey(0, 0)))
        assert caught.value.failure == "missing"
        assert store.counters.failures == 2
        size = packed.layers[0].record_bytes
        for buffer in (
            torch.empty(size + 1, dtype=torch.uint8),
            torch.empty(size, dtype=torch.int8),
            torch.empty(2 * size, dtype=torch.uint8)[::2],
            torch.empty(size, dtype=torch.uint8, device="meta"),
        ):
            with pytest.raises(ValueError, match=r"contiguous buffer|host memory"):
                store.read_into(ExpertKey(0, 0), buffer)


def test_a_missing_file_is_named(packed: PackedModel) -> None:
    packed.experts_path.unlink()
    with pytest.raises(StoreError, match=r"cannot open .*experts\.safetensors"):
        DiskExpertStore(packed)


def test_threads_read_at_once_and_are_all_counted(packed: PackedModel) -> None:
    expected = expected_records(packed)
    with DiskExpertStore(packed, cold=True) as store, ThreadPoolExecutor(4) as pool:

        def work(number: int) -> bool:
            key = keys(store)[number % 6]
            buffer = buffer_for(store, key)
            store.read_into(key, buffer)
            return torch.equal(buffer, expected[key])

        assert all(pool.map(work, range(120)))
        assert store.counters.reads == 120
        assert store.counters.bytes_read == 20 * sum(record.numel() for record in expected.values())


def test_the_bandwidth_is_kept_also_by_several_threads(packed: PackedModel) -> None:
    now = 0.0
    lock = threading.Lock()
    until = 0.0

    def sleep(seconds: float) -> None:
        nonlocal until
        with lock:  # the clock stands while readers reserve; the latest end counts
            until = max(until, now + seconds)

    total = packed.expert_bytes
    with (
        DiskExpertStore(
            packed, bandwidth_bytes_per_second=total / 10, clock=lambda: now, sleep=sleep
        ) as store,
        ThreadPoolExecutor(3) as pool,
    ):
        list(pool.map(lambda key: store.read_into(key, buffer_for(store, key)), keys(store)))
    # All records take ten seconds, less the burst of 20 ms that may come at once.
    assert until == pytest.approx(10 - 0.02)


def test_a_pause_does_not_save_up_more_than_the_burst() -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    limit = BandwidthLimit(1000, clock=lambda: now, sleep=sleep)
    assert limit.take(20) == 0.0  # the burst
    assert limit.take(100) == pytest.approx(0.1)
    now += 3600
    assert limit.take(20) == 0.0
    assert limit.take(1000) == pytest.approx(1.0)
    for rate in (0, -1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="must be above 0"):
            BandwidthLimit(rate, clock=lambda: now, sleep=sleep)


def test_throttled_time_is_told(packed: PackedModel) -> None:
    now = 0.0

    def sleep(seconds: float) -> None:
        nonlocal now
        now += seconds

    size = packed.layers[0].record_bytes
    store = DiskExpertStore(packed, bandwidth_bytes_per_second=size / 5, clock=lambda: now, sleep=sleep)
    result = store.read_into(ExpertKey(0, 0), buffer_for(store, ExpertKey(0, 0)))
    assert result.throttled_seconds == pytest.approx(5 - 0.02)
    assert result.seconds == pytest.approx(result.throttled_seconds)
    assert store.counters.throttled_seconds == result.throttled_seconds
    store.close()


def test_closing_wakes_a_reader_that_waits(packed: PackedModel) -> None:
    store = DiskExpertStore(packed, bandwidth_bytes_per_second=1)  # a record takes days
    errors: list[BaseException] = []
    limit = store._limit
    assert limit is not None
    waiting = threading.Event()
    take = limit.take

    def observed(num_bytes: int) -> float:
        waiting.set()
        return take(num_bytes)

    limit.take = observed  # type: ignore[method-assign]

    def read() -> None:
        try:
            store.read_into(ExpertKey(0, 0), buffer_for(store, ExpertKey(0, 0)))
        except StoreError as error:
            errors.append(error)

    thread = threading.Thread(target=read)
    thread.start()
    assert waiting.wait(10)
    store.close()
    thread.join(10)
    assert not thread.is_alive()
    assert [type(error) for error in errors] == [StoreClosedError]
    store.close()
    with pytest.raises(StoreClosedError, match="is closed; open it again"):
        store.read_into(ExpertKey(0, 0), buffer_for(store, ExpertKey(0, 0)))
    assert store.counters.failures == 0


def test_closing_waits_for_the_system_call_and_not_for_the_record(
    packed: PackedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    started, go_on = threading.Event(), threading.Event()
    preadv = os.preadv
    calls: list[int] = []

    def slow(*arguments: Any) -> int:
        calls.append(1)
        started.set()
        assert go_on.wait(10)
        return preadv(*arguments)

    store = DiskExpertStore(packed)
    monkeypatch.setattr(os, "preadv", slow)
    monkeypatch.setattr(store_disk, "_PIECE_BYTES", 4096)
    key = ExpertKey(0, 0)
    with ThreadPoolExecutor(1) as pool:
        reading = pool.submit(store.read_into, key, buffer_for(store, key))
        assert started.wait(10)
        closer = threading.Thread(target=store.close)
        closer.start()
        assert store._closing.wait(10)
        assert not store._file.closed
        go_on.set()
        closer.join(10)
        assert store._file.closed
        assert isinstance(reading.exception(10), StoreClosedError)
    assert len(calls) == 1


def test_host_memory_store_gives_the_same_bytes(packed: PackedModel) -> None:
    with DiskExpertStore(packed) as disk:
        store = PinnedHostStore(disk, pinned=False)
    packed.experts_path.unlink()
    found = read_whole(store)
    # The file is gone: a fresh pack of the same seed has the same bytes.
    again = pack_random(tiny_info(), packed.path.parent / "again", dtype=torch.float32)
    expected = expected_records(again)
    assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert store.counters.reads == 6
    assert store.counters.bytes_read == sum(size for _, size in record_positions(again.path).values())
    store.close()
    with pytest.raises(StoreClosedError):
        store.read_into(ExpertKey(0, 0), buffer_for(store, ExpertKey(0, 0)))


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
def test_pinned_memory_without_cuda_is_refused(packed: PackedModel) -> None:
    with DiskExpertStore(packed) as disk, pytest.raises(UsageError, match="needs a CUDA device"):
        PinnedHostStore(disk)


def test_host_memory_store_checks_while_it_copies(packed: PackedModel) -> None:
    flip_bit(packed.experts_path, record_positions(packed.path)[f"{LAYERS[0]}/1"][0])
    with DiskExpertStore(packed) as disk, pytest.raises(ExpertReadError, match="expert 1 of layer"):
        PinnedHostStore(disk, pinned=False)
