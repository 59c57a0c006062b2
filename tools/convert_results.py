"""Convert JSON Lines results to COCO results or MOT text: see --help."""

from pcmoe_det.cli.convert_results import entry

if __name__ == "__main__":
    raise SystemExit(entry())
