"""Make MoE start weights from dense ones: see --help."""

from pcmoe_det.cli.upcycle import entry

if __name__ == "__main__":
    raise SystemExit(entry())
