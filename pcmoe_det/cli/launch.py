"""Several processes: started by ``torchrun``, joined here."""

from __future__ import annotations

import argparse
import os
from collections.abc import Iterator
from contextlib import contextmanager

from pcmoe_det.errors import UsageError

__all__ = ["add_launcher_option", "process_group"]


def add_launcher_option(parser: argparse._ActionsContainer) -> None:
    """``--launcher``."""
    parser.add_argument(
        "--launcher",
        choices=("none", "pytorch"),
        default="none",
        help="pytorch: this is one of several processes started by `torchrun --nproc_per_node N`",
    )


@contextmanager
def process_group(launcher: str) -> Iterator[bool]:
    """Join the process group for the time of the block; yields whether this is the main process.

    Raises:
        UsageError: ``pytorch`` was asked for, but no launcher started this process.
    """
    if launcher == "none":
        yield True
        return
    if "RANK" not in os.environ:
        raise UsageError(
            "--launcher pytorch needs a launcher: "
            "torchrun --nproc_per_node 2 tools/test.py ... --launcher pytorch"
        )
    import torch
    import torch.distributed as dist

    # mmengine's own initialisation selects a CUDA device even where there is none.
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    dist.init_process_group(backend="nccl" if torch.cuda.is_available() else "gloo")
    try:
        yield dist.get_rank() == 0
    finally:
        dist.destroy_process_group()
