"""Records: sizes counted by hand, views without copies."""

from __future__ import annotations

import pytest
import torch

from pcmoe_det.committee.layers import ExpertKey, MoELayerSpec, RecordLayout


def test_layout_of_a_small_expert_as_counted_by_hand() -> None:
    layout = RecordLayout.for_expert(6, 10, torch.bfloat16)
    # 60 weights of 2 bytes are 120, up to 128; 10 biases end at 148, up to 192; 60 weights end at 312,
    # up to 320; 6 biases end at 332.
    assert [(field.name, field.shape, field.offset_bytes, field.num_bytes) for field in layout.fields] == [
        ("fc1_weight", (10, 6), 0, 120),
        ("fc1_bias", (10,), 128, 20),
        ("fc2_weight", (6, 10), 192, 120),
        ("fc2_bias", (6,), 320, 12),
    ]
    assert layout.record_bytes == 4096


def test_record_of_swin_t_stage_4() -> None:
    layout = RecordLayout.for_expert(768, 3072, torch.float32)
    # 2 * 768 * 3072 weights and 3840 biases of 4 bytes are 18,889,728 bytes: 4611.75 pages.
    assert layout.record_bytes == 4612 * 4096
    assert layout == RecordLayout.for_expert(768, 3072, torch.float32)
    assert hash(layout) == hash(RecordLayout.for_expert(768, 3072, torch.float32))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_views_share_the_buffer_and_do_not_overlap(dtype: torch.dtype) -> None:
    layout = RecordLayout.for_expert(6, 10, dtype)
    pool = torch.zeros(3, layout.record_bytes, dtype=torch.uint8)
    views = layout.views(pool[1])
    for number, view in enumerate(views.values(), start=1):
        assert view.is_contiguous()
        view.fill_(number)
    for number, view in enumerate(views.values(), start=1):
        assert view.dtype == dtype
        assert (view == number).all()
    assert not pool[0].any()
    assert not pool[2].any()
    assert views["fc2_weight"].data_ptr() == pool[1].data_ptr() + layout.fields[2].offset_bytes


@pytest.mark.parametrize(
    "buffer",
    [
        torch.zeros(4095, dtype=torch.uint8),
        torch.zeros(2, 4096, dtype=torch.uint8),
        torch.zeros(4096, dtype=torch.int8),
    ],
    ids=["short", "two", "int8"],
)
def test_a_buffer_of_another_layout_is_refused(buffer: torch.Tensor) -> None:
    with pytest.raises(ValueError, match=r"needs \[4096\] of torch.uint8"):
        RecordLayout.for_expert(6, 10, torch.bfloat16).views(buffer)


def test_impossible_experts_are_refused() -> None:
    with pytest.raises(ValueError, match="0 hidden"):
        RecordLayout.for_expert(6, 0, torch.float32)
    with pytest.raises(ValueError, match=r"torch\.int8"):
        RecordLayout.for_expert(6, 10, torch.int8)
    with pytest.raises(ValueError, match="2 experts and 1 norms"):
        MoELayerSpec(0, "a", 2, 6, 10, RecordLayout.for_expert(6, 10, torch.float32), norms=(1.0,))


def test_keys_are_ordered_by_layer_and_counted_in_bytes() -> None:
    spec = MoELayerSpec(1, "a", 2, 6, 10, RecordLayout.for_expert(6, 10, torch.float32), norms=(1.0, 2.0))
    assert spec.keys == (ExpertKey(1, 0), ExpertKey(1, 1))
    assert sorted([ExpertKey(1, 0), ExpertKey(0, 7), ExpertKey(0, 2)])[0] == ExpertKey(0, 2)
    assert spec.expert_bytes == 2 * spec.record_bytes == 8192
