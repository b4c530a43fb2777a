"""The program that each process of a training executes: `python -m megatron_nextflow.train --config resolved.json`."""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from megatron_nextflow.runtime.store_threads import waiting
from megatron_nextflow.training.process import train_by_file


def main(arguments: list[str] | None = None) -> int:
    """Trains as the resolved configuration says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m megatron_nextflow.train", description="Train on a shard set.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration, JSON")
    return train_by_file(parser.parse_args(arguments).config)


if __name__ == "__main__":
    ended = main()
    if ended or waiting():
        sys.stdout.flush()
        os._exit(ended)  # a failed training's collectives, or a slow store, could keep the interpreter from ending
