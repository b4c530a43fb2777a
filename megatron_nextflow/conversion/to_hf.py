"""A checkpoint's language model, back to files that transformers loads.

The folder is a Qwen2.5-VL text model: one safetensors file a layer, one for the embedding, one for the rest, an index and
config.json. What only NextFlow has lies beside them in `nextflow.safetensors` (see `nextflow_part`). A head that equals the
embedding bit for bit is left out and called tied, so weights come back as they came in. Weights keep the checkpoint's type.
At most one layer, or the largest tensor twice, is held. The cost: the optimizer's state, and with it the float32 weights of
a bf16 training, stay behind. The device must be set up before this module is imported.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

import torch
from megatron.core import dist_checkpointing
from megatron.core.dist_checkpointing.mapping import ShardedTensor
from megatron.core.dist_checkpointing.serialization import get_default_load_sharded_strategy
from safetensors.torch import save_file
from torch import Tensor

from megatron_nextflow.checkpoint.format import TENSORS, CheckpointState
from megatron_nextflow.checkpoint.verify import verify_folder
from megatron_nextflow.conversion.hf_config import write_config
from megatron_nextflow.conversion.hf_folder import INDEX
from megatron_nextflow.conversion.nextflow_part import new_tensors, write_kept
from megatron_nextflow.conversion.output_folder import refuse_existing, writing
from megatron_nextflow.conversion.tensor_names import (
    HEAD,
    HF_HEAD,
    HF_NORM,
    HF_WORDS,
    LAYERS,
    NORM,
    WORDS,
    ConvertError,
    exported_name,
    layer_tensors,
    take_apart,
)
from megatron_nextflow.runtime.training_folder import MANIFEST, latest
from megatron_nextflow.sequence.vocabulary import Vocabulary


@dataclass(frozen=True)
class Exported:
    """What an export did: `tensors` of the language model with `parameters` in all, in `files`."""

    state: CheckpointState
    tensors: int
    parameters: int
    files: int
    tied: bool


def export_hf(checkpoint: Path, out: Path, progress: Callable[[int, int], None] | None = None) -> Exported:
    """Write the language model of `checkpoint`, a step's folder or a training's for its latest, into the new folder `out`.

    `progress` is told the files written and those there will be. Raises CheckpointError where the checkpoint is damaged,
    ConvertError where it is none, where `out` exists and where the disk has no room.
    """
    refuse_existing(out)
    step = checkpoint if (checkpoint / MANIFEST).is_file() else latest(checkpoint)
    if step is None:
        raise ConvertError(f"{checkpoint} is neither a checkpoint's folder nor that of a training with one")
    state = verify_folder(step).state
    reader = _Reader(step / TENSORS, state)
    with writing(out, reader.size) as working:
        files = state.model.layers + 2
        index: dict[str, str] = {}
        size = parameters = 0
        for number, tensors in enumerate(reader.files(), start=1):
            named = {exported_name(name): tensor for name, tensor in tensors.items()}
            file = f"model-{number:05d}-of-{files:05d}.safetensors"
            save_file(named, working / file, metadata={"format": "pt"})
            index |= dict.fromkeys(named, file)
            size += sum(tensor.nbytes for tensor in named.values())
            parameters += sum(tensor.numel() for tensor in named.values())
            tensors.clear()
            named.clear()
            if progress:
                progress(number, files)
        write_kept(working, reader.new, state)
        content = {"metadata": {"total_size": size, "total_parameters": parameters}, "weight_map": index}
        (working / INDEX).write_text(json.dumps(content, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        tied = HF_HEAD not in index
        write_config(working, state.model, state.text_vocabulary, tied, str(reader.dtypes[WORDS]).removeprefix("torch."))
    return Exported(state, len(index), parameters, files, tied)


class _Reader:
    """Reads a checkpoint's tensors from `folder`, layer by layer, whichever layout of processes wrote them."""

    def __init__(self, folder: Path, state: CheckpointState) -> None:
        self.folder = str(folder)
        self.state = state
        self.strategy = get_default_load_sharded_strategy(self.folder)
        described = dist_checkpointing.load_tensors_metadata(self.folder, self.strategy)
        self.shapes = {key: tuple(tensor.global_shape) for key, tensor in described.items()}
        self.dtypes: dict[str, torch.dtype] = {key: tensor.dtype for key, tensor in described.items()}
        vocabulary = Vocabulary(state.text_vocabulary, state.codebook_size)
        self.new_shapes = new_tensors(state.model, vocabulary, state.codebook_dim)
        self.new: dict[str, Tensor] = {}
        """What only NextFlow has; filled on the way."""

    @property
    def size(self) -> int:
        """Bytes of the model's tensors."""
        keys = [key for key in self.shapes if key.startswith(f"{LAYERS}.") or key in (NORM, *self.new_shapes)]
        return sum(prod(self.shapes[key]) * self.dtypes[key].itemsize for key in keys)

    def files(self) -> Iterator[dict[str, Tensor]]:
        """The tensors of one file after the other, by bare name."""
        rows = self.state.text_vocabulary
        words = self._whole(WORDS)
        digest = _digest(words[:rows])
        self.new[WORDS] = words[rows:].clone()
        yield {HF_WORDS: words[:rows]}
        del words
        for layer in range(self.state.model.layers):
            yield self._layer(layer)
        head = self._whole(HEAD)
        self.new[HEAD] = head[rows:].clone()
        rest = {HF_NORM: self._whole(NORM)}
        yield rest if _digest(head[:rows]) == digest else {**rest, HF_HEAD: head[:rows]}
        del head
        self.new |= {key: self._whole(key) for key in self.new_shapes if key not in self.new}

    def _layer(self, layer: int) -> dict[str, Tensor]:
        table = layer_tensors(self.state.model)
        found = self._read({name: self._part(f"{LAYERS}.{name}", (0, layer, self.state.model.layers)) for name in table})
        tensors: dict[str, Tensor] = {}
        for name, parts in table.items():
            apart = take_apart(name, found.pop(name)[0], [shape for _, shape in parts], self.state.model.query_groups)
            tensors |= {f"layers.{layer}.{part}": tensor for (part, _), tensor in zip(parts, apart, strict=True)}
        return tensors

    def _whole(self, key: str) -> Tensor:
        return self._read({key: self._part(key)})[key]

    def _part(self, key: str, *place: tuple[int, int, int]) -> ShardedTensor:
        """Room for a tensor, or for the part of it that is number `place[1]` of `place[2]` along the axis `place[0]`."""
        shape = list(self.shapes[key])
        for axis, _, parts in place:
            shape[axis] //= parts
        return ShardedTensor.from_rank_offsets(key, torch.empty(shape, dtype=self.dtypes[key]), *place)

    def _read(self, wanted: dict[str, ShardedTensor]) -> dict[str, Tensor]:
        # Only a part is asked for, and by one process: Megatron's check that all is read once does not apply.
        found = dist_checkpointing.load(wanted, self.folder, self.strategy, validate_access_integrity=False)
        return {name: found[name] for name in wanted}


def _digest(tensor: Tensor) -> bytes:
    return hashlib.sha256(tensor.view(torch.uint8).numpy().data).digest()
