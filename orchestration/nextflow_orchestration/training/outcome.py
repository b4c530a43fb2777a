"""How a training ended: well, refused, or failed."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from nextflow_data.common.errors import RequestError

from megatron_nextflow.runtime.training_folder import last_step


class TrainingFailed(RuntimeError):
    """The training processes ended with an error; `status` is their exit status, None where nobody could tell it."""

    def __init__(self, status: int | None, output: Path) -> None:
        step = last_step(output)
        kept = (
            f"the checkpoint of step {step} is kept and the same command goes on from it"
            if step
            else "nothing was saved yet"
        )
        how = "ended without a word" if status is None else f"ended with status {status}"
        super().__init__(f"training {how} ({output}); {kept}")
        self.status = status


class TrainingRefused(RequestError):
    """What the training was given cannot be trained on; trying again would not help."""


@dataclass(frozen=True)
class TrainingOutcome:
    """Where a training stands after it ended well: finished, or told to stop and saved."""

    output: Path
    step: int
    steps: int

    @property
    def finished(self) -> bool:
        return self.step >= self.steps

    def __str__(self) -> str:
        if self.finished:
            return f"step {self.step}: done"
        return f"stopped early at step {self.step} of {self.steps}, saved; the same command goes on from there"
