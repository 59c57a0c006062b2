"""The table: source x fault x what the contract says (DESIGN.md, section 5)."""

from __future__ import annotations

from tests.faults.camera_cases import camera_cases
from tests.faults.disk_cases import disk_cases
from tests.faults.file_cases import file_cases
from tests.faults.network_cases import network_cases
from tests.faults.output_cases import output_cases
from tests.faults.signal_cases import signal_cases
from tests.faults.stage_cases import stage_cases
from tests.faults.stream_cases import stream_cases

__all__ = ["CASES"]

CASES = [
    *file_cases(),
    *stage_cases(),
    *output_cases(),
    *disk_cases(),
    *stream_cases(),
    *signal_cases(),
    *network_cases(),
    *camera_cases(),
]
