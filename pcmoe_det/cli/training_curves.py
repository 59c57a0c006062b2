"""Loss and mAP over training, as pictures."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

__all__ = ["draw_curves", "read_scalars"]


def read_scalars(work_dir: Path) -> list[dict[str, float]]:
    """All logged records of all runs in a work dir, by step; a resumed run replaces what it repeats."""
    by_step: dict[tuple[int, bool], dict[str, float]] = {}
    for file in sorted(work_dir.glob("*/vis_data/scalars.json")):
        for line in file.read_text(encoding="utf-8").splitlines():
            try:
                record = json.loads(line)
            except ValueError:
                continue  # the last line of a killed run may be cut
            by_step[(int(record.get("step", 0)), "loss" in record)] = record
    return [by_step[key] for key in sorted(by_step)]


def _series(records: Sequence[dict[str, float]], name: str) -> tuple[list[float], list[float]]:
    rows = [record for record in records if name in record]
    return [row["step"] for row in rows], [row[name] for row in rows]


def draw_curves(work_dir: Path) -> Path | None:
    """Write ``curves.png`` into the work dir; None where nothing was logged."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_scalars(work_dir)
    if not records:
        return None
    figure, (losses, points, router) = plt.subplots(1, 3, figsize=(15, 4), constrained_layout=True)
    names = sorted({name for record in records for name in record if "loss" in name})
    for name in names:
        losses.plot(*_series(records, name), label=name, linewidth=2 if name == "loss" else 1)
    losses.set(title="loss", xlabel="iteration", yscale="log")
    for name in sorted({name for record in records for name in record if name.startswith("mAP")}):
        if name in ("mAP50", "mAP") or name.startswith("mAP50/"):
            points.plot(*_series(records, name), label=name, marker="o", markersize=3)
    points.set(title="validation, points", xlabel="iteration", ylim=(0, None))
    router.plot(*_series(records, "busiest_expert"), label="busiest expert's share x experts")
    router.set(title="router (1 is an even load)", xlabel="iteration")
    for axis in (losses, points, router):
        if axis.get_legend_handles_labels()[0]:
            axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    path = work_dir / "curves.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
