"""Output files of commands: found impossible before the work starts, written whole or not at all."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

from pcmoe_det.errors import OutputError

__all__ = ["check_output_file", "write_json"]


def check_output_file(path: Path, *, overwrite: bool, suffix: str | None = None) -> None:
    """Refuse an output that cannot be written.

    Raises:
        OutputError: The folder is missing or not writable, the path is a folder, the file exists and
            may not be replaced, or its ending is not ``suffix``.
    """
    folder = path.parent
    if suffix is not None and path.suffix != suffix:
        raise OutputError(f"cannot write {path}: the name must end in {suffix}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file")
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {folder} is not writable; choose another")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists; use --overwrite to replace it")


def write_json(path: Path, content: Mapping[str, object]) -> None:
    """Write a JSON file, whole or not at all.

    Raises:
        OutputError: It cannot be written.
    """
    part = path.with_name(path.name + ".part")
    try:
        part.write_text(json.dumps(content, indent=2, allow_nan=False) + "\n", encoding="utf-8")
        part.replace(path)
    except OSError as error:
        with suppress(OSError):
            part.unlink()
        raise OutputError(f"cannot write {path}: {error.strerror or error}") from error
