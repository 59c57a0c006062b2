"""Write a training checkpoint as weights: see --help."""

from pcmoe_det.cli.export import entry

if __name__ == "__main__":
    raise SystemExit(entry())
