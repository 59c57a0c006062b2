"""Budgets as users write them, their division, and the memory behind slots."""

from __future__ import annotations

import os
import re
from itertools import product

import pytest
import torch

from pcmoe_det.committee.accounting import anonymous_memory_bytes
from pcmoe_det.committee.budget import divide_budget, parse_budget, smallest_budget
from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec, RecordLayout
from pcmoe_det.committee.residency import Residency
from pcmoe_det.committee.slots import SlotPool
from pcmoe_det.errors import UsageError


def spec(index: int, num_experts: int, channels: int) -> MoELayerSpec:
    layout = RecordLayout.for_expert(channels, 4 * channels, torch.float32)
    return MoELayerSpec(
        index, f"layer{index}", num_experts, channels, 4 * channels, layout, (1.0,) * num_experts
    )


SPECS = (spec(0, 6, 16), spec(1, 6, 16), spec(2, 4, 32))


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("0.5", 500),
        ("50%", 500),
        ("1", 1000),
        ("300MiB", 300 * 2**20),
        ("1.5 GB", 1_500_000_000),
        ("64 KiB", 65536),
        ("196 bytes", 196),
        ("0.29", 290),  # 289.99... as a float
        ("2" * 17 + "B", int("2" * 17)),
    ],
)
def test_budgets_are_shares_or_sizes(text: str, expected: int) -> None:
    assert parse_budget(text, total_bytes=1000) == expected


@pytest.mark.parametrize("text", ["0", "1.5", "-1", "half", "10 parsecs", "", "0MiB", "200%", "1e3"])
def test_other_budgets_are_refused_by_name(text: str) -> None:
    with pytest.raises(UsageError, match=re.escape(repr(text))):
        parse_budget(text, total_bytes=1000)


@pytest.mark.parametrize("text", ["9" * 400 + "MiB", "9" * 5000, "9" * 5000 + "GiB", "1" + "x" * 400])
def test_endless_budgets_are_refused_in_a_short_sentence(text: str) -> None:
    with pytest.raises(UsageError, match=r"\.\.\.'.*write a share such as 0\.5 or 50%") as caught:
        parse_budget(text, total_bytes=1000)
    assert len(str(caught.value)) < 250


@pytest.mark.parametrize("reserve", [0, 1, 4096, 50_000])
def test_the_smallest_budget_that_is_named_is_enough(reserve: int) -> None:
    total = sum(layer.expert_bytes for layer in SPECS)
    with pytest.raises(UsageError, match="the smallest possible is") as caught:
        divide_budget(SPECS, 1, reserve_bytes=reserve)
    size, share = re.findall(r"smallest possible is (\d+ bytes) \((0\.\d+) of all", str(caught.value))[0]
    for text in (size, share):
        numbers = divide_budget(SPECS, parse_budget(text, total_bytes=total), reserve_bytes=reserve)
        assert min(numbers) >= 1
    with pytest.raises(UsageError):
        divide_budget(SPECS, parse_budget(size, total_bytes=total) - 1, reserve_bytes=reserve)


def test_every_named_share_holds_its_bytes() -> None:
    for total in (1000, 4096 * 7, 33_165_312):
        for num_bytes in range(1, total + 1, max(1, total // 997)):
            share = smallest_budget(num_bytes, total_bytes=total).split("(")[1].split()[0]
            assert parse_budget(share, total_bytes=total) >= num_bytes
    assert smallest_budget(1500, total_bytes=1000) == "1500 bytes (all experts have 1000)"


@pytest.mark.parametrize(("share", "reserve"), list(product([0.4, 0.5, 0.75, 1.0], [0, 1])))
def test_a_division_never_exceeds_the_budget_and_leaves_no_room_unused(share: float, reserve: int) -> None:
    total = sum(layer.expert_bytes for layer in SPECS)
    room = max(layer.record_bytes for layer in SPECS) * reserve
    numbers = divide_budget(SPECS, int(share * total), reserve_bytes=room)
    spent = room + sum(number * layer.record_bytes for number, layer in zip(numbers, SPECS, strict=True))
    assert spent <= share * total
    for number, layer in zip(numbers, SPECS, strict=True):
        assert 1 <= number <= layer.num_experts
        assert number == layer.num_experts or spent + layer.record_bytes > share * total


def test_slots_return_their_memory_to_the_system() -> None:
    layout = RecordLayout.for_expert(512, 2048, torch.float32)  # 8 MiB a record
    pool = SlotPool(layout, max_slots=8, device=torch.device("cpu"))
    before = anonymous_memory_bytes() or 0
    slots = [pool.take() for _ in range(6)]
    for slot in slots:
        pool.buffer(slot).fill_(1)
    assert pool.mapped_bytes == 6 * layout.record_bytes
    assert (anonymous_memory_bytes() or 0) - before > 5 * layout.record_bytes
    for slot in slots:
        pool.give_back(slot)
    assert pool.mapped_bytes == 6 * layout.record_bytes  # kept for the next load
    while pool.unmap_idle():
        pass
    assert pool.mapped_bytes == 0
    assert (anonymous_memory_bytes() or 0) - before < layout.record_bytes


def test_on_a_device_only_mapped_slots_have_memory() -> None:
    pool = SlotPool(SPECS[0].layout, max_slots=3, device=torch.device("meta"))  # no memory of the host
    slots = [pool.take() for _ in range(2)]
    for slot in slots:
        assert pool.buffer(slot).device.type == pool.weights(slot).fc1_weight.device.type == "meta"
    assert sum(buffer is not None for buffer in pool._buffers) == 2
    weights = pool.weights(slots[0])
    pool.give_back(slots[0])
    assert pool.take() == slots[0]
    assert pool.weights(slots[0]) is weights
    for slot in slots:
        pool.give_back(slot)
    while pool.unmap_idle():
        pass
    assert not any(part is not None for part in (*pool._buffers, *pool._weights))


def test_a_slot_is_reused_without_new_memory_and_views_share_it() -> None:
    layout = RecordLayout.for_expert(16, 64, torch.float32)
    pool = SlotPool(layout, max_slots=2, device=torch.device("cpu"))
    slot = pool.take()
    pool.buffer(slot).fill_(0)
    weights = pool.weights(slot)
    pool.buffer(slot)[:4].view(torch.float32).fill_(3.0)
    assert float(weights.fc1_weight[0, 0]) == 3.0
    pool.give_back(slot)
    assert pool.take() == slot
    assert pool.weights(slot) is weights
    pool.take()
    with pytest.raises(RuntimeError, match="all 2 slots"):
        pool.take()


def test_idle_slots_of_one_layout_make_room_for_another() -> None:
    small, large = SPECS[0].record_bytes, SPECS[2].record_bytes
    budget = large + 2 * small
    residency = Residency(SPECS, budget_bytes=budget, device=torch.device("cpu"))
    keys = [ExpertKey(0, 0), ExpertKey(0, 1), ExpertKey(1, 0)]
    for key in keys:
        slot = residency.take_slot(key.layer)
        assert slot is not None
        residency.put(key, slot)
    assert residency.mapped_bytes == 3 * small
    residency.evict(keys[0])
    assert residency.mapped_bytes == 3 * small
    assert residency.take_slot(2) is not None
    assert residency.mapped_bytes == large + 2 * small <= budget
    assert residency.take_slot(2) is None  # no room, and nothing idle left
    assert residency.take_slot(0) is None
    assert residency.residents(0) == (1,)
    assert residency.mask(0).tolist() == [False, True, False, False, False, False]


def test_experts_may_exceed_the_memory_of_the_machine() -> None:
    layout = RecordLayout.for_expert(4096, 16384, torch.float32)
    memory_bytes = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    pool = SlotPool(layout, max_slots=2 * memory_bytes // layout.record_bytes, device=torch.device("cpu"))
    pool.buffer(pool.take())[0] = 1
    assert pool.mapped_bytes == layout.record_bytes


def test_no_address_space_is_one_sentence() -> None:
    layout = RecordLayout.for_expert(4096, 16384, torch.float32)
    with pytest.raises(UsageError, match="address space for expert slots"):
        SlotPool(layout, max_slots=2**30, device=torch.device("cpu"))
