"""The module that ``mmcv.ops`` loads as ``mmcv._ext`` where mmcv is not compiled.

``mmcv.ops`` asks its extension for more than a hundred names when it is imported. Four of them are
real here, with the argument names that mmcv 2.1's Python wrappers use; every other name is a
function that raises ``OperatorUnavailableError`` when it is called, not when it is looked up.

This file is executed under the name ``mmcv._ext`` (see ``pcmoe_det.compat``), so its imports are absolute.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NoReturn

from pcmoe_det.compat.nms import nms
from pcmoe_det.compat.roi_align import roi_align_backward, roi_align_forward
from pcmoe_det.compat.soft_nms import softnms
from pcmoe_det.errors import OperatorUnavailableError

__all__ = [
    "get_compiler_version",
    "get_compiling_cuda_version",
    "nms",
    "roi_align_backward",
    "roi_align_forward",
    "softnms",
]


def get_compiler_version() -> str:
    """What environment reports print for mmcv's compiler: there was none."""
    return "n/a (mmcv operators of pcmoe_det)"


def get_compiling_cuda_version() -> str:
    """What environment reports print for mmcv's CUDA version: there was none."""
    return "n/a (mmcv operators of pcmoe_det)"


def __getattr__(name: str) -> Callable[..., NoReturn]:
    """Stand for an operator that only a compiled mmcv has.

    Raises:
        AttributeError: for dunder names, which the import system probes.
    """
    if name.startswith("__"):
        raise AttributeError(f"module 'mmcv._ext' has no attribute {name!r}")

    def unavailable(*_args: object, **_kwargs: object) -> NoReturn:
        raise OperatorUnavailableError(
            f"this detector calls the mmcv operator {name!r}, which only a compiled mmcv has; available "
            "without compiling are nms, softnms, roi_align_forward and roi_align_backward. Build mmcv "
            "2.1.0 from its source: 'pip uninstall mmcv-lite', then 'pip install --no-build-isolation "
            "--no-binary mmcv mmcv==2.1.0' with setuptools<81 (about a quarter of an hour on two cores)"
        )

    unavailable.__name__ = unavailable.__qualname__ = name
    return unavailable
