"""Checkpoints: Megatron's distributed format inside a folder that is either whole or not there.

A checkpoint is a folder `step-NNNNNNNN` with Megatron's files (weights and optimizer in the fully reshardable form, so any
layout of processes can load them), each process's generator state, and `manifest.json`: the size and sha256 of every file,
the step, the feeding state, the tokenizers and the shard set it was trained on, and the model's settings. It is written
under another name and renamed when complete, and `latest` is replaced last, so a kill at any moment leaves the previous one
in force. Loading verifies every hash first. The cost: each file is read once more on saving and on loading.

About pickle: Megatron keeps the layout of its files in a pickle (`.metadata`), which torch loads without restraint. Before
Megatron sees it, every class that it names is checked against a short list (`metadata_is_safe`), and entries that
hold arbitrary objects are refused. `common.pt` is loaded by torch with weights_only, its default since 2.6. Our own files
are JSON and safetensors.
"""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed as dist
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedObject
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from megatron.core.dist_checkpointing.strategies.torch import TorchDistSaveShardedStrategy
from nextflow_data.config import Section
from pydantic import ValidationError
from safetensors.torch import load_file, save_file

from megatron_nextflow.files import file_problem, file_sha256
from megatron_nextflow.model import NextFlowModel
from megatron_nextflow.model_config import ModelConfig
from megatron_nextflow.training import Trainer

VERSION = 1
MANIFEST = "manifest.json"
LATEST = "latest"
_METADATA = {"distrib_optim_sharding_type": "fully_reshardable"}
_DCP = "torch.distributed.checkpoint"
_METADATA_CLASSES = {
    *(f"{_DCP}.metadata {name}" for name in ("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta")),
    *(f"{_DCP}.metadata {name}" for name in ("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
    *(f"{_DCP}.planner {name}" for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")),
    f"{_DCP}.filesystem _StorageInfo",
    "torch.serialization _get_layout",
    *(f"torch {name}" for name in ("Size", "bfloat16", "float32", "int64", "uint8")),
}


class CheckpointError(ValueError):
    """A checkpoint that is damaged, or does not belong to this run."""


class FileEntry(Section):
    """One file: bytes and hex sha256."""

    size: int
    sha256: str


class CheckpointState(Section):
    """What a checkpoint says of itself besides tensors; all of it is compared or restored on resuming."""

    version: Literal[1] = 1
    step: int
    consumed: int
    """Packs fed so far; with `seed` and `shards` the whole feeding state."""
    seed: int
    shards: str
    """Fingerprint of the shard set."""
    text_tokenizer: str
    vision_tokenizer: str
    text_vocabulary: int
    codebook_size: int
    codebook_dim: int
    model: ModelConfig
    tp: int
    pp: int
    processes: int


class CheckpointManifest(Section):
    """manifest.json."""

    state: CheckpointState
    files: dict[str, FileEntry]


def folder(output: Path) -> Path:
    """Where a run's checkpoints lie."""
    return output / "checkpoints"


def latest(output: Path) -> Path | None:
    """The run's newest complete checkpoint, or None. Raises CheckpointError where `latest` names one that is not there."""
    pointer = folder(output) / LATEST
    if not pointer.is_file():
        return None
    path = folder(output) / pointer.read_text(encoding="utf-8").strip()
    if not (path / MANIFEST).is_file():
        raise CheckpointError(
            f"{pointer} names {path.name}, which has no {MANIFEST}: it was removed or damaged; "
            f"write the name of another step-* folder into {pointer}, or remove {folder(output)} to start anew"
        )
    return path


def read_manifest(path: Path) -> CheckpointManifest:
    """The manifest of the checkpoint folder `path`. Raises CheckpointError where it is not one."""
    try:
        return CheckpointManifest.model_validate_json((path / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read as a checkpoint manifest: {error}") from error


def save(trainer: Trainer, state: CheckpointState, output: Path, keep: int) -> Path:
    """Write the checkpoint of `state.step` and make it the latest; every process must call this. Returns its folder.

    Older ones than the newest `keep` are removed afterwards.
    """
    parent = folder(output)
    final, working = parent / _name(state.step), parent / f".{_name(state.step)}.writing"
    if dist.get_rank() == 0:
        shutil.rmtree(working, ignore_errors=True)
        (working / "megatron").mkdir(parents=True)
        (working / "generators").mkdir()
    dist.barrier()
    tensors = _model_tensors(trainer.model)
    optimizer = trainer.optimizer.sharded_state_dict(tensors, metadata=dict(_METADATA))
    strategy = TorchDistSaveShardedStrategy("torch_dist", 1, thread_count=1)
    dist_checkpointing.save({"model": tensors, "optimizer": optimizer}, str(working / "megatron"), strategy)
    save_file(_generators(), working / "generators" / _generator_name())
    dist.barrier()
    files = _hash_together(working)
    if dist.get_rank() == 0:
        manifest = CheckpointManifest(state=state, files=files)
        _write(working / MANIFEST, json.dumps(manifest.model_dump(mode="json"), indent=1, sort_keys=True))
        shutil.rmtree(final, ignore_errors=True)
        working.rename(final)
        _write(parent / LATEST, final.name + "\n")
        for old in sorted(parent.glob("step-*"))[:-keep]:
            shutil.rmtree(old)
    dist.barrier()
    return final


def load(trainer: Trainer, path: Path, manifest: CheckpointManifest) -> None:
    """Verify the checkpoint `path` and fill model, optimizer and generators from it; every process must call this.

    Raises CheckpointError, on all of them, naming the file that is missing or damaged. The generators are restored only
    where the processes are laid out as they were; training draws no random numbers after its start, so on another layout
    nothing is lost. The schedule is a function of the step: see `Trainer.set_step`.
    """
    verify(path, manifest)
    tensors = _model_tensors(trainer.model)
    optimizer = trainer.optimizer.sharded_state_dict(tensors, is_loading=True, metadata=dict(_METADATA))
    loaded = _read({"model": tensors, "optimizer": optimizer}, path)
    _fill(trainer.model, loaded["model"])
    trainer.optimizer.load_state_dict(loaded["optimizer"])
    state, parallel = manifest.state, trainer.config.parallel
    if (state.tp, state.pp, state.processes) == (parallel.tp, parallel.pp, dist.get_world_size()):
        _restore_generators(load_file(path / "generators" / _generator_name()))


def load_weights(model: NextFlowModel, path: Path, manifest: CheckpointManifest) -> None:
    """Verify the checkpoint `path` and fill the model alone from it; every process must call this. Raises as `load`."""
    verify(path, manifest)
    _fill(model, _read({"model": _model_tensors(model)}, path)["model"])


def _read(wanted: dict[str, Any], path: Path) -> dict[str, Any]:
    folder = str(path / "megatron")
    found: dict[str, Any] = dist_checkpointing.load(wanted, folder, get_default_load_sharded_strategy(folder))
    return found


def _model_tensors(model: NextFlowModel) -> dict[str, Any]:
    """The model's tensors for Megatron, without the modules' extra state.

    That state is empty without Transformer Engine; with it, it holds the history of FP8 scaling factors as a pickle, which
    is left out: the history is rebuilt within some steps, and a checkpoint then holds tensors only.
    """
    state = model.sharded_state_dict(metadata=dict(_METADATA))
    return {name: value for name, value in state.items() if not isinstance(value, ShardedObject)}


def _fill(model: NextFlowModel, tensors: dict[str, Any]) -> None:
    missing, unexpected = model.load_state_dict(tensors, strict=False)
    missing = [name for name in missing if not name.endswith("_extra_state")]
    if missing or unexpected:
        raise CheckpointError(f"the checkpoint does not fit the model: missing {missing}, unexpected {unexpected}")


def verify(path: Path, manifest: CheckpointManifest) -> None:
    """Compare every file with the manifest, each process its share; CheckpointError on all where one is not right."""
    found: dict[str, str] = {}
    for name in _share(sorted(manifest.files)):
        problem = file_problem(path / name, manifest.files[name].size, manifest.files[name].sha256)
        if problem:
            found[name] = problem
    problems = _gather(found)
    if problems:
        name, problem = sorted(problems.items())[0]
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise CheckpointError(f"checkpoint {path}: {name} {problem}{more}; go back to an older checkpoint or start anew")
    metadata_is_safe(path)


class _MetadataUnpickler(pickle.Unpickler):
    """Reads Megatron's `.metadata` and nothing else: a class off the list is not even looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in _METADATA_CLASSES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def metadata_is_safe(path: Path) -> None:
    """Raise CheckpointError unless `.metadata` is made of nothing but the descriptions of tensors in files.

    torch will load the same bytes with an unrestrained unpickler afterwards, so this must come first. Entries of arbitrary
    objects (`BytesStorageMetadata`), whose contents torch would unpickle too, are off the list.
    """
    file = path / "megatron" / ".metadata"
    try:
        with open(file, "rb") as stream:
            _MetadataUnpickler(stream).load()
    except Exception as error:
        raise CheckpointError(f"checkpoint {path}: megatron/.metadata is not a description of tensors: {error}") from error


def _name(step: int) -> str:
    return f"step-{step:08d}"


def _write(path: Path, text: str) -> None:
    """Atomically: beside it, synced, then renamed over it."""
    beside = path.with_name(f".{path.name}.writing")
    with open(beside, "w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    beside.replace(path)


def _share(names: Iterable[str]) -> list[str]:
    return list(names)[dist.get_rank() :: dist.get_world_size()]


def _gather(mine: dict[str, Any]) -> dict[str, Any]:
    parts: list[dict[str, Any]] = [{} for _ in range(dist.get_world_size())]
    dist.all_gather_object(parts, mine)
    return {name: value for part in parts for name, value in part.items()}


def _hash_together(working: Path) -> dict[str, FileEntry]:
    names = sorted(str(p.relative_to(working)) for p in working.rglob("*") if p.is_file())
    mine = {n: {"size": (working / n).stat().st_size, "sha256": file_sha256(working / n)} for n in _share(names)}
    return {name: FileEntry(**entry) for name, entry in _gather(mine).items()}


def _generator_name() -> str:
    return f"rank-{dist.get_rank():05d}.safetensors"


def _generators() -> dict[str, torch.Tensor]:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    states = {f"tracker.{name}": state for name, state in get_cuda_rng_tracker().get_states().items()}
    return {"cpu": torch.get_rng_state(), **{name: torch.as_tensor(s).cpu().contiguous() for name, s in states.items()}}


def _restore_generators(states: dict[str, torch.Tensor]) -> None:
    from megatron.core.tensor_parallel import get_cuda_rng_tracker

    get_cuda_rng_tracker().set_states({n.removeprefix("tracker."): s for n, s in states.items() if n != "cpu"})
    torch.set_rng_state(states["cpu"])
