"""The program that each process of a training run executes: `python -m megatron_nextflow.train --config resolved.json`.

Run under torchrun (see `launch`), or alone for one process. What stops a run is told in one line, on the process that
reports, and the exit status says what kind it was: 2 for input or configuration that cannot be trained on, 3 for a loss that
is not finite, 1 for anything else (a full disk in one line, the rest with its traceback).
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import threading
import time
import traceback
import warnings
from pathlib import Path

from pydantic import ValidationError

from megatron_nextflow.config import TrainConfig

FAILED = 1
REFUSED = 2
DIVERGED = 3
LAUNCHER = "MEGATRON_NEXTFLOW_LAUNCHER"
"""Names, in the environment, the process on whose behalf this one runs."""


STATUS_FILE = "MEGATRON_NEXTFLOW_STATUS"
"""Names, in the environment, the file that takes the exit status of the first process to end badly."""


def main(arguments: list[str] | None = None) -> int:
    """Train as the resolved configuration says; returns the exit status."""
    parser = argparse.ArgumentParser(prog="python -m megatron_nextflow.train", description="Train on a shard set.")
    parser.add_argument("--config", type=Path, required=True, help="resolved configuration, JSON")
    options = parser.parse_args(arguments)
    signal.signal(signal.SIGINT, signal.SIG_DFL)  # Ctrl-C before training begins ends the process without a traceback
    _quiet()
    try:
        config = TrainConfig.model_validate_json(options.config.read_bytes())
    except (OSError, ValidationError) as error:
        return _end(REFUSED, f"{options.config}: {error}")
    _die_with_parents()
    return _train(config)


def _train(config: TrainConfig) -> int:
    import torch.distributed as dist

    from megatron_nextflow import device

    try:
        target = device.setup(config.device, config.threads)
    except RuntimeError as error:
        return _end(REFUSED, str(error))
    # megatron.core may be imported only now that the device is set up.
    from megatron_nextflow.loop import train
    from megatron_nextflow.training import DivergedError

    try:
        train(config, target)
    except DivergedError as error:
        return _end(DIVERGED, f"{error}; the checkpoint before it is whole")
    except (ValueError, OSError) as error:
        if os.environ.get("MEGATRON_NEXTFLOW_TRACEBACK"):
            traceback.print_exc()
        if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
            return _end(FAILED, f"{error}; the last checkpoint under {config.output} is whole")
        return _end(REFUSED, str(error))
    dist.destroy_process_group()
    return 0


def _end(status: int, reason: str) -> int:
    """Say why, once for all processes, and leave the status where the launcher looks for it.

    With a launcher the process itself ends with 0: every process refuses alike, and torchrun would cover the reason with a
    page of its own and lose the status.
    """
    file = os.environ.get(STATUS_FILE)
    if file is None:
        speaks = os.environ.get("RANK", "0") == "0"
    else:
        try:
            with open(file, "x", encoding="utf-8") as stream:
                stream.write(f"{status}\n")
            speaks = True
        except FileExistsError:
            speaks = False
    if speaks:
        print(f"train: {reason}", file=sys.stderr, flush=True)
    return 0 if file else status


def _quiet() -> None:
    """Megatron and torch warn about much that is by design here (no Transformer Engine, no APEX, gloo on a CPU)."""
    warnings.filterwarnings("ignore")
    logging.getLogger("megatron").setLevel(logging.ERROR)


def _die_with_parents() -> None:
    """Leave at once when torchrun or the launcher is gone: an orphan would hold the port, memory and cores for ever.

    Nothing is lost, because checkpoints are written whole or not at all.
    """
    parent = os.getppid()
    launcher = int(os.environ.get(LAUNCHER, "0"))

    def watch() -> None:
        while True:
            time.sleep(1.0)
            if os.getppid() != parent or (
                launcher and not Path(f"/proc/{launcher}").exists() and Path("/proc/self").exists()
            ):
                os._exit(1)

    threading.Thread(target=watch, name="orphan-watch", daemon=True).start()


if __name__ == "__mp_main__":
    # A helper process that Megatron spawned to write checkpoints: it would outlive a parent that is killed.
    _die_with_parents()

if __name__ == "__main__":
    sys.exit(main())
