"""Make street videos with exact labels: see --help."""

from pcmoe_det.cli.make_street import entry

if __name__ == "__main__":
    raise SystemExit(entry())
