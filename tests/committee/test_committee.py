"""The committee on a small model: exactness, determinism, budgets, failures, counters."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

import numpy as np
import pytest
import torch

from pcmoe_det.committee import loading
from pcmoe_det.committee.accounting import merge_reports
from pcmoe_det.committee.committee import FRAME_COUNTS
from pcmoe_det.committee.layers import ExpertKey
from pcmoe_det.committee.loading import LOADER_NAME
from pcmoe_det.committee.modules import MaskedGate
from pcmoe_det.committee.store_base import ExpertReadError, ReadResult, StoreError
from pcmoe_det.committee.store_memory import MemoryExpertStore
from pcmoe_det.errors import UsageError
from tests.committee.small_model import SmallDetector, make_committee, run, same, video


@pytest.mark.parametrize("top_k", [1, 2])
@pytest.mark.parametrize(
    ("policy", "budget"),
    [("all", 0.3), ("all", 1.0), ("on_demand", 0.9), ("on_demand", 0.3), ("on_demand", 0.12)],
)
def test_exact_policies_equal_the_unpatched_model_to_the_bit(policy: str, budget: float, top_k: int) -> None:
    model, frames = SmallDetector(top_k=top_k), video(5)
    expected = run(model, frames)
    made = make_committee(model, policy=policy, budget=budget)
    with made.committee.patched(model):
        assert same(run(model, frames), expected)
        assert made.committee.residency.mapped_bytes <= max(budget, policy == "all") * made.total_bytes


@pytest.mark.parametrize("policy", ["pcmoe", "random_keep", "magnitude_keep"])
@pytest.mark.parametrize("on_miss", ["exchange", "skip", "rerank"])
def test_a_committee_stays_within_its_budget_and_gives_finite_maps(policy: str, on_miss: str) -> None:
    model, frames = SmallDetector(), video(8)
    made = make_committee(model, policy=policy, budget=0.5, on_miss=on_miss)
    expected = run(model, frames)
    with made.committee.patched(model):
        for frame in frames:
            maps = run(model, [frame])[0]
            assert all(feature.isfinite().all() for feature in maps)
            assert made.committee.residency.mapped_bytes <= 0.5 * made.total_bytes
        assert not same(run(model, frames), expected)
    assert made.committee.accounting.to_json_dict()["miss_tokens"] > 0


def test_unpatching_restores_the_same_objects_also_after_an_exception() -> None:
    model, frames = SmallDetector(), video(3)
    expected = run(model, frames)
    before = dict(model.named_modules())
    parameters = [name for name, _ in model.named_parameters()]
    made = make_committee(model)
    with pytest.raises(RuntimeError, match="camera"), made.committee.patched(model):
        assert any(isinstance(module, MaskedGate) for module in model.modules())
        run(model, frames)
        raise RuntimeError("camera")
    after = dict(model.named_modules())
    assert after.keys() == before.keys()
    assert all(after[name] is module for name, module in before.items())
    assert [name for name, _ in model.named_parameters()] == parameters
    assert not model.backbone._forward_hooks
    assert not model.backbone._forward_pre_hooks
    assert same(run(model, frames), expected)


def test_an_exception_inside_a_frame_does_not_spoil_the_next() -> None:
    model, frames = SmallDetector(), video(4)
    made = make_committee(model)
    with made.committee.patched(model):
        run(model, frames[:2])
        handle = model.backbone.stages[3].register_forward_pre_hook(lambda *_: None)
        block = model.backbone.stages[3].blocks[0]
        broken = block.register_forward_pre_hook(_raise)
        with pytest.raises(RuntimeError, match="broken"):
            run(model, frames[2:3])
        broken.remove()
        handle.remove()
        run(model, frames[2:])
    assert made.committee.accounting.frames == 4


def _raise(*_: Any) -> None:
    raise RuntimeError("broken")


def test_two_committees_cannot_patch_one_model() -> None:
    model = SmallDetector()
    first, second = make_committee(model), make_committee(model)
    with (
        first.committee.patched(model),
        pytest.raises(UsageError, match="patched already"),
        second.committee.patched(model),
    ):
        pass


def test_a_model_of_other_weights_is_refused() -> None:
    made = make_committee(SmallDetector(num_experts=6))
    with (
        pytest.raises(UsageError, match="has 4 experts, the store 6"),
        made.committee.patched(SmallDetector(num_experts=4)),
    ):
        pass


def residents(committee: Any) -> list[tuple[int, ...]]:
    return [committee.residency.residents(layer) for layer in range(len(committee.specs))]


def test_two_synchronous_runs_make_the_same_swaps_and_maps() -> None:
    frames = video(12)
    results = []
    for _ in range(2):
        model = SmallDetector()
        made = make_committee(model)
        history = []
        with made.committee.patched(model):
            maps = []
            for frame in frames:
                maps += run(model, [frame])
                history.append(residents(made.committee))
        results.append((maps, history, made.committee.accounting.to_json_dict()["swaps"]))
    assert same(results[0][0], results[1][0])
    assert results[0][1:] == results[1][1:]
    assert results[0][2] > 0


@pytest.mark.parametrize("importance", ["eq1", "random"])
@pytest.mark.parametrize("update_period", [1, 4])
def test_reset_gives_the_same_run_again(importance: str, update_period: int) -> None:
    model, frames = SmallDetector(), video(6)  # no multiple of the period
    options = {"importance": importance, "margin": 0.0}
    made = make_committee(model, policy_options=options, update_period=update_period, scene_cut=1.0)
    swaps = []
    with made.committee.patched(model):
        for _ in range(2):
            before = made.committee.accounting.totals()["swaps"]
            maps = run(model, frames)
            swaps.append((maps, made.committee.accounting.totals()["swaps"] - before))
            made.committee.reset()
    assert same(swaps[0][0], swaps[1][0])
    assert swaps[0][1] == swaps[1][1] > 0


@pytest.mark.timeout(60)
def test_a_read_that_hangs_does_not_hold_up_a_reset_for_ever(monkeypatch: pytest.MonkeyPatch) -> None:
    model, frames = SmallDetector(), video(4)
    store = MemoryExpertStore(model)
    hanging, go_on = threading.Event(), threading.Event()
    copy = store._copy

    def hang(*arguments: Any) -> None:
        if threading.current_thread().name == LOADER_NAME:
            hanging.set()
            assert go_on.wait(30)
        copy(*arguments)

    monkeypatch.setattr(store, "_copy", hang)
    monkeypatch.setattr(loading, "LONGEST_LOAD_SECONDS", 0.05)
    made = make_committee(model, store=store, synchronous=False, policy_options={"margin": 0.0})
    with made.committee.patched(model):
        run(model, frames)  # frames go on
        assert hanging.wait(10)
        with pytest.raises(StoreError, match="have not ended within"):
            made.committee.reset()
    go_on.set()
    made.committee.close()


def test_a_frame_that_is_not_finite_does_not_end_the_swaps() -> None:
    model, frames = SmallDetector(), video(8)
    made = make_committee(model, policy_options={"margin": 0.0})
    with made.committee.patched(model):
        run(model, frames[:2])
        run(model, [torch.full_like(frames[0], torch.nan)])
        run(model, frames[2:])
        values = [made.committee._importance(layer) for layer in range(3)]
    assert all(np.isfinite(each).all() and each.sum() > 0 for each in values)


@pytest.mark.timeout(60)
def test_asynchronous_ends_where_synchronous_does_on_one_repeated_frame() -> None:
    frame = video(1, seed=3)
    ends = []
    for synchronous in (True, False):
        model = SmallDetector()
        made = make_committee(model, synchronous=synchronous, policy_options={"margin": 0.0})
        with made.committee.patched(model):
            for _ in range(60):
                run(model, frame)
                if not synchronous:
                    made.committee.wait_for_loads()
            ends.append(residents(made.committee))
        made.committee.close()
    assert ends[0] == ends[1]
    assert not any(thread.name == "expert-loader" for thread in threading.enumerate())


def test_the_committee_becomes_the_most_important_experts() -> None:
    model, frame = SmallDetector(), video(1, seed=5)
    made = make_committee(model, policy_options={"margin": 0.0})
    committee = made.committee
    with committee.patched(model):
        for _ in range(40):
            run(model, frame)
        for layer, quota in enumerate(committee.quotas):
            values = committee._importance(layer)
            chosen = committee.residency.residents(layer)
            outside = [values[expert] for expert in range(len(values)) if expert not in chosen]
            # what is outside matters no more than what is inside (exchanged tokens count for nobody)
            assert len(chosen) == quota
            assert min(values[list(chosen)]) >= max(outside)


def test_importance_is_equation_1_on_the_unmasked_gate() -> None:
    model, frame = SmallDetector(), video(1)[0]
    made = make_committee(model, smoothing=0.0, budget=0.4, max_swaps_per_frame=1)
    seen: list[tuple[torch.Tensor, torch.Tensor]] = []
    first = next(iter(model.backbone.moe_layers()))[1]
    gate, experts = first.gate, first.experts

    def look(module: Any, inputs: tuple[torch.Tensor, ...]) -> None:
        seen.append((inputs[0], gate.logits(inputs[0])))

    with made.committee.patched(model):
        first.gate.register_forward_pre_hook(look)
        run(model, [frame])
    tokens, logits = seen[0]
    expected = torch.zeros(6)
    probabilities = logits.softmax(dim=1)
    for token, probability in zip(tokens, probabilities, strict=True):
        best = int(probability.argmax())
        norm = (experts.fc1_weight[best].square().sum() + experts.fc2_weight[best].square().sum()).sqrt()
        expected[best] += token.norm() * probability[best] * norm
    expected /= expected.sum()
    torch.testing.assert_close(torch.from_numpy(made.committee._importance(0)).float(), expected)


class CountingStore(MemoryExpertStore):
    """Counts reads, and fails when told to."""

    def __init__(self, model: SmallDetector) -> None:
        super().__init__(model)
        self.reads: Counter[ExpertKey] = Counter()
        self.broken: set[ExpertKey] = set()
        self.all_broken = False

    def read_into(self, key: ExpertKey, buffer: torch.Tensor) -> ReadResult:
        self.reads[key] += 1
        if self.all_broken or key in self.broken:
            buffer.fill_(255)
            raise ExpertReadError("disk on fire", key=key, layer_name="layer", failure="io")
        return super().read_into(key, buffer)


def test_counters_equal_an_independent_count() -> None:
    model, frames = SmallDetector(), video(10)
    store = CountingStore(model)
    made = make_committee(model, store=store, budget=0.5)
    committee = made.committee
    hits = Counter[int]()
    misses = Counter[int]()

    for layer, (_, module) in enumerate(model.backbone.moe_layers()):
        original = module.gate

        def count(gate: Any, inputs: Any, routing: Any, layer: int = layer) -> None:
            inside = set(committee.residency.residents(layer))
            for expert in routing.experts.flatten().tolist():
                (hits if expert in inside else misses)[layer] += 1

        original.register_forward_hook(count)
    swaps = 0
    with committee.patched(model):
        for frame in frames:
            before = residents(committee)
            run(model, [frame])
            if frame is frames[0]:
                filled = sum(store.reads.values()) - len(committee.memory.in_flight)
                before = residents(committee)
            committee.wait_for_loads()
            swaps += sum(len(set(a) - set(b)) for a, b in zip(residents(committee), before, strict=True))
    report = committee.accounting.to_json_dict()
    assert filled == sum(committee.quotas)
    assert report["hit_tokens"] == sum(hits.values())
    assert report["miss_tokens"] == sum(misses.values())
    for layer, entry in enumerate(report["layers"]):
        assert (entry["hit_tokens"], entry["miss_tokens"]) == (hits[layer], misses[layer])
    assert report["swaps"] == swaps > 0
    assert report["fills"] == filled
    size = {spec.index: spec.layout.record_bytes for spec in committee.specs}
    assert report["bytes_read"] == sum(size[key.layer] * count for key, count in store.reads.items())
    assert report["useful_bytes"] + report["wasted_bytes"] <= report["bytes_read"]


def test_reports_of_two_processes_are_added() -> None:
    reports = []
    for seed in (0, 1):
        model = SmallDetector()
        made = make_committee(model)
        with made.committee.patched(model):
            run(model, video(3 + seed, seed=seed))
        reports.append(made.committee.report())
    merged = merge_reports(reports)
    assert merged["frames"] == 7
    for name in ("hit_tokens", "miss_tokens", "swaps", "fills", "bytes_read"):
        assert merged[name] == reports[0][name] + reports[1][name]
    assert sum(layer["hit_tokens"] for layer in merged["layers"]) == merged["hit_tokens"]
    assert merged["expert_bytes"] == reports[0]["expert_bytes"]
    assert merge_reports(reports[:1]) == reports[0]


def test_a_failing_store_leaves_the_committee_as_it_was_and_is_retried() -> None:
    model, frames = SmallDetector(), video(40)
    store = CountingStore(model)
    made = make_committee(model, store=store)
    with made.committee.patched(model):
        run(model, frames[:1])
        made.committee.wait_for_loads()
        before = residents(made.committee)
        store.all_broken = True
        run(model, frames[1:20])
        made.committee.wait_for_loads()
        assert residents(made.committee) == before
        failures = made.committee.accounting.failed_loads
        assert 0 < failures < 19 * 2  # backed off
        store.all_broken = False
        run(model, frames[20:])
        assert residents(made.committee) != before
        assert made.committee.residency.mapped_bytes <= 0.5 * made.total_bytes


@pytest.mark.parametrize("policy", ["pcmoe", "random_keep", "magnitude_keep"])
@pytest.mark.parametrize("synchronous", [True, False])
@pytest.mark.timeout(60)
def test_loading_on_a_miss_is_exact_whatever_is_resident(policy: str, synchronous: bool) -> None:
    model, frames = SmallDetector(), video(8)
    expected = run(model, frames)
    made = make_committee(model, policy=policy, budget=0.6, on_miss="load", synchronous=synchronous)
    with made.committee.patched(model):
        for frame, truth in zip(frames, expected, strict=True):
            assert same(run(model, [frame]), [truth])
            assert made.committee.residency.mapped_bytes <= 0.6 * made.total_bytes
    made.committee.wait_for_loads()
    report = made.committee.accounting.to_json_dict()
    assert report["miss_loads"] == report["miss_experts"] > 0
    made.committee.close()
    assert made.committee.residency.mapped_bytes == 0


def test_a_store_that_fails_at_the_start_is_filled_later() -> None:
    model, frames = SmallDetector(), video(30)
    store = CountingStore(model)
    made = make_committee(model, store=store)
    store.all_broken = True
    with made.committee.patched(model):
        assert all(feature.isfinite().all() for maps in run(model, frames[:3]) for feature in maps)
        assert sum(map(len, residents(made.committee))) == 0
        store.all_broken = False
        run(model, frames[3:])
        assert tuple(map(len, residents(made.committee))) == made.committee.quotas
    exact = make_committee(model, store=store, policy="all")
    store.all_broken = True
    with exact.committee.patched(model), pytest.raises(ExpertReadError):
        run(model, frames[:1])


def test_on_demand_says_which_expert_the_store_refused() -> None:
    model, frames = SmallDetector(), video(2)
    store = CountingStore(model)
    made = make_committee(model, store=store, policy="on_demand", budget=0.5)
    made.committee.memory._sleep = lambda seconds: None
    expected = run(model, frames)
    with made.committee.patched(model):
        store.all_broken = True
        with pytest.raises(ExpertReadError, match="disk on fire"):
            run(model, frames[:1])
        store.all_broken = False
        assert same(run(model, frames), expected)


def test_a_miss_waits_for_a_disk_that_comes_back() -> None:
    model, frames = SmallDetector(), video(2)
    store = CountingStore(model)
    made = make_committee(model, store=store, policy="on_demand", budget=0.5)
    expected = run(model, frames)
    waits: list[float] = []

    def comes_back(seconds: float) -> None:
        waits.append(seconds)
        store.all_broken = len(waits) < 2

    made.committee.memory._sleep = comes_back
    with made.committee.patched(model):
        store.all_broken = True
        assert same(run(model, frames), expected)
    assert len(waits) == 2
    assert waits[0] < waits[1]
    assert made.committee.accounting.failed_loads == 2


def test_a_damaged_record_is_refused_at_the_start() -> None:
    model, frames = SmallDetector(), video(2)
    made = make_committee(model)
    damaged = ExpertKey(1, made.committee.policy.initial_residents(made.committee.specs[1], 1)[0])

    def read_into(key: ExpertKey, buffer: torch.Tensor) -> ReadResult:
        if key == damaged:
            raise ExpertReadError("bits fell over", key=key, layer_name="layer", failure="checksum")
        return MemoryExpertStore.read_into(made.store, key, buffer)

    made.store.read_into = read_into
    with made.committee.patched(model), pytest.raises(ExpertReadError, match="bits fell over"):
        run(model, frames)


def test_an_expert_that_cannot_be_read_leaves_its_place_to_the_next_best() -> None:
    model, frames = SmallDetector(), video(12)
    for layer in range(3):
        store = CountingStore(model)
        made = make_committee(model, store=store)
        first = made.committee.policy.initial_residents(made.committee.specs[layer], 1)[0]
        store.broken = {ExpertKey(layer, first)}
        with made.committee.patched(model):
            run(model, frames)
        assert tuple(map(len, residents(made.committee))) == made.committee.quotas


def test_every_layer_gets_its_swaps_where_each_frame_brings_new_wishes() -> None:
    model = SmallDetector()
    options = {"importance": "random", "margin": 0.0}
    made = make_committee(model, policy_options=options, smoothing=0.0, max_swaps_per_frame=1)
    with made.committee.patched(model):
        run(model, video(30))
    swaps = [layer.swaps for layer in made.committee.accounting.layers]
    assert min(swaps) >= 0.5 * max(swaps) > 0


def test_room_for_misses_does_not_keep_the_committee_from_adapting() -> None:
    model, frames = SmallDetector(), video(40)
    made = make_committee(model, budget=0.6, on_miss="load")
    with made.committee.patched(model):
        run(model, frames)
        assert made.committee.residency.mapped_bytes <= 0.6 * made.total_bytes
    counts = made.committee.accounting.totals()
    assert counts["miss_loads"] > 0
    assert counts["swaps"] > 0


def test_what_frames_report_adds_up_to_the_totals() -> None:
    model, frames = SmallDetector(), video(12)
    made = make_committee(model)
    sums: Counter[str] = Counter()
    with made.committee.patched(model):
        for number, frame in enumerate(frames):
            run(model, [frame])
            sums.update(made.committee.frame_report)
            if number == 5:
                made.committee.reset()
    totals = made.committee.accounting.totals()
    for name in FRAME_COUNTS:
        assert sums[name] == totals[name]


def test_the_report_knows_the_whole_model() -> None:
    model = SmallDetector()
    whole = sum(tensor.numel() * tensor.element_size() for tensor in (*model.parameters(), *model.buffers()))
    made = make_committee(model)
    with made.committee.patched(model):
        report = made.committee.report()
    padding = made.total_bytes - sum(
        parameter.numel() * parameter.element_size()
        for _, layer in model.backbone.moe_layers()
        for parameter in layer.experts.parameters()
    )
    assert report["model_bytes"] == whole + padding


def test_resize_at_a_frame_boundary() -> None:
    model, frames = SmallDetector(), video(30)
    made = make_committee(model, budget=0.7)
    committee = made.committee
    with committee.patched(model):
        run(model, frames[:5])
        committee.resize(int(0.4 * made.total_bytes))
        assert committee.residency.mapped_bytes <= 0.4 * made.total_bytes
        run(model, frames[5:10])
        assert committee.residency.mapped_bytes <= 0.4 * made.total_bytes
        committee.resize(int(0.8 * made.total_bytes))
        run(model, frames[10:])
        assert sum(map(len, residents(committee))) == sum(committee.quotas)
        with pytest.raises(UsageError, match="smallest possible"):
            committee.resize(10)
        run(model, frames[:2])


@pytest.mark.parametrize("policy", ["random_keep", "magnitude_keep"])
def test_a_fixed_policy_of_another_size_is_that_of_a_fresh_start(policy: str) -> None:
    model, frames = SmallDetector(), video(12)
    made = make_committee(model, policy=policy, budget=0.9)
    with made.committee.patched(model):
        run(model, frames[:1])
        made.committee.resize(int(0.5 * made.total_bytes))
        run(model, frames)
    fresh = make_committee(model, policy=policy, budget=0.5)
    with fresh.committee.patched(model):
        run(model, frames[:1])
        assert residents(made.committee) == residents(fresh.committee)


@pytest.mark.parametrize("budget", [0.01, 0.1])
def test_a_budget_that_cannot_be_met_is_refused_with_the_smallest_that_can(budget: float) -> None:
    model = SmallDetector()
    with pytest.raises(UsageError, match="smallest possible is") as caught:
        make_committee(model, budget=budget)
    least = int(str(caught.value).split("smallest possible is ")[1].split()[0])
    store = MemoryExpertStore(model)
    total = sum(spec.expert_bytes for spec in store.layers)
    assert make_committee(model, budget=(least + 0.5) / total).committee
    with pytest.raises(UsageError):
        make_committee(model, budget=(least - 1) / total)


def test_streams_keep_their_importance_and_share_the_residents() -> None:
    model = SmallDetector()
    made = make_committee(model, smoothing=0.5)
    committee = made.committee
    left, right = video(1, seed=1)[0], video(1, seed=2)[0]
    with committee.patched(model):
        for _ in range(3):
            for name, frame in (("left", left), ("right", right)):
                committee.select_stream(name)
                run(model, [frame])
        alone = [committee._streams[name].values(0) for name in ("left", "right")]
        assert not (alone[0] == alone[1]).all()
        assert committee._importance(0).tolist() == (alone[0] + alone[1]).tolist()
        committee.forget_stream("left")
        assert committee._importance(0).tolist() == alone[1].tolist()


@pytest.mark.parametrize("keep", [False, True])
def test_each_video_is_a_stream_of_its_own(keep: bool) -> None:
    model = SmallDetector()
    committee = make_committee(model).committee
    fills = []
    with committee.patched(model):
        for name in ("a", "b"):
            for frame in video(4, seed=ord(name)):
                committee.enter_video(name, keep_residents=keep)
                run(model, [frame])
            assert set(committee._streams) == {name}
            fills.append(sum(layer.fills for layer in committee.accounting.layers))
    assert fills[0] > 0
    assert (fills[1] == fills[0]) == keep  # anew: what was swapped out is read again


def test_wrong_options_are_named() -> None:
    model = SmallDetector()
    for options, message in [
        ({"on_miss": "guess"}, "unknown miss handling 'guess'"),
        ({"smoothing": 1.0}, "smoothing is 1.0"),
        ({"update_period": 0}, "update_period is 0"),
        ({"policy": "best"}, "unknown policy 'best'"),
        ({"policy_options": {"speed": 1}}, "does not take these options"),
        ({"on_miss": ("skip",)}, "1 miss handlings for 3 MoE layers"),
    ]:
        with pytest.raises(UsageError, match=message):
            make_committee(model, **options)
