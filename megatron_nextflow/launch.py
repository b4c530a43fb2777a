"""Train with torchrun: `python -m megatron_nextflow.launch --config train.json --processes 8`.

What a flow starts in a session of its own, and what a Slurm job starts on each of its machines.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

from megatron_nextflow.launching.launcher import Cluster, launch_by_file


def main(arguments: list[str] | None = None) -> int:
    """Returns the exit status of `launch`, 2 with one line where it refuses."""
    parser = argparse.ArgumentParser(prog="python -m megatron_nextflow.launch", description="Train with torchrun.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration, JSON")
    parser.add_argument("--processes", type=int, required=True, help="on all machines together")
    parser.add_argument("--nodes", type=int, help="machines of a Slurm job; SLURM_NODEID says which this one is")
    parser.add_argument("--rendezvous", help="host:port of the first machine")
    parser.add_argument("--attempt", help="the job's number and how often it was put back, as in 123-0")
    options = parser.parse_args(arguments)
    cluster = None
    if options.nodes is not None:
        cluster = Cluster(options.nodes, int(os.environ["SLURM_NODEID"]), options.rendezvous, options.attempt)
    return launch_by_file(options.config, options.processes, cluster)


if __name__ == "__main__":
    sys.exit(main())
