"""Where independent truth for tests lies, if it is at hand."""

from __future__ import annotations

from pathlib import Path

import pytest

SHARED = Path(__file__).resolve().parents[2] / "shared"


def shared(*parts: str) -> Path:
    """A path in the shared truth; the calling test is skipped, with the reason, where it is absent."""
    path = SHARED.joinpath(*parts)
    if not path.exists() and not path.parent.exists():
        pytest.skip(f"independent truth is not at hand: {'/'.join(parts)} beside the project")
    return path
