"""Expert stores: where a committee reads single experts from.

``DiskExpertStore`` reads a packed model's expert file, ``PinnedHostStore`` keeps all experts in pinned host
memory for a CUDA device. Whatever else has the methods of ``ExpertStore`` serves as well.
"""

from pcmoe_det.committee.store_base import (
    LONGEST_WAIT_SECONDS,
    ExpertReadError,
    ExpertStore,
    ReadFailure,
    ReadMode,
    ReadResult,
    StoreClosedError,
    StoreCounters,
    StoreError,
    may_pass,
)
from pcmoe_det.committee.store_disk import DiskExpertStore
from pcmoe_det.committee.store_pinned import PinnedHostStore

__all__ = [
    "LONGEST_WAIT_SECONDS",
    "DiskExpertStore",
    "ExpertReadError",
    "ExpertStore",
    "PinnedHostStore",
    "ReadFailure",
    "ReadMode",
    "ReadResult",
    "StoreClosedError",
    "StoreCounters",
    "StoreError",
    "may_pass",
]
