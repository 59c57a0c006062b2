#!/usr/bin/env python
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from pcmoe_det.cli.train import entry

if __name__ == "__main__":
    raise SystemExit(entry())
