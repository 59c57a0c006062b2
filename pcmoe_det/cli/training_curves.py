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
    """Write ``curves.png`` into the work dir, a panel for each kind of number that was logged.

    Returns:
        The picture, or None where nothing was logged.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    records = read_scalars(work_dir)
    logged = {name for record in records for name in record}
    panels = {
        "loss": sorted(name for name in logged if "loss" in name),
        "validation, points": sorted(
            name for name in logged if name in ("mAP50", "mAP") or name.startswith("mAP50/")
        ),
        "router: share of the busiest expert x experts (1 is even)": sorted(logged & {"busiest_expert"}),
    }
    shown = {title: names for title, names in panels.items() if names}
    if not shown:
        return None
    figure, axes = plt.subplots(
        1, len(shown), figsize=(6 * len(shown), 4), squeeze=False, constrained_layout=True
    )
    for axis, (title, names) in zip(axes[0], shown.items(), strict=True):
        for name in names:
            thick = name in ("loss", "mAP50")
            axis.plot(*_series(records, name), label=name, linewidth=2 if thick else 1, marker=".")
        axis.set(title=title, xlabel="iteration")
        if title == "loss":
            axis.set_yscale("log")
        axis.legend(fontsize=7)
        axis.grid(alpha=0.3)
    path = work_dir / "curves.png"
    figure.savefig(path, dpi=100)
    plt.close(figure)
    return path
