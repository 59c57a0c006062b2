"""Data: the SHIFT (Scalabel) reader and the generator of street videos.

Nothing that is imported here needs torch or mmdet. The mmdet parts register themselves when they are
imported: ``pcmoe_det.datasets.shift`` (``ShiftDataset``, ``LoadShiftImage``, ``VideoShardSampler``).
"""

from pcmoe_det.datasets.scalabel import (
    ShiftFrame,
    ShiftLabel,
    ShiftLabels,
    apply_teacher_protocol,
    load_frames,
)

__all__ = ["ShiftFrame", "ShiftLabel", "ShiftLabels", "apply_teacher_protocol", "load_frames"]
