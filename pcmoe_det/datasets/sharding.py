"""A sampler that shares a data set out among processes in whole videos."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from mmengine.dist import get_dist_info, sync_random_seed
from mmengine.registry import DATA_SAMPLERS
from torch.utils.data import Sampler

from pcmoe_det.errors import ConfigError

__all__ = ["VideoShardSampler", "share_out"]


def share_out(num_frames: Sequence[int], *, num_shards: int) -> list[list[int]]:
    """Give every video to one shard so that the shards have about as many frames each.

    The longest videos are given out first, each to the shard with the fewest frames so far (Graham's LPT
    rule: the fullest shard has at most 4/3 of the optimum). Equal input gives equal output.

    Args:
        num_frames: Length of each video.
        num_shards: How many shards; some stay empty if there are fewer videos.

    Returns:
        For each shard the positions of its videos, ascending.
    """
    loads = [0] * num_shards
    shards: list[list[int]] = [[] for _ in range(num_shards)]
    for video in sorted(range(len(num_frames)), key=lambda index: (-num_frames[index], index)):
        shard = min(range(num_shards), key=lambda index: (loads[index], index))
        shards[shard].append(video)
        loads[shard] += num_frames[video]
    return [sorted(shard) for shard in shards]


@DATA_SAMPLERS.register_module()
class VideoShardSampler(Sampler[int]):
    """Indices of this process's videos: whole, in order, every index in exactly one process.

    Nothing is repeated to even the processes out, so their numbers of batches differ and a loop must not
    communicate per batch. mmengine's ``collect_results`` interleaves the processes' results: an evaluation
    that needs their order restores it by ``img_id``.

    Args:
        dataset: A ``ShiftDataset``, a concatenation of such, or anything whose ``get_data_info(index)``
            has a ``video_name``.
        shuffle: Permute the videos of this process anew each epoch. Frames within a video stay in order.
        seed: Of the shuffling; None takes one that all processes agree on.

    Raises:
        ConfigError: The data set does not say which video a frame belongs to.
    """

    def __init__(self, dataset: Any, shuffle: bool = False, seed: int | None = None) -> None:
        rank, num_processes = get_dist_info()
        videos = _group_by_video(dataset)
        mine = share_out([len(video) for video in videos], num_shards=num_processes)[rank]
        self._videos = [videos[index] for index in mine]
        self._shuffle = shuffle
        self._seed = 0
        if shuffle:
            self._seed = sync_random_seed() if seed is None else seed
        self._epoch = 0

    def __iter__(self) -> Iterator[int]:
        order = list(range(len(self._videos)))
        if self._shuffle:
            generator = torch.Generator()
            generator.manual_seed(self._seed + self._epoch)
            order = torch.randperm(len(order), generator=generator).tolist()
        for video in order:
            yield from self._videos[video]

    def __len__(self) -> int:
        return sum(len(video) for video in self._videos)

    def set_epoch(self, epoch: int) -> None:
        """Choose the permutation of the next iteration."""
        self._epoch = epoch


def _group_by_video(dataset: Any) -> list[list[int]]:
    """Indices by video, videos in order of appearance."""
    parts = getattr(dataset, "datasets", None)
    if parts is not None:  # the same name in two parts of a concatenation is not the same video
        groups: list[list[int]] = []
        start = 0
        for part in parts:
            groups.extend([start + index for index in group] for group in _group_by_video(part))
            start += len(part)
        return groups
    if not hasattr(dataset, "get_data_info"):
        raise ConfigError(
            f"{type(dataset).__name__} cannot be shared out by video: it has no get_data_info; "
            "use ShiftDataset, or mmengine's DefaultSampler"
        )
    by_name: dict[str, list[int]] = {}
    for index in range(len(dataset)):
        info = dataset.get_data_info(index)
        if "video_name" not in info:
            raise ConfigError(
                f"{type(dataset).__name__} cannot be shared out by video: its frames have no 'video_name'; "
                "use ShiftDataset, or mmengine's DefaultSampler"
            )
        by_name.setdefault(info["video_name"], []).append(index)
    return list(by_name.values())
