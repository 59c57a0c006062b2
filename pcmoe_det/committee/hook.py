"""The committee as an mmengine hook, for configs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from typing import Any

from mmengine.hooks import Hook
from mmengine.registry import HOOKS

from pcmoe_det.committee.committee import Committee
from pcmoe_det.committee.miss_handling import MissHandling
from pcmoe_det.committee.options import CommitteeOptions
from pcmoe_det.committee.policies import create_policy
from pcmoe_det.committee.settings import CommitteeSettings
from pcmoe_det.committee.store_memory import MemoryExpertStore

__all__ = ["CommitteeHook"]


@HOOKS.register_module()
class CommitteeHook(Hook):
    """Patches the model for the time of each validation and test loop.

    mmengine's loops have no ``finally``: after an exception the model stays patched until the next
    validation, test or the end of the run, whichever comes first; each of them restores it. The
    experts are read from the model itself, after averaged (EMA) weights were put in, so this saves no memory;
    it shows what a committee costs in accuracy. ``pcmoe-test``, which has a loop of its own, takes the
    settings from a config's hook and reads the experts from disk.

    Args:
        policy: Name of a policy.
        expert_budget: Share of expert bytes or size, such as ``0.5`` or ``300MiB``.
        policy_options: Of the policy's constructor.
        on_miss: See ``CommitteeOptions``.
        options: Other fields of ``CommitteeOptions``; loading is synchronous unless they say otherwise.
        reset_each_video: Start anew at each video; False keeps the experts in memory.

    Raises:
        UsageError: Settings that cannot be.
    """

    priority = "LOW"  # after EMAHook, which puts averaged weights in before validation

    def __init__(
        self,
        *,
        policy: str = "pcmoe",
        expert_budget: str | float = 0.5,
        policy_options: Mapping[str, object] | None = None,
        on_miss: MissHandling | Sequence[MissHandling] | None = None,
        options: Mapping[str, Any] | None = None,
        reset_each_video: bool = True,
    ) -> None:
        self.settings = CommitteeSettings(
            create_policy(policy, policy_options),
            expert_budget,
            CommitteeOptions(**{"synchronous": True, "on_miss": _as_given(on_miss), **(options or {})}),
        )
        self.reset_each_video = reset_each_video
        self.committee: Committee | None = None
        self._patch = ExitStack()

    def _enter(self, runner: Any) -> None:
        self._leave()
        store = MemoryExpertStore(runner.model.module if hasattr(runner.model, "module") else runner.model)
        committee = self.settings.build(runner.model, store, device=next(runner.model.parameters()).device)
        self._patch.callback(committee.close)
        self._patch.enter_context(committee.patched(runner.model))
        self.committee = committee

    def _leave(self) -> None:
        self._patch.close()

    def _notice_video(self, data_batch: Any) -> None:
        samples = data_batch.get("data_samples") if isinstance(data_batch, Mapping) else None
        video = samples[0].metainfo.get("video_name") if samples else None
        if self.committee is not None:
            self.committee.enter_video(video or "", keep_residents=not self.reset_each_video)

    def before_val_epoch(self, runner: Any) -> None:
        """Patch."""
        self._enter(runner)

    def before_test_epoch(self, runner: Any) -> None:
        """Patch."""
        self._enter(runner)

    def before_val_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        """Start anew at a new video."""
        self._notice_video(data_batch)

    def before_test_iter(self, runner: Any, batch_idx: int, data_batch: Any = None) -> None:  # noqa: ARG002
        """Start anew at a new video."""
        self._notice_video(data_batch)

    def after_val_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Restore."""
        self._leave()

    def after_test_epoch(self, runner: Any, metrics: dict[str, float] | None = None) -> None:  # noqa: ARG002
        """Restore."""
        self._leave()

    def before_train(self, runner: Any) -> None:  # noqa: ARG002
        """Restore what an earlier, failed loop left."""
        self._leave()

    def after_run(self, runner: Any) -> None:  # noqa: ARG002
        """Restore."""
        self._leave()


def _as_given(on_miss: MissHandling | Sequence[MissHandling] | None) -> Any:
    """Configs write lists; options want one name or a tuple."""
    return on_miss if on_miss is None or isinstance(on_miss, str) else tuple(on_miss)
