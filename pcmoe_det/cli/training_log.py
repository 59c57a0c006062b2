"""mmengine's runner with a log that people read: progress, not dumps."""

from __future__ import annotations

import logging
import sys
from typing import Any

from mmengine.logging import MMLogger
from mmengine.runner import Runner

__all__ = ["PlainLogRunner"]

_NOISE = (
    "paramwise_options --",  # three lines for each of hundreds of parameters
    '"FileClient" will be deprecated',
    '"HardDiskBackend" is the alias',
    "Advance dataloader",  # GoOnWithFreshDataHook replaces it
    "Distributed training is not used, all SyncBatchNorm",
    "Hooks will be executed in the following order",
    "image shape: height=",
    "init_weights of",
    "The prefix is not set in metric class",
)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_NOISE)


def _fits_a_line(record: logging.LogRecord) -> bool:
    """Whole configs and environments go to the log file only."""
    return record.levelno >= logging.WARNING or "\n" not in record.getMessage().strip()


class PlainLogRunner(Runner):
    """Leaves mmengine's dumps out of the log, and what takes many lines off the terminal."""

    def build_logger(self, *args: Any, **kwargs: Any) -> MMLogger:
        """mmengine's logger, filtered."""
        logger = super().build_logger(*args, **kwargs)
        logger.addFilter(_is_wanted)
        for handler in logger.handlers:
            if isinstance(handler, logging.StreamHandler) and handler.stream is sys.stdout:
                handler.addFilter(_fits_a_line)
        return logger
