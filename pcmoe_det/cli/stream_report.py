"""What ``tools/stream.py`` tells at the end: as text, and as JSON on request."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pcmoe_det.streaming import OutputFile, StreamSummary

__all__ = ["report"]


def report(summaries: Sequence[StreamSummary], target: OutputFile | None) -> None:
    """Print the summaries and write them to ``target``.

    The file holds the record of the only source, or an object with ``sources``, a list of records, and
    ``accounting``, which is of all sources together.

    Raises:
        OutputError: The file cannot be written.
    """
    if len(summaries) == 1:
        text, record = summaries[0].as_text(), summaries[0].as_record()
    else:
        text, record = _several(summaries)
    try:
        if target is not None:
            _write(record, target)
    finally:  # last, because nobody may read it any more: that must not cost the file
        print(text, flush=True)


def _write(record: dict[str, Any], target: OutputFile) -> None:
    from pcmoe_det.streaming.append_file import AppendFile

    file = AppendFile(target)
    file.append((json.dumps(record, indent=2) + "\n").encode())
    file.close("complete")


def _several(summaries: Sequence[StreamSummary]) -> tuple[str, dict[str, Any]]:
    accounting = summaries[0].accounting
    own = [replace(summary, accounting={}) for summary in summaries]
    parts = [summary.as_text() for summary in own]
    if "summary" in accounting:
        parts.append(str(accounting["summary"]))
    records = [summary.as_record() for summary in own]
    version = records[0]["schema_version"]
    return "\n\n".join(parts), {"schema_version": version, "sources": records, "accounting": dict(accounting)}
