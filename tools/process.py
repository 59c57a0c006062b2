"""Detect objects in a folder of videos: see --help."""

from pcmoe_det.cli.process import entry

if __name__ == "__main__":
    raise SystemExit(entry())
