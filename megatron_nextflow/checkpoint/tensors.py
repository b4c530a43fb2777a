"""What of a process goes into a checkpoint, in Megatron's terms, and back: model, optimizer, generators.

Tensors are described in the fully reshardable form: by names and whole shapes that no parallel layout changes, so any layout
of processes loads them. For that Megatron gathers each copy's slices of the optimizer's state on the first data-parallel
copy before they are written, over gloo: the cost is host memory there (12 bytes a parameter of its part of the model) and
time in which training waits; every copy reads its whole part on loading.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.dict_utils import nested_values
from megatron.core.dist_checkpointing.mapping import ShardedObject, ShardedTensor
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.state_dict_utils import load_preprocess
from megatron.core.tensor_parallel import get_cuda_rng_tracker
from torch import Tensor

from megatron_nextflow.checkpoint.format import TENSORS
from megatron_nextflow.checkpoint.verify import Shapes, read_metadata, shapes
from megatron_nextflow.config.model import ParallelConfig
from megatron_nextflow.model.nextflow import NextFlowModel
from megatron_nextflow.runtime.agreement import of_all
from megatron_nextflow.runtime.training_folder import CheckpointError
from megatron_nextflow.step.trainer import Trainer

_FORM = {
    "distrib_optim_sharding_type": "fully_reshardable",
    "distrib_optim_fully_reshardable_mem_efficient": True,
    "chained_optim_avoid_prefix": True,
}


def model_tensors(chunks: Sequence[NextFlowModel]) -> dict[str, Any]:
    """The tensors of a process's model chunks for Megatron, without the modules' extra state.

    That state is empty without Transformer Engine; with it, it holds the history of FP8 scaling factors as a pickle, which
    is left out: the history is rebuilt within some steps, and a checkpoint then holds tensors only.
    """
    states = [chunk.sharded_state_dict(metadata=dict(_FORM)) for chunk in chunks]
    return {
        f"model{number}": {name: value for name, value in state.items() if not isinstance(value, ShardedObject)}
        for number, state in enumerate(states)
    }


def all_tensors(trainer: Trainer, loading: bool = False) -> dict[str, Any]:
    """The same and the optimizer's, whose settings (`common.pt`) come beside them; every process must call this."""
    tensors = model_tensors(trainer.chunks)
    optimizer = trainer.optimizer.sharded_state_dict(tensors, is_loading=loading, metadata=dict(_FORM))
    return {**tensors, "optimizer": optimizer}


def read_tensors(wanted: dict[str, Any], path: Path) -> dict[str, Any]:
    """What `wanted` describes, from the verified checkpoint folder `path`; every process must call this.

    Raises CheckpointError, on all of them, naming a tensor that is not there or has another shape.
    """
    found_shapes, problem = shapes(read_metadata(path)), ""
    for name, shape in shapes_of(load_preprocess(wanted)[0]).items():
        if name not in found_shapes:
            only = ": it holds weights alone, for init_from" if name.startswith("optimizer.") else ""
            problem = f"{name} is not in it{only}"
        elif found_shapes[name] != shape:
            problem = f"{name} has shape {found_shapes[name]}, this model's is {shape}"
    if worst := max(of_all(problem)):
        raise CheckpointError(f"checkpoint {path} does not fit: {worst}")
    folder = str(path / TENSORS)
    found: dict[str, Any] = dist_checkpointing.load(wanted, folder, get_default_load_sharded_strategy(folder))
    return found


def shapes_of(state: dict[str, Any]) -> Shapes:
    """Names and whole shapes of the tensors of which a state dictionary of Megatron's has a part."""
    return {t.key: tuple(t.global_shape) for t in nested_values(state) if isinstance(t, ShardedTensor)}


def fill(chunks: Sequence[NextFlowModel], tensors: dict[str, Any]) -> None:
    """Put what `read_tensors` gave into the model. Raises CheckpointError where names are missing or too many."""
    for number, chunk in enumerate(chunks):
        missing, unexpected = chunk.load_state_dict(tensors[f"model{number}"], strict=False)
        missing = [name for name in missing if not name.endswith("_extra_state")]
        if missing or unexpected:
            raise CheckpointError(f"the checkpoint does not fit the model: missing {missing}, unexpected {unexpected}")


def parallel_layout(parallel: ParallelConfig) -> tuple[dict[str, int], int]:
    """What decides which process holds what: the sizes of the parallel groups, and the number of processes."""
    return parallel.sizes(), dist.get_world_size()


def generators() -> dict[str, Tensor]:
    """A copy of the state of this process's random generators."""
    states = {f"tracker.{name}": state for name, state in get_cuda_rng_tracker().get_states().items()}
    copies = {name: torch.as_tensor(state).cpu().clone().contiguous() for name, state in states.items()}
    return {"cpu": torch.get_rng_state(), **copies}


def restore_generators(states: dict[str, Tensor]) -> None:
    """Put the generators where `generators` found them."""
    get_cuda_rng_tracker().set_states({n.removeprefix("tracker."): s for n, s in states.items() if n != "cpu"})
    torch.set_rng_state(states["cpu"])
