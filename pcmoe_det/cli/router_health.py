"""Tokens per expert over training: recorded by a hook, drawn as a picture, so that dead experts show."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from mmengine.dist import is_main_process
from mmengine.hooks import Hook

from pcmoe_det.models.moe import MoELayer

__all__ = ["RouterHealthHook", "draw_router_health", "read_router_health"]

_FILE = "router.jsonl"


class RouterHealthHook(Hook):
    """Writes each expert's share of the tokens to ``router.jsonl`` in the work dir.

    Of the main process's batches; what the gate wanted, before capacity or a random committee.

    Args:
        interval: Iterations that a line sums up.
    """

    def __init__(self, interval: int = 50) -> None:
        self._interval = interval

    def after_train_iter(
        self,
        runner: Any,
        batch_idx: int,  # noqa: ARG002
        data_batch: Any = None,  # noqa: ARG002
        outputs: Any = None,  # noqa: ARG002
    ) -> None:
        """Every ``interval`` iterations: one line, and counting starts anew."""
        if not self.every_n_train_iters(runner, self._interval) or not is_main_process():
            return
        shares = {}
        for name, layer in runner.model.named_modules():
            if isinstance(layer, MoELayer) and layer.routed_tokens is not None:
                total = layer.routed_tokens.sum().clamp_min(1)
                shares[name.removeprefix("module.")] = [
                    round(value, 5) for value in (layer.routed_tokens / total).tolist()
                ]
                layer.routed_tokens = None
        if shares:
            line = json.dumps({"step": runner.iter + 1, "shares": shares})
            with (Path(runner.work_dir) / _FILE).open("a", encoding="utf-8") as file:
                file.write(line + "\n")


def read_router_health(work_dir: Path) -> list[dict[str, Any]]:
    """The recorded lines by step; a resumed run replaces what it repeats."""
    path = work_dir / _FILE
    by_step: dict[int, dict[str, Any]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue  # the last line of a killed run may be cut
        by_step[record["step"]] = record
    return [by_step[step] for step in sorted(by_step)]


def draw_router_health(work_dir: Path) -> Path | None:
    """Write ``router.png``: for each MoE layer the experts' shares of the tokens, stacked, over training.

    Returns:
        The picture, or None where nothing was recorded.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_router_health(work_dir)
    if not records:
        return None
    layers = list(records[-1]["shares"])
    figure, axes = plt.subplots(
        1, len(layers), figsize=(4 * len(layers), 3.2), squeeze=False, sharey=True, constrained_layout=True
    )
    for axis, layer in zip(axes[0], layers, strict=True):
        rows = [(record["step"], record["shares"][layer]) for record in records if layer in record["shares"]]
        experts = len(rows[-1][1])
        steps = [step for step, _ in rows]
        axis.stackplot(steps, [[row[expert] for _, row in rows] for expert in range(experts)])
        least = min(rows[-1][1])
        axis.set(
            title=f"{layer.removeprefix('backbone.')}\nleast used: {least:.1%} (even: {1 / experts:.1%})",
            xlabel="iteration",
            ylim=(0, 1),
        )
        axis.title.set_fontsize(8)
    axes[0, 0].set_ylabel("share of tokens, by expert")
    path = work_dir / "router.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
