"""Convert official Swin-MoE checkpoints: see --help."""

from pcmoe_det.cli.convert_swin_moe import entry

if __name__ == "__main__":
    raise SystemExit(entry())
