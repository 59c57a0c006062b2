"""Every error that a caller can act on.

The command line prints the message of a ``PcmoeError`` as one line and exits with ``exit_code``;
anything else that escapes is a bug. A message names the value, what was allowed and the next step.
"""

from __future__ import annotations

__all__ = [
    "CheckpointError",
    "ConfigError",
    "DataError",
    "OperatorUnavailableError",
    "OutputError",
    "PcmoeError",
    "SourceError",
    "UsageError",
]


class PcmoeError(Exception):
    """Base of the family."""

    exit_code = 1


class UsageError(PcmoeError):
    """Arguments that cannot be met whatever the data is."""

    exit_code = 2


class ConfigError(UsageError):
    """A configuration file that is missing, malformed or contradictory."""


class CheckpointError(PcmoeError):
    """Weights that are missing, damaged or do not fit the model."""


class DataError(PcmoeError):
    """A data set that cannot be read; the message names the file and the frame."""


class SourceError(PcmoeError):
    """A video source that cannot be opened or read."""


class OutputError(PcmoeError):
    """An output that cannot be written."""


class OperatorUnavailableError(PcmoeError):
    """An mmcv operator that only a compiled mmcv has."""
