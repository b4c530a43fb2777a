"""heartbeat.json: where a training is, rewritten after every step by the process that reports.

For whoever watches from outside, on this machine or through a shared file system: a flow, a scheduler's script. The file is
replaced whole, so a reader never sees half of one; a process that was killed leaves its last state, and an old `time` says
so. The cost: some 50 microseconds a step. Needs no torch.
"""

from __future__ import annotations

import contextlib
import json
import math
import time
from pathlib import Path
from typing import Any, Literal

from nextflow_data.common.whole_files import replace_file

from megatron_nextflow.runtime.training_folder import HEARTBEAT

State = Literal["starting", "training", "saving", "stopped", "finished", "failed"]


def read_heartbeat(output: Path) -> dict[str, Any] | None:
    """The last heartbeat of the training in `output`: step, steps, loss (nats, None before the first and where it was no
    number), tokens_per_second, time (seconds since 1970), state. None where there is none."""
    try:
        found = json.loads((output / HEARTBEAT).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) else None


class Heartbeat:
    """Writes the file; what a call leaves out is as it was."""

    def __init__(self, output: Path, step: int, steps: int) -> None:
        self.path = output / HEARTBEAT
        self.values: dict[str, Any] = {"step": step, "steps": steps, "loss": None, "tokens_per_second": None}

    def beat(self, state: State, step: int | None = None, loss: float | None = None, speed: float | None = None) -> None:
        """`loss` in nats a predicted token, `speed` in tokens a second."""
        given = {"step": step, "loss": loss, "tokens_per_second": speed}
        self.values |= {name: value for name, value in given.items() if value is not None}
        if loss is not None and not math.isfinite(loss):
            self.values["loss"] = None
        with contextlib.suppress(OSError):  # a full disk is the checkpoint's to report; nobody may be watching
            said = {**self.values, "time": time.time(), "state": state}
            replace_file(self.path, json.dumps(said) + "\n", durable=False)
