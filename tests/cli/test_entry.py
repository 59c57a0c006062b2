"""What all commands do around their work: parser, exit codes, error lines."""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import pytest

from pcmoe_det import __version__
from pcmoe_det.cli.entry import make_parser, run, whole_number
from pcmoe_det.cli.outputs import check_no_input, check_output_file, check_outputs_apart, write_json
from pcmoe_det.errors import DataError, OutputError, PcmoeError, UsageError
from tests.cli.commands import run_command

PROJECT = Path(__file__).resolve().parents[2]


def run_with(work: Callable[[argparse.Namespace], int], *arguments: str) -> int:
    parser = make_parser("pcmoe-x", "Does nothing.")
    with (
        mock.patch.object(sys, "argv", ["pcmoe-x", *arguments]),
        mock.patch.dict(os.environ),
        warnings.catch_warnings(),
    ):
        return run(parser, work)


def raising(error: BaseException) -> Callable[[argparse.Namespace], int]:
    def work(_: argparse.Namespace) -> int:
        raise error

    return work


@pytest.mark.parametrize(
    ("error", "code", "line"),
    [
        (PcmoeError("it broke"), 1, "pcmoe-x: error: it broke\n"),
        (UsageError("--x is 3;\n  it must be 2"), 2, "pcmoe-x: error: --x is 3; it must be 2\n"),
        (KeyboardInterrupt(), 130, "pcmoe-x: interrupted\n"),
        (
            DataError(
                "Caught DataError in DataLoader worker process 0.\n"
                "Original Traceback (most recent call last):\n"
                '  File "x.py", line 1, in f\n    raise DataError("a: b")\n'
                "pcmoe_det.errors.DataError: img.zip:a/1.jpg: the JPEG is cut short\n"
            ),
            1,
            "pcmoe-x: error: img.zip:a/1.jpg: the JPEG is cut short\n",
        ),
    ],
)
def test_errors_are_one_line(
    capsys: pytest.CaptureFixture[str], error: BaseException, code: int, line: str
) -> None:
    assert run_with(raising(error)) == code
    assert capsys.readouterr() == ("", line)


def test_a_bug_is_not_hidden() -> None:
    with pytest.raises(ZeroDivisionError):
        run_with(raising(ZeroDivisionError()))


@pytest.mark.timeout(30)
def test_sigterm_ends_a_command_through_its_finally_blocks(capsys: pytest.CaptureFixture[str]) -> None:
    tidied = []

    def work(_: argparse.Namespace) -> int:
        try:
            os.kill(os.getpid(), signal.SIGTERM)
            raise AssertionError("it went on")
        finally:
            tidied.append(True)

    before = signal.getsignal(signal.SIGTERM)
    assert run_with(work) == 130
    assert tidied == [True]
    assert capsys.readouterr().err == "pcmoe-x: interrupted\n"
    assert signal.getsignal(signal.SIGTERM) is before


@pytest.mark.timeout(30)
def test_sigterm_is_left_to_a_command_with_a_handler_of_its_own() -> None:
    heard = []

    def work(_: argparse.Namespace) -> int:
        os.kill(os.getpid(), signal.SIGTERM)
        return 0

    before = signal.signal(signal.SIGTERM, lambda *_: heard.append(True))
    try:
        assert run_with(work) == 0
    finally:
        signal.signal(signal.SIGTERM, before)
    assert heard == [True]


@pytest.mark.timeout(30)
def test_sigterm_ends_a_forked_child_at_once() -> None:
    def work(_: argparse.Namespace) -> int:
        child = os.fork()
        if child == 0:
            try:
                os.kill(os.getpid(), signal.SIGTERM)
            finally:
                os._exit(77)
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

    assert run_with(work) == -signal.SIGTERM


def test_whole_numbers_have_limits() -> None:
    parse = whole_number(0, 255)
    assert (parse("0"), parse("255")) == (0, 255)
    for text in ("-1", "256", "99999999999999999999999", "x", "1.5"):
        with pytest.raises(argparse.ArgumentTypeError, match="is not a whole number from 0 to 255"):
            parse(text)


def test_verbose_shows_where(caplog: pytest.LogCaptureFixture) -> None:
    assert run_with(raising(PcmoeError("it broke")), "--verbose") == 1
    assert "Traceback" in caplog.text
    caplog.clear()
    assert run_with(raising(PcmoeError("it broke"))) == 1
    assert "Traceback" not in caplog.text


def test_openmp_threads_sleep_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []

    def work(_: argparse.Namespace) -> int:
        seen.append(os.environ.get("OMP_WAIT_POLICY"))
        return 0

    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    assert run_with(work) == 0
    monkeypatch.setenv("OMP_WAIT_POLICY", "ACTIVE")
    assert run_with(work) == 0
    assert seen == ["PASSIVE", "ACTIVE"]


@pytest.mark.parametrize("command", ["bench", "process", "stream", "test", "train"])
@pytest.mark.parametrize("threads", ["0", "-1", "two", "1.5"])
def test_threads_are_a_whole_number_from_1(command: str, threads: str) -> None:
    outcome = run_command(command, f"--threads={threads}")
    assert outcome.code == 2
    assert f"argument --threads: '{threads}' is not a whole number from 1" in outcome.err


def test_warnings_of_libraries_are_for_verbose(recwarn: pytest.WarningsRecorder) -> None:
    def work(_: argparse.Namespace) -> int:
        warnings.warn("something is deprecated", UserWarning, stacklevel=2)
        return 0

    assert run_with(work) == 0
    assert len(recwarn) == 0
    assert run_with(work, "--verbose") == 0
    assert len(recwarn) == 1


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        run_with(lambda _: 0, "--version")
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"pcmoe-x {__version__}\n"


def test_no_command_imports_torch_for_its_help() -> None:
    """In one process, for all the commands that there are."""
    names = sorted(
        path.stem
        for path in (PROJECT / "pcmoe_det" / "cli").glob("*.py")
        if "\ndef entry()" in path.read_text(encoding="utf-8")
    )
    assert {"train", "test", "export", "upcycle", "convert_swin_moe", "stream"} <= set(names)
    program = f"""
import contextlib, importlib, io, sys
for name in {names!r}:
    module = importlib.import_module("pcmoe_det.cli." + name)
    sys.argv = [name, "--help"]
    out = io.StringIO()
    with contextlib.redirect_stdout(out):
        try:
            module.entry()
        except SystemExit as stop:
            assert stop.code == 0, name
    assert "--verbose" in out.getvalue(), name
    heavy = {{"torch", "mmdet", "mmengine", "matplotlib"}} & set(sys.modules)
    assert not heavy, (name, heavy)
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, cwd=PROJECT, timeout=60, check=False
    )
    assert done.returncode == 0, done.stderr


def test_every_tool_is_a_wrapper_of_its_command() -> None:
    tools = sorted((PROJECT / "tools").glob("*.py"))
    assert {"train", "test", "export", "upcycle", "convert_swin_moe"} <= {path.stem for path in tools}
    for path in tools:
        text = path.read_text(encoding="utf-8")
        assert f"from pcmoe_det.cli.{path.stem} import entry" in text
        assert len(text.splitlines()) <= 12


def folder_as_file(path: Path) -> Path:
    path.mkdir()
    return path


@pytest.mark.parametrize(
    ("make", "options", "reason"),
    [
        (lambda folder: folder / "nowhere" / "x.json", {}, "there is no folder"),
        (lambda folder: folder_as_file(folder / "x.json"), {}, "it is a folder; name a file"),
        (lambda _: Path("/dev/full"), {}, "it is no regular file"),
        (lambda folder: folder / "x.txt", {"suffix": ".json"}, "the name must end in .json"),
        (lambda folder: folder / "there.json", {}, "already exists; use --overwrite"),
        (lambda folder: folder / ("x" * 300), {}, "File name too long; choose another name"),
    ],
)
def test_outputs_that_cannot_be_written(
    tmp_path: Path, make: Callable[[Path], Path], options: dict[str, Any], reason: str
) -> None:
    (tmp_path / "there.json").write_text("{}")
    with pytest.raises(OutputError, match=reason):
        check_output_file(make(tmp_path), overwrite=False, **options)


def test_an_output_is_no_input_and_no_other_output(tmp_path: Path) -> None:
    weights, link, packed = tmp_path / "w.safetensors", tmp_path / "link.json", tmp_path / "packed"
    weights.write_text("weights")
    link.symlink_to(weights)
    packed.mkdir()
    for output in (weights, link, tmp_path / "packed" / ".." / "w.safetensors"):
        with pytest.raises(OutputError, match="is the input"):
            check_no_input(output, [None, str(tmp_path / "nowhere"), str(weights)])
    with pytest.raises(OutputError, match="lies in the input"):
        check_no_input(packed / "new.json", [packed])
    check_no_input(tmp_path / "new.json", [weights, packed, None])
    with pytest.raises(UsageError, match="--json and --trace both write"):
        check_outputs_apart({"--json": tmp_path / "x", "--detections": None, "--trace": packed / ".." / "x"})
    check_outputs_apart({"--json": tmp_path / "x", "--trace": tmp_path / "y"})


def test_json_is_written_whole_or_not_at_all(tmp_path: Path) -> None:
    path = tmp_path / "x.json"
    write_json(path, {"a": 1.5})
    assert path.read_text() == '{\n  "a": 1.5\n}\n'
    (tmp_path / "x.json.part").mkdir()
    with pytest.raises(OutputError, match="cannot write"):
        write_json(path, {"a": 2})
    assert path.read_text() == '{\n  "a": 1.5\n}\n'


def test_a_reader_that_leaves_early_gets_no_traceback() -> None:
    script = (
        "import sys; from pcmoe_det.cli.entry import make_parser, run; sys.argv = ['x'];"
        "work = lambda _: [print(n, flush=True) for n in range(10**6)] and 0;"
        "raise SystemExit(run(make_parser('x', 'y'), work))"
    )
    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()
    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == b""
    process.stderr.close()
