"""Analyse what experts did: see --help."""

from pcmoe_det.cli.analyze import entry

if __name__ == "__main__":
    raise SystemExit(entry())
