"""Train a detector: see --help."""

from pcmoe_det.cli.train import entry

if __name__ == "__main__":
    raise SystemExit(entry())
