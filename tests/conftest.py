"""Before any test module is imported: passive OpenMP threads, and mmcv's operators registered."""

import os

os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("MPLBACKEND", "Agg")

import pcmoe_det  # noqa: F401
