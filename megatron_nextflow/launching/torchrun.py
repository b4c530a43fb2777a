"""torchrun, as the launcher wants it: `python -m megatron_nextflow.launching.torchrun` with torchrun's own arguments.

Three things differ from `torchrun`. Signals that ask to stop are left to the launcher, which passes them to the training
processes and waits until they have saved; torchrun itself would kill them after half a minute, and a large checkpoint takes
longer. When a process has died, those that wait for it in a collective are killed after seconds. And one line says which
rank it was and what ended it. The cost: `torch.distributed.run` is called through its functions, one default of which is set
anew here, and not as the program it is.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
from pathlib import Path

from nextflow_data.common.signal_handlers import ignore, swallow
from torch.distributed import run
from torch.distributed.elastic.multiprocessing.api import PContext
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError, ProcessFailure
from torch.distributed.elastic.rendezvous.api import RendezvousError

from megatron_nextflow.launching.exit_status import STATUS_FILE
from megatron_nextflow.runtime.training_folder import LOGS

GRACE_SECONDS = 5
"""Time the other processes have to leave once one has failed; they cannot save without it."""


def main(arguments: list[str] | None = None) -> int:
    """Runs the processes to their end; returns 0, or 1 where one of them failed."""
    swallow(signal.SIGINT, signal.SIGTERM)  # the training processes, started from here, must hear them
    # Slurm's warning is for the launcher alone, and its default would end a process that gets it all the same.
    ignore(signal.SIGUSR1)
    options = run.parse_args(arguments)
    options.signals_to_handle = "SIGQUIT"
    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)
    PContext.close.__defaults__ = (None, GRACE_SECONDS)  # of death_sig, timeout; torchrun's --shutdown-timeout comes later
    try:
        run.run(options)
    except ChildFailedError as error:
        # A process that ended by itself has said why, and left its status in the training's folder.
        status = Path(os.environ.get(STATUS_FILE, ""))
        if _killed(error.failures) or not status.is_file():
            print(f"train: {cause(error.failures)}; see {status.parent / LOGS}", file=sys.stderr, flush=True)
        return 1
    except RendezvousError as error:
        print(f"train: the machines of this job did not find each other: {error}", file=sys.stderr, flush=True)
        return 1
    return 0


def cause(failures: dict[int, ProcessFailure]) -> str:
    """Which rank failed, and how. `failures`: by rank, those that were seen first at the beginning.

    A process that was killed comes before one that gave up because its partner was gone.
    """
    rank = next(iter(_killed(failures) or failures))
    failure = failures[rank]
    if failure.exitcode >= 0:
        how = f"ended with status {failure.exitcode}"
    else:
        how = f"was killed by {signal.Signals(-failure.exitcode).name}"
    if failure.exitcode == -signal.SIGKILL:
        how += " (by hand, or by the system when memory ran out)"
    return f"rank {rank} (process {failure.pid}) {how}; the other processes were ended"


def _killed(failures: dict[int, ProcessFailure]) -> list[int]:
    return [rank for rank, failure in failures.items() if failure.exitcode < 0 and failure.exitcode != -signal.SIGTERM]


if __name__ == "__main__":
    sys.exit(main())
