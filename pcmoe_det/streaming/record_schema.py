"""The JSON Schema (draft 2020-12) of a JSON Lines record, as data."""

from __future__ import annotations

from typing import Any

__all__ = ["RECORD_SCHEMA", "SCHEMA_VERSION"]

SCHEMA_VERSION = 1
"""Raised when a field goes or changes its meaning; fields may be added within a version."""

_MILLISECONDS = {"type": "number"}
_DETECTION = {
    "type": "object",
    "required": ["bbox_xyxy", "category", "score"],
    "additionalProperties": False,
    "properties": {
        "bbox_xyxy": {"type": "array", "items": {"type": "number"}, "minItems": 4, "maxItems": 4},
        "category": {"type": "string"},
        "score": {"type": "number", "minimum": 0, "maximum": 1},
        "track_id": {"type": "integer", "minimum": 0},
    },
}
_GAP = {
    "type": "object",
    "required": ["cause", "seconds"],
    "additionalProperties": False,
    "properties": {
        "cause": {"enum": ["reconnected", "size_changed"]},
        "seconds": {"type": "number", "minimum": 0},
    },
}

RECORD_SCHEMA: dict[str, Any] = {
    "$schema": "https://json-schema.org/draft/2020-12/schema",
    "title": "What was found in one frame of one source",
    "type": "object",
    "required": [
        "schema_version",
        "source",
        "frame_index",
        "pts_seconds",
        "captured_at_seconds",
        "latency_ms",
        "detections",
    ],
    "additionalProperties": False,
    "properties": {
        "schema_version": {"const": SCHEMA_VERSION},
        "source": {"type": "string"},
        "frame_index": {"type": "integer", "minimum": 0},
        "pts_seconds": {"type": ["number", "null"]},
        "captured_at_seconds": {"type": "number"},
        "gap": _GAP,
        "latency_ms": {
            "type": "object",
            "required": ["read", "wait", "detect", "total"],
            "additionalProperties": _MILLISECONDS,
        },
        "detections": {"type": "array", "items": _DETECTION},
        "accounting": {"type": "object", "additionalProperties": {"type": "number"}},
    },
}
"""Of every line that ``JsonLinesSink`` writes and every record that ``pcmoe_det.stream`` gives."""
