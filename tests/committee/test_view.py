"""What a page is told of a committee, while the model runs."""

from __future__ import annotations

import json
import threading

import pytest

from pcmoe_det.committee.layers import ExpertKey
from pcmoe_det.committee.view import committee_view
from tests.committee.small_model import SmallDetector, make_committee, run, video
from tests.streaming.preview.made import committee_record


def test_the_view_agrees_with_the_committee() -> None:
    model = SmallDetector()
    committee = make_committee(model, budget=0.5).committee
    with committee.patched(model):
        run(model, video(6))
        view = committee_view(committee)
    report = committee.report()
    for name in (
        "policy",
        "on_miss",
        "frames",
        "budget_bytes",
        "expert_bytes",
        "hit_tokens",
        "miss_tokens",
        "swaps",
    ):
        assert view[name] == report[name], name
    assert 0 < view["resident_bytes"] <= view["budget_bytes"] == committee.residency.budget_bytes
    assert view["bytes_read"] == report["bytes_read"] > 0
    assert [layer["name"] for layer in view["layers"]] == [spec.name for spec in committee.specs]
    for index, layer in enumerate(view["layers"]):
        resident = [e for e in range(6) if committee.residency.is_resident(ExpertKey(index, e))]
        assert layer["resident"] == resident
        assert len(resident) == layer["quota"] == committee.quotas[index]
        assert layer["num_experts"] == 6
        assert layer["hit_tokens"] == report["layers"][index]["hit_tokens"]


def test_the_view_is_plain_data_of_the_documented_form() -> None:
    """The streaming package cannot import this one: its tests and its page use a made-up record."""
    view = committee_view(make_committee(SmallDetector()).committee)
    json.dumps(view)
    assert view.keys() == committee_record().keys()
    assert view["layers"][0].keys() == committee_record()["layers"][0].keys()


def test_swaps_under_way_are_named() -> None:
    committee = make_committee(SmallDetector()).committee
    committee.memory.in_flight += [(ExpertKey(1, 5), 2), (ExpertKey(2, 3), None)]
    layers = committee_view(committee)["layers"]
    assert [layer["incoming"] for layer in layers[:3]] == [[], [5], [3]]
    assert [layer["outgoing"] for layer in layers[:3]] == [[], [2], []]


def test_used_experts_are_those_that_tokens_chose() -> None:
    model = SmallDetector()
    committee = make_committee(model, policy="all").committee
    assert [layer["used"] for layer in committee_view(committee)["layers"]] == [None] * 3
    chosen: list[set[int]] = []
    for _, layer in model.backbone.moe_layers():  # the unpatched model tells, layer by layer
        layer.gate.register_forward_hook(lambda *call: chosen.append(set(call[2].experts.flatten().tolist())))
    frames = video(3)
    run(model, frames)
    expected = [sorted(experts) for experts in chosen[-3:]]
    with committee.patched(model):
        run(model, frames)
    assert [layer["used"] for layer in committee_view(committee)["layers"]] == expected


@pytest.mark.timeout(60)
@pytest.mark.parametrize("policy", ["pcmoe", "on_demand"])
def test_it_can_be_read_while_the_model_runs(policy: str) -> None:
    model = SmallDetector()
    made = make_committee(model, policy=policy, budget=0.5, synchronous=False)
    committee, ended, errors, seen = made.committee, threading.Event(), [], []

    def look() -> None:
        while not ended.is_set():
            try:
                view = committee_view(committee)
                seen.append(view["frames"])
                for layer in view["layers"]:
                    assert len(set(layer["resident"])) == len(layer["resident"]) <= layer["num_experts"]
            except BaseException as error:
                errors.append(error)
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        with committee.patched(model):
            run(model, video(25))
    finally:
        ended.set()
        thread.join()
        committee.close()
    assert not errors
    assert seen
    assert seen == sorted(seen)
