"""A training on this machine, waited for."""

from __future__ import annotations

from pathlib import Path

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.exit_status import REFUSED
from megatron_nextflow.launching.launcher import launch
from megatron_nextflow.runtime.training_folder import RECORD, last_step
from nextflow_orchestration.report.training_page import write_training_page
from nextflow_orchestration.training.outcome import TrainingFailed, TrainingOutcome, TrainingRefused


def run_training(config: TrainConfig, processes: int | None = None) -> TrainingOutcome:
    """Trains on this machine until `config.steps` or until a signal asks to stop, and writes the training page.

    `processes`: as many as one copy of the model takes, where it is None. Raises TrainingRefused, TrainingFailed, and
    KeyboardInterrupt where the signal came before there was anything to save.
    """
    try:
        status = launch(config, Path.cwd(), processes or config.parallel.model_parallel)
    except ValueError as error:
        raise TrainingRefused(str(error)) from error
    if (config.output / RECORD).is_file():
        write_training_page(config.output)
    if status > 128:
        raise KeyboardInterrupt
    if status == REFUSED:
        raise TrainingRefused(f"the training in {config.output} cannot go on: the line above says why")
    if status:
        raise TrainingFailed(status, config.output)
    return TrainingOutcome(config.output, last_step(config.output), config.steps)
