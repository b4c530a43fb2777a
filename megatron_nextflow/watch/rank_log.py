"""One log a process, `logs/rank-NNNNN.log`: what would make the terminal of many processes unreadable.

Python's logging and warnings go there, tracebacks of what nobody caught (threads included), and the stacks at a fatal signal
such as a segmentation fault. The terminal keeps a line a step, and one line that says why a training ended and in which log
the rest is. A restart appends. The cost: as many files as processes in one folder. Needs no torch.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import platform
import socket
import sys
import threading
import time
from pathlib import Path
from types import TracebackType

from megatron_nextflow.runtime.training_folder import LOGS


def log_path(output: Path, rank: int) -> Path:
    """Where process `rank` of the training in `output` logs."""
    return output / LOGS / f"rank-{rank:05d}.log"


def open_log(output: Path, rank: int) -> Path:
    """Send this process's log records, warnings, uncaught tracebacks and fatal signals to its log from now on; its path.

    Raises OSError where it cannot be written.
    """
    path = log_path(output, rank)
    path.parent.mkdir(parents=True, exist_ok=True)
    stream = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115 - for the life of the process
    started = time.strftime("%Y-%m-%d %H:%M:%S%z")
    where = f"{socket.gethostname()} pid {os.getpid()}, Python {platform.python_version()}"
    stream.write(f"==== {started} rank {rank} of {os.environ.get('WORLD_SIZE', '1')} on {where}\n")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(name)s: %(message)s"))
    logging.basicConfig(handlers=[handler], level=logging.WARNING, force=True)
    logging.getLogger("megatron_nextflow").setLevel(logging.INFO)
    logging.captureWarnings(True)
    logging.raiseExceptions = False  # a log on a full disk would fill the terminal with tracebacks
    faulthandler.enable(stream)
    sys.excepthook = _log_uncaught
    threading.excepthook = _log_uncaught_in_thread
    return path


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    logging.getLogger(__name__).critical("uncaught", exc_info=(kind, error, trace))


def _log_uncaught_in_thread(args: threading.ExceptHookArgs) -> None:
    if args.exc_value is not None:
        _log_uncaught(args.exc_type, args.exc_value, args.exc_traceback)
