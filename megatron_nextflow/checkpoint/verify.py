"""Is a checkpoint whole, and safe to load? By its hashes, and by what Megatron's description of its tensors says.

Megatron keeps that description in a pickle (`.metadata`), which torch loads without restraint. Before Megatron sees it, it
is read here with every class it may name on a short list, and entries that hold arbitrary objects are refused. The list is
bound to torch's own names; the cost is that a version of torch that adds one is refused until the list has it.

Works without torch.distributed: for looking at checkpoints from outside as much as for the trainer.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nextflow_data.common.whole_files import file_problem

from megatron_nextflow.checkpoint.format import TENSORS, CheckpointFile, CheckpointManifest, read_manifest
from megatron_nextflow.runtime.training_folder import LATEST, CheckpointError, folder_name, steps

METADATA = f"{TENSORS}/.metadata"
_DCP = "torch.distributed.checkpoint"
_CLASSES = {
    *(f"{_DCP}.metadata {name}" for name in ("ChunkStorageMetadata", "Metadata", "MetadataIndex", "StorageMeta")),
    *(f"{_DCP}.metadata {name}" for name in ("TensorProperties", "TensorStorageMetadata", "_MEM_FORMAT_ENCODING")),
    *(f"{_DCP}.planner {name}" for name in ("SavePlan", "TensorWriteData", "WriteItem", "WriteItemType")),
    f"{_DCP}.filesystem _StorageInfo",
    "torch.serialization _get_layout",
    *(f"torch {name}" for name in ("Size", "bfloat16", "float32", "int64", "uint8")),
}

Shapes = dict[str, tuple[int, ...]]
"""Names of tensors, as every parallel layout has them, and their whole shapes."""


class _Unpickler(pickle.Unpickler):
    """Reads Megatron's `.metadata` and nothing else: a class off the list is not even looked up."""

    def find_class(self, module: str, name: str) -> Any:
        if f"{module} {name}" not in _CLASSES:
            raise pickle.UnpicklingError(f"it names {module}.{name}")
        return super().find_class(module, name)


def read_metadata(path: Path) -> Any:
    """The description (torch's `Metadata`) of the tensors of the checkpoint folder `path`.

    Raises CheckpointError unless it is made of nothing but descriptions of tensors in files. torch will load the same bytes
    with an unrestrained unpickler afterwards, so this must come first. Entries of arbitrary objects
    (`BytesStorageMetadata`), whose contents torch would unpickle too, are off the list.
    """
    try:
        with open(path / METADATA, "rb") as stream:
            return _Unpickler(stream).load()
    except Exception as error:
        raise CheckpointError(f"checkpoint {path}: {METADATA} is not a description of tensors: {error}") from error


def shapes(metadata: Any) -> Shapes:
    """What a checkpoint's tensors are, from `read_metadata`."""
    return {name: tuple(tensor.size) for name, tensor in metadata.state_dict_metadata.items()}


def tensor_problem(metadata: Any, files: Mapping[str, CheckpointFile], expected: Shapes | None = None) -> str | None:
    """What is wrong with a description of tensors, in words; None: nothing.

    Every part of every tensor must lie within one of `files`, the parts must make up the whole, and where `expected` is
    given, exactly those tensors must be there.
    """
    places = {(index.fqn, tuple(index.offset or ())): info for index, info in metadata.storage_data.items()}
    for name, tensor in metadata.state_dict_metadata.items():
        for chunk in tensor.chunks:
            info = places.get((name, tuple(chunk.offsets)))
            entry = files.get(f"{TENSORS}/{info.relative_path}") if info else None
            if info is None or entry is None or info.offset + info.length > entry.size:
                return f"{name} at {tuple(chunk.offsets)} lies in no file of it"
        if sum(math.prod(chunk.sizes) for chunk in tensor.chunks) != math.prod(tensor.size):
            return f"{name} is there in part only"
    found = shapes(metadata)
    for name in sorted(found.keys() | expected.keys()) if expected is not None else ():
        if found.get(name) != expected.get(name):  # type: ignore[union-attr]
            return f"{name} has shape {found.get(name)}, the model's is {expected.get(name)}"  # type: ignore[union-attr]
    return None


def verify_folder(path: Path) -> CheckpointManifest:
    """Read every file of the checkpoint folder `path` against its manifest, which is returned.

    Raises CheckpointError naming the first file that is missing or damaged, or the tensor that is not whole.
    """
    manifest = read_manifest(path)
    for name, entry in sorted(manifest.files.items()):
        if problem := file_problem(path / name, entry.size, entry.sha256):
            raise CheckpointError(f"checkpoint {path}: {name} {problem}")
    if problem := tensor_problem(read_metadata(path), manifest.files):
        raise CheckpointError(f"checkpoint {path}: {problem}")
    return manifest


def way_back(path: Path) -> str:
    """What to do about the damaged checkpoint `path`: names the newest older one beside it that verifies (reads it all)."""
    step = path.name.removeprefix("step-")
    for older in reversed(steps(path.parent.parent)):
        if step.isdigit() and older < int(step):
            try:
                verify_folder(path.parent / folder_name(older))
            except CheckpointError:
                continue
            return (
                f"the newest older one that verifies is {folder_name(older)}: write that name into "
                f"{path.parent / LATEST} to go back to it"
            )
    return f"no older one beside it verifies; move {path.parent} away to start anew"
