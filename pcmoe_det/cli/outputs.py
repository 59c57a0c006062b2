"""Output files of commands: found impossible before the work starts, written whole or not at all."""

from __future__ import annotations

import importlib.resources
import json
import os
from collections.abc import Iterable, Mapping
from contextlib import suppress
from pathlib import Path

from pcmoe_det.errors import OutputError, UsageError

__all__ = ["check_no_input", "check_output_file", "check_outputs_apart", "model_inputs", "write_json"]


def check_output_file(path: Path, *, overwrite: bool, suffix: str | None = None) -> None:
    """Refuse an output that cannot be written.

    Raises:
        OutputError: The folder is missing or not writable, the path is a folder or a device, the file
            exists and may not be replaced, or its ending is not ``suffix``.
    """
    try:
        _check_place(path, overwrite=overwrite, suffix=suffix)
    except OSError as error:  # no right to look there, a name too long
        raise OutputError(f"cannot write {path}: {error.strerror or error}; choose another name") from error


def _check_place(path: Path, *, overwrite: bool, suffix: str | None) -> None:
    folder = path.parent
    if suffix is not None and path.suffix != suffix:
        raise OutputError(f"cannot write {path}: the name must end in {suffix}")
    if path.is_dir():
        raise OutputError(f"cannot write {path}: it is a folder; name a file")
    if path.exists() and not path.is_file():  # the finished file would take the device's place
        raise OutputError(f"cannot write {path}: it is no regular file; choose another name")
    if not folder.is_dir():
        raise OutputError(f"cannot write {path}: there is no folder {folder}; create it first")
    if not os.access(folder, os.W_OK | os.X_OK):
        raise OutputError(f"cannot write {path}: the folder {folder} is not writable; choose another")
    if path.exists() and not overwrite:
        raise OutputError(f"{path} already exists; use --overwrite to replace it")


def check_no_input(path: Path, inputs: Iterable[str | Path | None]) -> None:
    """Refuse an output that would replace an input, or lies in a folder that is one (a packed model).

    Args:
        path: The output; need not exist.
        inputs: Files and folders that are read; those that are None or not there are passed over.

    Raises:
        OutputError: Names the input.
    """
    for given in inputs:
        if given is None:
            continue
        try:
            read = Path(given)
            if read.is_dir():
                hit = read.resolve() in (path.resolve(), *path.resolve().parents)
            else:
                hit = path.samefile(read)
        except (OSError, ValueError):  # not there, a name too long, a NUL character
            continue
        if hit:
            where = "lies in" if read.is_dir() else "is"
            raise OutputError(f"the output {path} {where} the input {read}; choose another name")


def model_inputs(model: str | None, config: str | None) -> tuple[str | Path | None, ...]:
    """What a detector is read from: ``--model`` (without it the folder of the shipped ones), ``--config``."""
    shipped = importlib.resources.files("pcmoe_det.weights")
    return (Path(str(shipped)) if model is None else model, config)


def check_outputs_apart(outputs: Mapping[str, Path | None]) -> None:
    """Refuse two outputs under one name.

    Args:
        outputs: By option, such as ``--json``; None where there is none.

    Raises:
        UsageError: Names the options.
    """
    taken: dict[Path, str] = {}
    for option, path in outputs.items():
        if path is None:
            continue
        other = taken.setdefault(path.resolve(), option)
        if other != option:
            raise UsageError(f"{other} and {option} both write {path}; give them different names")


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
