"""Loading a checkpoint: one that all processes agree on, verified by them together before anything is taken from it.

What a checkpoint is on disk is in `format`, how one is written in `save`. Loading reads every file
twice, once for its hash: the cost of never training on from a damaged one. `common.pt` is loaded by torch with weights_only,
its default since 2.6; Megatron's own `.metadata` only after `verify` has seen that it is harmless. Our own files
are JSON and safetensors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import torch.distributed as dist
from nextflow_data.common.whole_files import file_problem
from nextflow_data.storage.errors import StoreError
from safetensors.torch import load as from_safetensors

from megatron_nextflow.checkpoint.format import CheckpointManifest, generator_file, read_manifest
from megatron_nextflow.checkpoint.tensors import (
    all_tensors,
    fill,
    model_tensors,
    parallel_layout,
    read_tensors,
    restore_generators,
)
from megatron_nextflow.checkpoint.verify import read_metadata, tensor_problem, way_back
from megatron_nextflow.model.nextflow import NextFlowModel
from megatron_nextflow.runtime.agreement import of_all, on_first
from megatron_nextflow.runtime.training_folder import CheckpointError
from megatron_nextflow.step.trainer import Trainer


def in_force(find: Callable[[], Path | None]) -> tuple[Path, CheckpointManifest] | None:
    """The checkpoint that `find` finds on the first process, and its manifest; every process must call this.

    One looks for all: on a shared disk another machine may for a while see the `latest` of before. Raises what `find` and
    `read_manifest` raise as CheckpointError, on all of them, but a store's failure as what it is.
    """

    def look() -> tuple[Path, CheckpointManifest] | None:
        path = find()
        return None if path is None else (path, read_manifest(path))

    return on_first(look, lambda error: error if isinstance(error, StoreError) else CheckpointError(str(error)))


def load(trainer: Trainer, path: Path, manifest: CheckpointManifest) -> None:
    """Verify the checkpoint `path` and fill model, optimizer and generators from it; every process must call this.

    Raises CheckpointError, on all of them, naming the file that is missing or damaged. The generators are restored only
    where the processes are laid out as they were; training draws no random numbers after its start, so on another layout
    nothing is lost. The schedule is a function of the step: see `Trainer.set_step`.
    """
    require_whole(path, manifest)
    loaded = read_tensors(all_tensors(trainer, loading=True), path)
    fill(trainer.chunks, loaded)
    trainer.optimizer.load_state_dict(loaded["optimizer"])
    if (manifest.state.parallel, manifest.state.processes) == parallel_layout(trainer.config.parallel):
        restore_generators(from_safetensors((path / generator_file(dist.get_rank())).read_bytes()))


def load_weights(chunks: Sequence[NextFlowModel], path: Path, manifest: CheckpointManifest) -> None:
    """Verify the checkpoint `path` and fill the model alone from it; every process must call this. Raises as `load`."""
    require_whole(path, manifest)
    fill(chunks, read_tensors(model_tensors(chunks), path))


def require_whole(path: Path, manifest: CheckpointManifest) -> None:
    """Compare every file with the manifest, each process its share; CheckpointError on all where one is not right.

    The message names the newest older checkpoint that verifies; going back is left to whoever reads it.
    """
    mine: dict[str, str] = {}
    for name in sorted(manifest.files)[dist.get_rank() :: dist.get_world_size()]:
        if problem := file_problem(path / name, manifest.files[name].size, manifest.files[name].sha256):
            mine[name] = problem
    found = {name: problem for part in of_all(mine) for name, problem in part.items()}

    def whole() -> None:
        problem = tensor_problem(read_metadata(path), manifest.files) if not found else None
        if found:
            name, first = sorted(found.items())[0]
            problem = f"{name} {first}" + (f" (and {len(found) - 1} more)" if len(found) > 1 else "")
        if problem:
            raise CheckpointError(f"checkpoint {path}: {problem}")

    on_first(whole, lambda error: CheckpointError(f"{error}; {way_back(path)}"))
