"""Qwen2.5-VL's language model, from Hugging Face's files to a checkpoint that training begins from.

NextFlow starts from Qwen2.5-VL without its vision encoder, with ⟨boi⟩, ⟨eoi⟩ and the codes added to the vocabulary (§2). The
text vocabulary is every row of the embedding, also those for which its tokenizer has no id: nothing is lost on the way back.
What Qwen2.5-VL has not: the codebook is the vision tokenizer's; connector, scale embeddings and the rows of ⟨boi⟩, ⟨eoi⟩ and
codes are drawn as in a model that begins from nothing (`initialise`), so an import is a function of its inputs. That the new
rows are small random ones, not copies or means of others, is our choice: the first stage trains connector and head anyway.

The checkpoint is what one process would save, but written tensor by tensor: torch's writer asks for each chunk when its
turn comes, and only then is it read. At most the largest tensor is held, twice (as it was and as it will be). The cost: one
file a tensor and layer. The device must be set up before this module is imported.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from math import prod
from pathlib import Path
from typing import Any, Literal

import torch
import torch.distributed.checkpoint as dcp
from megatron.core.dist_checkpointing.core import CheckpointingConfig, save_config
from nextflow_data.common.whole_files import file_sha256
from nextflow_tokenize.documents.text_tokenizer import TextTokenizer
from nextflow_tokenize.vision.identity import identity, load_codebook
from torch import Tensor
from torch.distributed.checkpoint import DefaultSavePlanner, FileSystemWriter, SavePlan
from torch.distributed.checkpoint.api import CheckpointException
from torch.distributed.checkpoint.metadata import ChunkStorageMetadata, MetadataIndex, TensorProperties
from torch.distributed.checkpoint.planner import TensorWriteData, WriteItem, WriteItemType

from megatron_nextflow.checkpoint.format import TENSORS, CheckpointFile, CheckpointManifest, CheckpointState
from megatron_nextflow.config.train import FeedConfig, TrainConfig
from megatron_nextflow.conversion.hf_config import LanguageModel, read_config
from megatron_nextflow.conversion.hf_folder import DTYPES, HfFolder
from megatron_nextflow.conversion.nextflow_part import CODEBOOK, Kept, new_tensors, read_kept
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
    Shape,
    language_model_tensors,
    layer_tensors,
    put_together,
)
from megatron_nextflow.model.initialise import draw
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import CONFIG
from megatron_nextflow.sequence.vocabulary import Vocabulary

Precision = Literal["bf16", "float32"]
PRECISIONS: dict[Precision, torch.dtype] = {"bf16": torch.bfloat16, "float32": torch.float32}
Progress = Callable[[int, int], None]
"""Told the bytes written and those there will be."""


@dataclass(frozen=True)
class Imported:
    """What an import did: `tensors` of the language model with `parameters` in all; `vision` tensors were left out;
    `text_ids` are the tokenizer's; `kept` says whether NextFlow's own tensors came with the weights."""

    state: CheckpointState
    tensors: int
    parameters: int
    vision: int
    vision_parameters: int
    text_ids: int
    tied: bool
    kept: bool
    precision: Precision


@dataclass(frozen=True)
class _Piece:
    """A chunk of `size` at `offset` of the tensor `key`, whose shape is `whole`; `read` makes it, shaped as it likes."""

    key: str
    whole: Shape
    offset: Shape
    size: Shape
    read: Callable[[], Tensor]


def import_hf(
    source: Path,
    vision_tokenizer: Path,
    text_tokenizer: Path,
    out: Path,
    *,
    max_length: int | None = None,
    precision: Precision | None = None,
    progress: Progress | None = None,
) -> Imported:
    """Write `out`, a training's folder with one checkpoint of step 0, from the folder `source` of Qwen2.5-VL weights.

    `vision_tokenizer` (folder) and `text_tokenizer` (tokenizer.json) are those that the shards to train on were made with.
    `max_length`: slots of a pack; `precision`: "bf16" or "float32", None as the weights are. Where `source` was exported
    from a checkpoint, its NextFlow part comes back too. Raises ConvertError, or what reading the tokenizers raises, before
    anything is written; `out` is whole or not there.
    """
    refuse_existing(out)
    text, vision = TextTokenizer.load(text_tokenizer), identity(vision_tokenizer)
    codebook = torch.from_numpy(load_codebook(vision_tokenizer))
    kept = read_kept(source, text.hash, vision)
    own = kept.state.model.model_dump() if kept else {}
    language = read_config(source, own if max_length is None else {**own, "max_length": max_length})
    if text.vocab_size > language.rows:
        raise ConvertError(
            f"{text_tokenizer} has {text.vocab_size} ids, {source}'s embedding {language.rows} rows: it is another model's"
        )
    folder = HfFolder(source)
    if HF_HEAD in folder.tensors:  # whatever config.json says of it, as in transformers
        language = replace(language, tied=False)
    wanted = language_model_tensors(language.model, language.rows, language.tied)
    folder.require(wanted)
    dtype = _dtype(folder, wanted, precision)
    vocabulary = Vocabulary(language.rows, len(codebook))
    pieces = [*_language_pieces(folder, language, vocabulary), *_new_pieces(language, vocabulary, codebook, kept)]
    state = CheckpointState(
        step=0, consumed=0, seed=0, shards="", text_tokenizer=text.hash, vision_tokenizer=vision,
        text_vocabulary=language.rows, codebook_size=vocabulary.codes, codebook_dim=codebook.shape[1], model=language.model,
    )  # fmt: skip
    data = FeedConfig(vision_tokenizer=vision_tokenizer.absolute(), text_tokenizer=text_tokenizer.absolute())
    name = next(name for name, known in PRECISIONS.items() if known == dtype)
    run = TrainConfig(output=out.absolute(), model=language.model, data=data, precision=name)
    with writing(out, sum(prod(piece.size) for piece in pieces) * dtype.itemsize) as working:
        step = training_folder.folder(working) / training_folder.folder_name(0)
        _write(pieces, step / TENSORS, dtype, progress)
        _commit(step, state)
        (working / CONFIG).write_text(run.model_dump_json(indent=1) + "\n", encoding="utf-8")
    return Imported(
        state=state,
        tensors=len(wanted),
        parameters=sum(prod(shape) for shape in wanted.values()),
        vision=len(folder.vision),
        vision_parameters=sum(prod(entry.shape) for entry in folder.vision),
        text_ids=text.vocab_size,
        tied=language.tied,
        kept=kept is not None,
        precision=name,
    )


def _dtype(folder: HfFolder, wanted: Iterable[str], precision: Precision | None) -> torch.dtype:
    if precision is not None:
        return PRECISIONS[precision]
    found = sorted({folder.tensors[name].dtype for name in wanted})
    if len(found) > 1 or DTYPES[found[0]] not in PRECISIONS.values():
        raise ConvertError(
            f"{folder.folder} holds {' and '.join(found)}, a checkpoint bf16 or float32 throughout: ask for one of them; "
            "float32 keeps every value"
        )
    return DTYPES[found[0]]


def _language_pieces(folder: HfFolder, language: LanguageModel, vocabulary: Vocabulary) -> Iterator[_Piece]:
    model, width = language.model, language.model.hidden_size
    text = (language.rows, width)
    head = HF_WORDS if language.tied else HF_HEAD
    yield _Piece(WORDS, (vocabulary.padded_words, width), (0, 0), text, partial(folder.read, HF_WORDS))
    for layer in range(model.layers):
        for name, parts in layer_tensors(model).items():
            shape = (sum(part[0] for _, part in parts), *parts[0][1][1:])
            names = [f"layers.{layer}.{part}" for part, _ in parts]
            read = partial(_read_layer, folder, name, names, model.query_groups)
            offset = (layer, *(0 for _ in shape))
            yield _Piece(f"{LAYERS}.{name}", (model.layers, *shape), offset, (1, *shape), read)
    yield _Piece(NORM, (width,), (0,), (width,), partial(folder.read, HF_NORM))
    yield _Piece(HEAD, (vocabulary.padded, width), (0, 0), text, partial(folder.read, head))


def _read_layer(folder: HfFolder, name: str, parts: Sequence[str], groups: int) -> Tensor:
    return put_together(name, [folder.read(part) for part in parts], groups)


def _new_pieces(language: LanguageModel, vocabulary: Vocabulary, codebook: Tensor, kept: Kept | None) -> Iterator[_Piece]:
    for key, (whole, first) in new_tensors(language.model, vocabulary, int(codebook.shape[1])).items():
        size = (whole[0] - first, *whole[1:])
        if kept is not None:
            read: Callable[[], Tensor] = kept.require(key, size).read
        elif key == CODEBOOK:
            read = codebook.clone
        else:
            # Rows that follow others have a stream of their own, or all those before would be drawn for nothing.
            read = partial(draw, f"{key}.new" if first else key, size, language.model)
        yield _Piece(key, whole, (first, *(0 for _ in whole[1:])), size, read)


class _Planner(DefaultSavePlanner):
    """Plans `pieces` as they are and reads each when torch's writer asks for it."""

    def __init__(self, pieces: Sequence[_Piece], dtype: torch.dtype, progress: Progress | None) -> None:
        super().__init__(flatten_state_dict=False)
        self.dtype = dtype
        self.progress = progress
        self.total = sum(prod(piece.size) for piece in pieces) * dtype.itemsize
        self.done = 0
        self.pieces = {MetadataIndex(piece.key, piece.offset): piece for piece in pieces}

    def create_local_plan(self) -> SavePlan:
        self.plan = SavePlan([self._item(index, piece) for index, piece in self.pieces.items()])
        return self.plan

    def _item(self, index: MetadataIndex, piece: _Piece) -> WriteItem:
        chunk = ChunkStorageMetadata(torch.Size(piece.offset), torch.Size(piece.size))
        data = TensorWriteData(chunk, TensorProperties(self.dtype), torch.Size(piece.whole))
        return WriteItem(index, WriteItemType.SHARD, tensor_data=data)

    def resolve_data(self, write_item: WriteItem) -> Any:
        piece = self.pieces[write_item.index]
        found = piece.read().to(self.dtype).reshape(piece.size)
        self.done += found.nbytes
        if self.progress:
            self.progress(self.done, self.total)
        return found


class _Writer(FileSystemWriter):
    """torch's, without the path and the random number that it would note: the same inputs give the same bytes."""

    def storage_meta(self) -> None:
        return None


def _write(pieces: Sequence[_Piece], folder: Path, dtype: torch.dtype, progress: Progress | None) -> None:
    """Megatron's checkpoint of `pieces` (its format "torch_dist"), one file each."""
    folder.mkdir(parents=True)
    try:
        dcp.save({}, storage_writer=_Writer(folder, single_file_per_rank=False), planner=_Planner(pieces, dtype, progress))
    except CheckpointException as error:
        raise next(iter(error.failures.values()))[0] from None
    torch.save({}, folder / "common.pt")
    save_config(CheckpointingConfig("torch_dist"), str(folder))


def _commit(step: Path, state: CheckpointState) -> None:
    found = sorted(path for path in step.rglob("*") if path.is_file())
    files = {str(p.relative_to(step)): CheckpointFile(size=p.stat().st_size, sha256=file_sha256(p)) for p in found}
    manifest = CheckpointManifest(state=state, files=files)
    (step / training_folder.MANIFEST).write_text(manifest.model_dump_json(indent=1) + "\n", encoding="utf-8")
    (step.parent / training_folder.LATEST).write_text(step.name + "\n", encoding="utf-8")
