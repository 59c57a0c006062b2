"""Temporal locality of experts: the paper's heat map, and how much neighbouring frames agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from pcmoe_det.committee.trace import FrameTrace
from pcmoe_det.errors import DataError, OutputError

__all__ = ["draw_heat_map", "locality_statistics"]

Measure = Literal["tokens", "importance"]


def _shares(frames: Sequence[FrameTrace], layer: int, measure: Measure) -> NDArray[np.float64]:
    """``[frames, num_experts]``: each expert's share of a layer, frame by frame."""
    values = np.array([getattr(frame, measure)[layer] for frame in frames], dtype=np.float64)
    total = values.sum(axis=1, keepdims=True)
    return np.divide(values, total, out=np.zeros_like(values), where=total > 0)


def _top_sets(shares: NDArray[np.float64], top: int) -> NDArray[np.bool_]:
    """``[frames, num_experts]`` bool: the ``top`` experts of each frame; ties by index."""
    order = np.argsort(-shares, axis=1, kind="stable")[:, :top]
    chosen = np.zeros(shares.shape, dtype=bool)
    np.put_along_axis(chosen, order, True, axis=1)
    return chosen


def _overlap(chosen: NDArray[np.bool_], lag: int, streams: Sequence[str], top: int) -> float | None:
    """Mean share of common experts between frames t and t + lag of the same stream."""
    if len(chosen) <= lag:
        return None
    names = np.array(streams)
    same = names[lag:] == names[:-lag]
    if not same.any():
        return None
    common = (chosen[lag:] & chosen[:-lag]).sum(axis=1)[same]
    return float(common.mean() / top)


def _coverage(
    shares: NDArray[np.float64], chosen: NDArray[np.bool_], streams: Sequence[str], top: int
) -> dict[str, float | None]:
    """Mean share of a frame that ``top`` experts cover, by how they are chosen."""
    names = np.array(streams)
    followed = names[1:] == names[:-1]
    previous = (shares[1:] * chosen[:-1]).sum(axis=1)[followed]
    fixed = np.sort(shares.mean(axis=0))[::-1][:top]
    return {
        "same_frame": float((shares * chosen).sum(axis=1).mean()),
        "previous_frame": float(previous.mean()) if len(previous) else None,
        "best_fixed": float(fixed.sum()),
        "any": top / shares.shape[1],
    }


def locality_statistics(
    header: Mapping[str, Any],
    frames: Sequence[FrameTrace],
    *,
    lags: Sequence[int],
    top: int | None = None,
    measure: Measure = "tokens",
    seed: int = 0,
) -> dict[str, Any]:
    """Overlap of the ``top`` experts of frames t and t + n, and of randomly paired frames.

    ``coverage`` is the share of a frame's tokens (or importance) that ``top`` experts get: the best ones of
    that frame, of the frame before (what a committee can know), of the whole trace (the best that can stay
    fixed), and any. A committee can win over a fixed choice what lies between the second and the third.

    Args:
        header: Of the trace.
        frames: In order.
        lags: Every n.
        top: Experts compared; None is half of each layer's.
        measure: What makes an expert a top one.
        seed: Of the shuffled control.

    Raises:
        DataError: Fewer than two frames.
    """
    if len(frames) < 2:
        raise DataError(f"a trace of {len(frames)} frame(s) says nothing about locality; record more")
    order = np.random.default_rng(seed).permutation(len(frames))
    streams = [frame.stream for frame in frames]
    layers = []
    for index, layer in enumerate(header["layers"]):
        count = min(top or max(1, layer["num_experts"] // 2), layer["num_experts"])
        shares = _shares(frames, index, measure)
        chosen = _top_sets(shares, count)
        shuffled = chosen[order]
        layers.append(
            {
                "name": layer["name"],
                "top": count,
                "overlap": {str(lag): _overlap(chosen, lag, streams, count) for lag in lags},
                "shuffled_overlap": float((shuffled[1:] & shuffled[:-1]).sum(axis=1).mean() / count),
                "chance_overlap": count / layer["num_experts"],
                "coverage": _coverage(shares, chosen, streams, count),
                "mean_share": shares.mean(axis=0).round(4).tolist(),
            }
        )
    return {"frames": len(frames), "measure": measure, "layers": layers}


def draw_heat_map(
    path: Path, header: Mapping[str, Any], frames: Sequence[FrameTrace], *, measure: Measure = "tokens"
) -> None:
    """Frames from left to right, experts from top to bottom, one panel a layer.

    Raises:
        OutputError: The picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    names = [layer["name"] for layer in header["layers"]]
    figure, panels = plt.subplots(
        len(names),
        1,
        figsize=(12, 1.2 + 1.8 * len(names)),
        sharex=True,
        squeeze=False,
        constrained_layout=True,
    )
    for index, (name, panel) in enumerate(zip(names, panels[:, 0], strict=True)):
        shares = _shares(frames, index, measure)
        picture = panel.imshow(
            shares.T,
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=0,
            vmax=max(shares.max(), 1e-9),
        )
        panel.set(ylabel="expert", title=name)
        figure.colorbar(picture, ax=panel, label=f"share of {measure}", fraction=0.02, pad=0.01)
    panels[-1, 0].set_xlabel("frame")
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        plt.close(figure)
