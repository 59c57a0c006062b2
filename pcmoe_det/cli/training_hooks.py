"""Hooks that ``pcmoe-train`` adds to every run."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from mmengine.dataset import InfiniteSampler
from mmengine.hooks import Hook
from mmengine.runner import IterBasedTrainLoop

__all__ = ["GoOnWithFreshDataHook", "PlainCheckpointHook"]


class PlainCheckpointHook(Hook):
    """Keeps checkpoints plain data, so that torch reads them back without trusting any code.

    mmengine stores its log buffers with references to methods; torch.load refuses those unless told
    to execute whatever a file says. The buffers only smooth the printed losses.
    """

    def before_save_checkpoint(self, runner: Any, checkpoint: dict[str, Any]) -> None:  # noqa: ARG002
        """Replace the message hub by its plain counters."""
        hub = checkpoint.get("message_hub")
        if hub is None:
            return
        runtime = hub["runtime_info"] if isinstance(hub, dict) else hub.runtime_info
        plain = {key: value for key, value in runtime.items() if isinstance(value, int | float | str | bool)}
        checkpoint["message_hub"] = {
            "log_scalars": {},
            "runtime_info": plain,
            "resumed_keys": dict.fromkeys(plain, True),
        }


class GoOnWithFreshDataHook(Hook):
    """Makes a resumed run draw other data at once.

    mmengine's loop first loads and augments every batch of the iterations already done, to throw it
    away: minutes to hours. Here the sampler gets a seed of its own instead, which depends on where the
    run goes on.
    """

    def before_train_epoch(self, runner: Any) -> None:
        """Replace the iterator before the loop advances it."""
        loop = runner.train_loop
        if not isinstance(loop, IterBasedTrainLoop) or not loop.iter:
            return
        sampler = loop.dataloader.sampler
        if isinstance(sampler, InfiniteSampler):
            sampler.seed += loop.iter
            sampler.indices = sampler._indices_of_rank()
            fresh = type(loop.dataloader_iterator)(loop.dataloader)
            loop.dataloader_iterator = _after_skipping(loop.iter, fresh)
            runner.logger.info(f"going on after iteration {loop.iter} with newly shuffled data")


def _after_skipping(count: int, batches: Iterator[Any]) -> Iterator[Any]:
    """``count`` times None for the loop to throw away, then the batches."""
    for _ in range(count):
        yield None
    yield from batches
