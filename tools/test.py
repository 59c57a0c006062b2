"""Evaluate weights on a data set: see --help."""

from pcmoe_det.cli.test import entry

if __name__ == "__main__":
    raise SystemExit(entry())
