"""Which process says what a training does: the one that holds the loss, so that nothing is sent to be told."""

from __future__ import annotations

from megatron.core import parallel_state

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.runtime.agreement import of_all
from megatron_nextflow.watch.reporter import Reporter, Silence


def open_reporter(config: TrainConfig, step: int) -> Reporter | Silence:
    """The reporter, on the process that holds the loss; what keeps it from beginning is raised on all."""
    made: Reporter | Silence = Silence()
    problem = ""
    if (
        parallel_state.is_pipeline_last_stage(ignore_virtual=True)
        and parallel_state.get_tensor_model_parallel_rank() == 0
        and parallel_state.get_data_parallel_rank(with_context_parallel=True) == 0
    ):
        try:
            made = Reporter(config, step)
        except (OSError, ValueError) as error:
            problem = str(error)
    if problems := [one for one in of_all(problem) if one]:
        raise ValueError("; ".join(problems))
    return made
