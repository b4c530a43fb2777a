"""A process's part of a save: copied out of the training at one moment, written to files later by another thread.

Megatron plans who writes which tensor; then what this process writes is copied into host memory, and from there on the
training may change its own. Megatron's own asynchronous writer forks a process instead, which copies what changes
anyhow, may hang on a lock that another thread of its parent held, and must be kept from outliving it. A thread has none of
that: the cost is the memory of the copy, and that serialising takes turns with the training's Python.

Each file is hashed while it is written, synced, dropped from the page cache where the system will, and read again.
"""

from __future__ import annotations

import io
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from megatron.core.dist_checkpointing.state_dict_utils import save_preprocess
from megatron.core.dist_checkpointing.strategies.filesystem_async import FileSystemWriterAsync
from megatron.core.dist_checkpointing.strategies.state_dict_saver import save_state_dict_async_plan
from megatron.core.dist_checkpointing.strategies.torch import (
    MCoreSavePlanner,
    _replace_state_dict_keys_with_sharded_keys,
    mcore_to_pyt_state_dict,
)
from nextflow_data.common.whole_files import HashingFile, file_problem, write_hashed
from safetensors.torch import save as to_safetensors
from torch import Tensor
from torch.distributed.checkpoint.filesystem import _StorageInfo
from torch.distributed.checkpoint.metadata import Metadata
from torch.distributed.checkpoint.planner import SavePlan, SavePlanner
from torch.distributed.checkpoint.storage import WriteResult

from megatron_nextflow.checkpoint.format import TENSORS, CheckpointFile, generator_file
from megatron_nextflow.checkpoint.tensors import all_tensors, generators, shapes_of
from megatron_nextflow.step.trainer import Trainer


@dataclass(frozen=True)
class Written:
    """What a process has written: its files, and where in them each of its tensors is."""

    files: dict[str, CheckpointFile]
    places: list[WriteResult]


class _Copies(FileSystemWriterAsync):
    """Takes copies in host memory where Megatron's own would write, and touches no disk."""

    def prepare_local_plan(self, plan: SavePlan) -> SavePlan:
        return plan

    def prepare_write_data(self, plan: SavePlan, planner: SavePlanner) -> None:
        tensors = [(item, planner.resolve_data(item)) for item in plan.items]
        self.copies = [(item, _safe(item.index.fqn, tensor)) for item, tensor in tensors if isinstance(tensor, Tensor)]
        torch.cuda.synchronize()  # the copies from a GPU


def _safe(name: str, tensor: Tensor) -> Tensor:
    """`tensor` in host memory that training does not touch."""
    tensor = tensor.detach()
    if name.startswith("optimizer.state."):
        return tensor  # gathered just now into memory of its own
    return tensor.clone(memory_format=torch.contiguous_format) if tensor.is_cpu else tensor.to("cpu", non_blocking=True)


class Share:
    """What this process is to write of the training's state as it is now; every process must make one.

    `shapes`: the tensors that this process has a share in. Megatron's `writer` and `metadata` (on the first process only)
    are for the description of them all.
    """

    def __init__(self, trainer: Trainer, folder: Path) -> None:
        self.folder = folder
        sharded, common = save_preprocess(all_tensors(trainer))
        self.shapes = shapes_of(sharded)
        self.blobs = {generator_file(dist.get_rank()): to_safetensors(generators())}
        if dist.get_rank() == 0:
            stream = io.BytesIO()
            torch.save(common, stream)
            self.blobs[f"{TENSORS}/common.pt"] = stream.getvalue()
        named, _, _ = _replace_state_dict_keys_with_sharded_keys(sharded, True)
        self.writer = _Copies(str(folder / TENSORS))
        planner = MCoreSavePlanner(dedup_replicated_tensors=False, flatten_state_dict=False)
        planned, *_ = save_state_dict_async_plan(mcore_to_pyt_state_dict(named, False), self.writer, planner=planner)
        self.metadata: Metadata | None = planned[1]

    def write(self) -> Written:
        """Write the files below `folder` and read them again; OSError, naming the file, where one cannot be or differs."""
        files = {name: CheckpointFile(**write_hashed(self.folder / name, blob)) for name, blob in self.blobs.items()}
        places: list[WriteResult] = []
        if self.writer.copies:
            name = f"__{dist.get_rank()}_0.distcp"
            with HashingFile(self.folder / TENSORS / name) as file:
                for item, tensor in self.writer.copies:
                    start = file.size
                    # torch saves the whole memory that a tensor is a view of.
                    torch.save(tensor.clone() if tensor.untyped_storage().nbytes() > tensor.nbytes else tensor, file)
                    file.check()
                    place = _StorageInfo(name, start, file.size - start)
                    places.append(WriteResult(index=item.index, size_in_bytes=file.size - start, storage_data=place))
            files[f"{TENSORS}/{name}"] = CheckpointFile(**file.entry)
        for name, entry in files.items():
            if problem := file_problem(self.folder / name, entry.size, entry.sha256):
                raise OSError(f"{self.folder / name} {problem}, on reading it again")
        return Written(files, places)
