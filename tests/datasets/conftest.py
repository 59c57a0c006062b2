"""Fixtures of the data tests."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from tests.datasets.shift_files import CONFIG, WriteView, encode_jpeg, member_of, write_images, write_labels

SHARED_DATA = Path(__file__).resolve().parents[2].parent / "shared" / "data"


@pytest.fixture(scope="session")
def shared_data() -> Path:
    if not SHARED_DATA.is_dir():
        pytest.skip("no shared data beside the project")
    return SHARED_DATA


@pytest.fixture
def write_view(tmp_path: Path) -> WriteView:
    """Writes one view below ``tmp_path`` and returns the data root."""

    def write(
        frames: Sequence[dict[str, Any]],
        *,
        store: str = "img.zip",
        split: str = "val",
        images: dict[str, bytes] | None = None,
        config: Any = CONFIG,
    ) -> Path:
        folder = tmp_path / "discrete" / "images" / split / "front"
        write_labels(folder / "det_2d.json", frames, config=config)
        if images is None:
            images = {member_of(frame): encode_jpeg(code) for code, frame in enumerate(frames)}
        write_images(folder / store, images)
        return tmp_path

    return write
