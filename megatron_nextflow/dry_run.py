"""What a training recipe amounts to: `python -m megatron_nextflow.dry_run --config FILE --processes N`."""

from __future__ import annotations

import argparse
import logging
import sys
import warnings
from pathlib import Path

from megatron_nextflow.estimate.reckoning import reckon_file


def main(arguments: list[str] | None = None) -> int:
    """Prints it; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m megatron_nextflow.dry_run", description="What a recipe amounts to.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration, JSON")
    parser.add_argument("--processes", type=int, required=True, help="training processes, one a GPU")
    options = parser.parse_args(arguments)
    warnings.filterwarnings("ignore")
    logging.getLogger("megatron").setLevel(logging.ERROR)
    return reckon_file(options.config, options.processes)


if __name__ == "__main__":
    sys.exit(main())
