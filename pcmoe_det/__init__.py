"""Streaming video detection with Mixture-of-Experts models inside a memory budget.

Importing this package is cheap: it loads neither torch nor mmdet. It only makes sure that a later
``import mmcv.ops`` finds the operators that mmdet's detectors need (see ``pcmoe_det.compat``).
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

from pcmoe_det.compat import register_mmcv_operators

if TYPE_CHECKING:
    from pcmoe_det.api import ResultStream, StreamResult, stream

__version__ = "0.1.0"

__all__ = ["ResultStream", "StreamResult", "__version__", "stream"]

_OF_THE_API = frozenset({"ResultStream", "StreamResult", "stream"})

register_mmcv_operators()


def __getattr__(name: str) -> Any:
    """Names of ``pcmoe_det.api``, which needs OpenCV and FFmpeg, are loaded when they are used."""
    if name in _OF_THE_API:
        return getattr(importlib.import_module("pcmoe_det.api"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *_OF_THE_API})
