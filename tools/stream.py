"""Detect objects in a video or a camera: see --help."""

from pcmoe_det.cli.stream import entry

if __name__ == "__main__":
    raise SystemExit(entry())
