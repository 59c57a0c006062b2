"""Videos shared out among processes: whole, balanced, each frame exactly once."""

from __future__ import annotations

from typing import Any

import pytest
from mmengine.registry import DATA_SAMPLERS

from pcmoe_det.datasets import sharding
from pcmoe_det.datasets.sharding import VideoShardSampler, share_out
from pcmoe_det.errors import ConfigError


class Videos:
    """A data set that knows only the video of each frame."""

    def __init__(self, names: str) -> None:
        self.names = names

    def __len__(self) -> int:
        return len(self.names)

    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"video_name": self.names[index]}


class NoVideos(Videos):
    def get_data_info(self, index: int) -> dict[str, Any]:
        return {"img_id": index}


class Concatenation:
    def __init__(self, *datasets: Any) -> None:
        self.datasets = datasets

    def __len__(self) -> int:
        return sum(len(dataset) for dataset in self.datasets)


def shards_of(
    monkeypatch: pytest.MonkeyPatch, dataset: Any, num_processes: int, **options: Any
) -> list[list[int]]:
    shards = []
    for rank in range(num_processes):
        monkeypatch.setattr(sharding, "get_dist_info", lambda rank=rank: (rank, num_processes))
        sampler = VideoShardSampler(dataset, **options)
        shards.append(list(sampler))
        assert len(sampler) == len(shards[-1])
    return shards


def test_share_out_balances() -> None:
    assert share_out([265, 151, 223], num_shards=2) == [[0], [1, 2]]
    assert share_out([3, 3, 2, 2, 2], num_shards=2) == [[0, 2, 4], [1, 3]]
    assert share_out([4, 4], num_shards=3) == [[0], [1], []]
    assert share_out([], num_shards=2) == [[], []]


@pytest.mark.parametrize("num_processes", [1, 2, 3, 7])
def test_every_frame_once_and_videos_whole(monkeypatch: pytest.MonkeyPatch, num_processes: int) -> None:
    names = "aaaabbbbbbbccddddde"
    shards = shards_of(monkeypatch, Videos(names), num_processes)
    assert sorted(index for shard in shards for index in shard) == list(range(len(names)))
    assert all(shard == sorted(shard) for shard in shards)
    for name in set(names):
        assert sum(any(names[index] == name for index in shard) for shard in shards) == 1
    sizes = [len(shard) for shard in shards]
    assert max(sizes) <= max(7, -(-len(names) // num_processes) + 2)


def test_frames_of_a_video_need_not_be_neighbours(monkeypatch: pytest.MonkeyPatch) -> None:
    assert shards_of(monkeypatch, Videos("abab"), 2) == [[0, 2], [1, 3]]


def test_same_names_in_a_concatenation_are_other_videos(monkeypatch: pytest.MonkeyPatch) -> None:
    joined = Concatenation(Videos("aaa"), Concatenation(Videos("aab")))
    assert shards_of(monkeypatch, joined, 2) == [[0, 1, 2], [3, 4, 5]]


def test_shuffling_permutes_whole_videos_by_epoch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sharding, "get_dist_info", lambda: (0, 1))
    names = "aabbccddeeff"
    sampler = VideoShardSampler(Videos(names), shuffle=True, seed=5)
    epochs = []
    for epoch in range(4):
        sampler.set_epoch(epoch)
        order = list(sampler)
        assert list(sampler) == order
        assert sorted(order) == list(range(len(names)))
        assert all(order[at + 1] == order[at] + 1 for at in range(0, len(order), 2))
        epochs.append(order)
    assert len({tuple(order) for order in epochs}) > 1


def test_built_by_name_with_the_arguments_of_the_runner() -> None:
    sampler = DATA_SAMPLERS.build(
        dict(type="VideoShardSampler"), default_args=dict(dataset=Videos("ab"), seed=3)
    )
    assert list(sampler) == [0, 1]


@pytest.mark.parametrize("dataset", [[1, 2], NoVideos("ab")])
def test_refuses_data_without_videos(dataset: Any) -> None:
    with pytest.raises(ConfigError, match=r"cannot be shared out by video.*ShiftDataset"):
        VideoShardSampler(dataset)
