"""Pack a model: experts as records on disk: see --help."""

from pcmoe_det.cli.pack import entry

if __name__ == "__main__":
    raise SystemExit(entry())
