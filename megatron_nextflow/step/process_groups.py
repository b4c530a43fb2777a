"""Megatron's process groups for a parallel layout: made, used again, and really ended."""

from __future__ import annotations

from contextlib import suppress

import torch.distributed as dist
from megatron.core import parallel_state
from megatron.core.tensor_parallel import model_parallel_cuda_manual_seed

from megatron_nextflow.config.train import TrainConfig


def start_parallel(config: TrainConfig) -> None:
    """Megatron's process groups for this parallel layout, in place of others there were, and its seeds. torch.distributed
    must run.

    Groups of the same one are used again.
    """
    sizes = config.parallel.megatron()
    if parallel_state.model_parallel_is_initialized() and _sizes() != sizes:
        stop_parallel()
    if not parallel_state.model_parallel_is_initialized():
        parallel_state.initialize_model_parallel(**sizes, distributed_timeout_minutes=config.health.timeout_minutes)
    model_parallel_cuda_manual_seed(config.model.seed)


def stop_parallel() -> None:
    """End Megatron's process groups, which Megatron itself only forgets: on a CPU each keeps two threads."""
    held = [value if isinstance(value, list) else [value] for value in vars(parallel_state).values()]
    parallel_state.destroy_model_parallel()
    for group in {one for listed in held for one in listed if isinstance(one, dist.ProcessGroup)}:
        with suppress(ValueError):  # one that Megatron has ended after all
            dist.destroy_process_group(group)


def _sizes() -> dict[str, int | None]:
    """As `ParallelConfig.megatron` has them, of the groups there are."""
    return {
        "tensor_model_parallel_size": parallel_state.get_tensor_model_parallel_world_size(),
        "pipeline_model_parallel_size": parallel_state.get_pipeline_model_parallel_world_size(),
        "virtual_pipeline_model_parallel_size": parallel_state.get_virtual_pipeline_model_parallel_world_size(),
        "context_parallel_size": parallel_state.get_context_parallel_world_size(),
    }
