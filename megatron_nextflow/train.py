"""The program that each process of a training run executes: `python -m megatron_nextflow.train --config resolved.json`.

Run under torchrun (see `launch`), or alone for one process. What stops a run is told in one line, by the first process that
knows, and the exit status says what kind it was: 2 for input or configuration that cannot be trained on, 3 for a loss that
diverged, 4 for a run in which no step ended any more, 1 for anything else. The traceback is in the process's log (see
`rank_log`). A signal that asks to stop is no failure: the run saves and ends with 0.
"""

from __future__ import annotations

import argparse
import logging
import os
import signal
import sys
import textwrap
import threading
import time
from functools import partial
from pathlib import Path

from pydantic import ValidationError

from megatron_nextflow.config import TrainConfig
from megatron_nextflow.launch_record import last_step
from megatron_nextflow.rank_log import open_log

FAILED = 1
REFUSED = 2
DIVERGED = 3
HUNG = 4
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
    try:
        config = TrainConfig.model_validate_json(options.config.read_bytes())
    except (OSError, ValidationError) as error:
        return _end(REFUSED, f"{options.config}: {error}")
    try:
        log = open_log(config.output, int(os.environ.get("RANK", "0")))
    except OSError as error:
        return _end(FAILED, f"the log cannot be written: {error}")
    _die_with_parents()
    return _train(config, log)


def _train(config: TrainConfig, log: Path) -> int:
    import torch.distributed as dist

    from megatron_nextflow import device

    try:
        target = device.setup(config.device, config.threads, config.health.timeout_minutes)
    except RuntimeError as error:
        return _end(REFUSED, str(error))
    # megatron.core may be imported only now that the device is set up.
    from megatron_nextflow.checkpoint_saver import SaveError
    from megatron_nextflow.loop import train
    from megatron_nextflow.reading import UnreadableError
    from megatron_nextflow.training import DivergedError

    try:
        train(config, target, partial(_hung, config.output))
    except Exception as error:
        logging.getLogger(__name__).exception("the training ended")
        if isinstance(error, DivergedError):
            return _end(DIVERGED, f"{error}; {_kept(config.output)}")
        if isinstance(error, (SaveError, UnreadableError)):
            return _end(FAILED, str(error))
        if isinstance(error, (ValueError, FileNotFoundError)):
            return _end(REFUSED, str(error))
        words = str(error) if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        words = textwrap.shorten(words, 300, placeholder="…")
        return _end(FAILED, f"rank {dist.get_rank()} failed: {words}; its traceback is in {log}; {_kept(config.output)}")
    dist.destroy_process_group()
    return 0


def _hung(output: Path, reason: str) -> None:
    """End this process from the watchdog's thread; the launcher then ends the others."""
    os._exit(_end(HUNG, f"{reason}; {_kept(output)}"))


def _kept(output: Path) -> str:
    step = last_step(output)
    return f"the checkpoint of step {step} is whole" if step else "there is no checkpoint of a step yet"


def _end(status: int, reason: str) -> int:
    """Say why, once for all processes, and leave the status where the launcher looks for it; returns the status.

    The launcher ends the other processes: what one met alone, those that wait for it cannot know.
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
        except OSError:  # a full disk: better said by every process than by none
            speaks = True
    if speaks:
        print(f"train: {reason}", file=sys.stderr, flush=True)
    return status


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


if __name__ == "__main__":
    ended = main()
    if ended:
        os._exit(ended)  # the collectives of a failed run could keep the interpreter from ending
