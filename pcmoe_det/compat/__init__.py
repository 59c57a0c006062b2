"""The operators that mmdet needs from mmcv, without a compiled mmcv.

mmcv's pure-Python wheel (``mmcv-lite``) has no ``mmcv._ext``. ``register_mmcv_operators`` adds a
finder to the *end* of ``sys.meta_path`` that answers the import of ``mmcv._ext`` with our vectorised
torch operators. Because it comes last, a compiled ``mmcv._ext`` wins wherever there is one.
"""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from types import ModuleType

__all__ = ["register_mmcv_operators"]

_EXTENSION_NAME = "mmcv._ext"
_STAND_IN = "pcmoe_det.compat.mmcv_ext"


class _StandInFinder(importlib.abc.MetaPathFinder):
    """Finds the stand-in for ``mmcv._ext``; every other name is left to the other finders."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        del path, target
        if fullname != _EXTENSION_NAME:
            return None
        stand_in = importlib.util.find_spec(_STAND_IN)
        if stand_in is None or stand_in.origin is None:
            return None
        return importlib.util.spec_from_file_location(fullname, stand_in.origin)


def register_mmcv_operators() -> None:
    """Make ``mmcv._ext`` importable. Safe to call more than once; imports neither torch nor mmcv."""
    if not any(isinstance(finder, _StandInFinder) for finder in sys.meta_path):
        sys.meta_path.append(_StandInFinder())
