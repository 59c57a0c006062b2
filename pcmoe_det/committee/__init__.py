"""The parameter committee: which experts of a Mixture-of-Experts detector are in memory, and when.

PC-MoE / SwapMoE (arXiv 2308.15030). A packed model (``packed_model``) keeps its experts in a file, a
store (``store``) reads single experts from it, and a committee of them runs in slots that are kept
up to date while a video plays. Importing this package loads nothing heavy; its names do when first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pcmoe_det.committee.committee import Committee
    from pcmoe_det.committee.options import CommitteeOptions
    from pcmoe_det.committee.packed_model import PackedModel
    from pcmoe_det.committee.policies import create_policy
    from pcmoe_det.committee.settings import CommitteeSettings
    from pcmoe_det.committee.store import DiskExpertStore

__all__ = [
    "Committee",
    "CommitteeOptions",
    "CommitteeSettings",
    "DiskExpertStore",
    "PackedModel",
    "create_policy",
]

_MODULES = {
    "Committee": "committee",
    "CommitteeOptions": "options",
    "CommitteeSettings": "settings",
    "DiskExpertStore": "store",
    "PackedModel": "packed_model",
    "create_policy": "policies",
}


def __getattr__(name: str) -> object:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
