"""What every command does around its own work: thread settings, error lines, exit codes."""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from pcmoe_det import __version__
from pcmoe_det.errors import PcmoeError

__all__ = ["EXIT_FAILED", "EXIT_INTERRUPTED", "EXIT_OK", "EXIT_USAGE", "make_parser", "run", "whole_number"]

EXIT_OK = 0
EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_INTERRUPTED = 130


class _HelpFormatter(argparse.ArgumentDefaultsHelpFormatter):
    """Names defaults, where there is one."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        if action.default is None or action.default is False:
            return action.help
        return super()._get_help_string(action)


def make_parser(program: str, description: str) -> argparse.ArgumentParser:
    """A parser with the options that all commands share (``--help``, ``--version``, ``--verbose``)."""
    parser = argparse.ArgumentParser(prog=program, description=description, formatter_class=_HelpFormatter)
    parser.add_argument("--version", action="version", version=f"{program} {__version__}")
    parser.add_argument("--verbose", action="store_true", help="log details, and tracebacks of errors")
    return parser


def whole_number(smallest: int, largest: int | None = None) -> Callable[[str], int]:
    """For argparse: a whole number that is not below ``smallest`` nor above ``largest``."""
    allowed = f"from {smallest}" if largest is None else f"from {smallest} to {largest}"

    def parse(text: str) -> int:
        try:
            value = int(text)
        except ValueError:
            value = smallest - 1
        if value < smallest or (largest is not None and value > largest):
            raise argparse.ArgumentTypeError(f"{text!r} is not a whole number {allowed}")
        return value

    return parse


def run(parser: argparse.ArgumentParser, work: Callable[[argparse.Namespace], int]) -> int:
    """Parse the command line, do ``work`` and return the exit code.

    Torch must not have been imported yet: OpenMP reads its settings when it is loaded. Spinning
    OpenMP workers starve the reader and the renderer on small machines (2-4 times slower blocks
    with one other busy process on two cores), so they are told to sleep.

    SIGTERM ends ``work`` through its ``finally`` blocks, like Ctrl-C, unless that installs its own handler.
    """
    arguments = parser.parse_args()
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    logging.basicConfig(
        level=logging.INFO if arguments.verbose else logging.WARNING,
        format="%(levelname)s %(name)s: %(message)s",
    )
    if not arguments.verbose:
        warnings.simplefilter("ignore")  # of libraries, about their own future; nothing a user can act on
    try:
        with _ended_by_sigterm():
            return work(arguments)
    except PcmoeError as error:
        if arguments.verbose:
            logging.getLogger(__name__).exception("the command failed")
        print(f"{parser.prog}: error: {_sentence(error)}", file=sys.stderr)
        return error.exit_code
    except BrokenPipeError:
        # Whoever read our output has left (`| head`). Python would complain once more when it closes it.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return EXIT_FAILED
    except KeyboardInterrupt:
        print(f"{parser.prog}: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Raise ``KeyboardInterrupt`` at a SIGTERM, whose default leaves temporary files where they are.

    A second one ends the process at once, and so does one that reaches a forked child, which has inherited
    the handler and nothing to put in order.
    """
    owner = os.getpid()

    def handle(number: int, frame: FrameType | None) -> None:  # noqa: ARG001
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        if os.getpid() != owner:
            os.kill(os.getpid(), signal.SIGTERM)
            return
        raise KeyboardInterrupt

    in_charge = threading.current_thread() is threading.main_thread()  # others may not set handlers
    if not in_charge or signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, handle)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


def _sentence(error: PcmoeError) -> str:
    """The error's own message on one line: torch wraps one from a data-loading process in a traceback."""
    message = str(error)
    if "\nOriginal Traceback" in message:
        message = message.rpartition(f"{type(error).__name__}: ")[2]
    return " ".join(message.split())
