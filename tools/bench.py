"""Measure speed and memory as ratios: see --help."""

from pcmoe_det.cli.bench import entry

if __name__ == "__main__":
    raise SystemExit(entry())
