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


def _by_stream(frames: Sequence[FrameTrace]) -> list[NDArray[np.intp]]:
    """Positions of each stream's frames, in order: several sources take turns in one trace."""
    positions: dict[str, list[int]] = {}
    for position, frame in enumerate(frames):
        positions.setdefault(frame.stream, []).append(position)
    return [np.array(of_stream, dtype=np.intp) for of_stream in positions.values()]


def _pairs(streams: Sequence[NDArray[np.intp]], lag: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """Positions of frames t and of frames t + lag, of the same stream each."""
    return (
        np.concatenate([positions[:-lag] for positions in streams]),
        np.concatenate([positions[lag:] for positions in streams]),
    )


def _overlap(
    chosen: NDArray[np.bool_], lag: int, streams: Sequence[NDArray[np.intp]], top: int
) -> float | None:
    """Mean share of common experts between frames t and t + lag of the same stream."""
    before, after = _pairs(streams, lag)
    if not len(before):
        return None
    return float((chosen[after] & chosen[before]).sum(axis=1).mean() / top)


def _coverage(
    shares: NDArray[np.float64],
    chosen: NDArray[np.bool_],
    streams: Sequence[NDArray[np.intp]],
    top: int,
) -> dict[str, float | None]:
    """Mean share of a frame that ``top`` experts cover, by how they are chosen."""
    before, after = _pairs(streams, 1)
    previous = (shares[after] * chosen[before]).sum(axis=1)
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
    Frames are followed within their stream, also where several take turns.

    Args:
        header: Of the trace.
        frames: In order.
        lags: Every n.
        top: Experts compared, from 1; None is half of each layer's.
        measure: What makes an expert a top one.
        seed: Of the shuffled control.

    Raises:
        DataError: Fewer than two frames.
    """
    if len(frames) < 2:
        raise DataError(f"a trace of {len(frames)} frame(s) says nothing about locality; record more")
    order = np.random.default_rng(seed).permutation(len(frames))
    streams = _by_stream(frames)
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
    return {"frames": len(frames), "streams": len(streams), "measure": measure, "layers": layers}


def draw_heat_map(
    path: Path, header: Mapping[str, Any], frames: Sequence[FrameTrace], *, measure: Measure = "tokens"
) -> None:
    """Frames from left to right, experts from top to bottom, one panel a layer.

    The frames of one stream stand together, with a line before the next stream's.

    Raises:
        OutputError: The picture cannot be written.
    """
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    streams = _by_stream(frames)
    order = np.concatenate(streams)
    borders = np.cumsum([len(positions) for positions in streams])[:-1]
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
        shares = _shares(frames, index, measure)[order]
        picture = panel.imshow(
            shares.T,
            aspect="auto",
            interpolation="nearest",
            cmap="viridis",
            vmin=0,
            vmax=max(shares.max(), 1e-9),
        )
        panel.set(ylabel="expert", title=name)
        for border in borders:
            panel.axvline(border - 0.5, color="white", linewidth=1)
        figure.colorbar(picture, ax=panel, label=f"share of {measure}", fraction=0.02, pad=0.01)
    panels[-1, 0].set_xlabel("frame" if len(streams) == 1 else "frame, one stream after the other")
    try:
        figure.savefig(path, dpi=100)
    except OSError as error:
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
    finally:
        plt.close(figure)
