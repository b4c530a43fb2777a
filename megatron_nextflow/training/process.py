"""One process of a training: under torchrun (see `launching`), or alone.

What stops a training is told in one line, by the first process that knows, and the exit status says what kind it was: 2 for
input or configuration that cannot be trained on, which is known before the first step; 3 for a loss that diverged; 4 for a
training in which no step ended any more; 1 for anything else, whatever its type: after a step was begun, a ValueError is
somebody's bug. The traceback is in the process's log (see `rank_log`). A signal that asks to stop is no failure: the
training saves and ends with 0.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

from nextflow_data.common.excerpts import shorten
from nextflow_data.common.signal_handlers import default
from pydantic import ValidationError

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.exit_status import DIVERGED, FAILED, HUNG, LAUNCHER, REFUSED, STATUS_FILE
from megatron_nextflow.runtime.training_folder import last_step
from megatron_nextflow.watch.rank_log import open_log


def train_by_file(file: Path) -> int:
    """Trains as the resolved configuration in `file` says; returns the exit status."""
    default(signal.SIGINT)  # Ctrl-C before training begins ends the process without a traceback
    try:
        config = TrainConfig.model_validate_json(file.read_bytes())
    except (OSError, ValidationError) as error:
        return _end(REFUSED, f"{file}: {error}")
    try:
        log = open_log(config.output, int(os.environ.get("RANK", "0")))
    except OSError as error:
        return _end(FAILED, f"the log cannot be written: {error}")
    _die_with_parents()
    return _train(config, log)


def _train(config: TrainConfig, log: Path) -> int:
    import torch.distributed as dist

    from megatron_nextflow.runtime import device

    try:
        target = device.setup(config.device, config.threads, config.health.timeout_minutes)
    except RuntimeError as error:
        return _end(REFUSED, str(error))
    # megatron.core may be imported only now that the device is set up.
    from nextflow_tokenize.shards.reader import ShardError

    from megatron_nextflow.checkpoint.save import SaveError
    from megatron_nextflow.feeding.feed import FeedError
    from megatron_nextflow.runtime.training_folder import CheckpointError
    from megatron_nextflow.step.trainer import DivergedError
    from megatron_nextflow.training import loop
    from megatron_nextflow.training.agreed_batch import UnreadableError

    training: loop.Training | None = None
    try:
        training = loop.prepare(config, target, partial(_hung, config.output))
        training.run()
    except Exception as error:
        logging.getLogger(__name__).exception("the training ended")
        if isinstance(error, DivergedError):
            return _end(DIVERGED, f"{error}; {_kept(config.output)}")
        if isinstance(error, (SaveError, UnreadableError)):
            return _end(FAILED, str(error))
        if isinstance(error, (ValueError, FileNotFoundError)) and not (training and training.begun):
            return _end(REFUSED, str(error))
        told = isinstance(error, (OSError, FeedError, ShardError, CheckpointError))  # says itself what it is
        words = str(error) if told else f"{type(error).__name__}: {error}"
        words = shorten(words, 300)
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
