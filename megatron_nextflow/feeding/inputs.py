"""What a training is trained on: the shard set, and the codebook of the vision tokenizer that made it.

The first process opens the set, looks at the tokenizer and tells the others, so that starting asks a store for the same few
things whatever the number of processes and shards. A code means something only to the tokenizer that chose it, so the
tokenizer's folder is hashed and compared with the hash in the shards' manifest before its vectors are used. Shards are not
hashed: each pack is checked as it is read, and whole sets are for `mnf audit`. The cost: damage is found when its pack
comes, which leaves a batch out (`data.verify: true` hashes every file first).
"""

from __future__ import annotations

import hashlib
import itertools
import os
import socket
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from nextflow_data.common.errors import RequestError
from nextflow_data.storage import cache
from nextflow_data.storage.files import any_path
from nextflow_data.storage.store_path import StorePath
from nextflow_tokenize.shards.manifest import ShardManifest, VisionTokenizerRecord
from nextflow_tokenize.shards.reader import ShardSet
from nextflow_tokenize.vision.identity import identity, load_codebook
from torch import Tensor

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.feeding.feed import Packs
from megatron_nextflow.feeding.range_cache import RangeCache
from megatron_nextflow.feeding.stored import Ranges, StoredPacks
from megatron_nextflow.runtime.agreement import of_all, on_first
from megatron_nextflow.runtime.notices import Notices
from megatron_nextflow.sequence.vocabulary import Vocabulary


class InputError(RequestError):
    """A shard set or tokenizer that cannot be trained on."""


@dataclass(frozen=True)
class Inputs:
    """The packs, the joint vocabulary, the codebook [V, D] float32, and the hashes that a checkpoint records.

    `fingerprint` is the set's identity; `manifest` is its manifest's hash, by which older checkpoints know it. A training
    reads from `fed`; `notices` takes what is to be told of it, and `threads` are what reading from there is worth: 0 of a
    disk.
    """

    packs: ShardSet
    vocabulary: Vocabulary
    codebook: Tensor
    fingerprint: str
    manifest: str
    text_tokenizer: str
    vision_tokenizer: str
    fed: Packs
    notices: Notices
    threads: int = 0


def open_inputs(config: TrainConfig) -> Inputs:
    """Open and check the shard set and the vision tokenizer that `config.data` names.

    torch.distributed must be running; every process must call this. Raises InputError, or what `ShardSet.open` raises for a
    manifest it cannot use (a ValueError too), on all processes and before anything is read; OSError where a store does not
    answer.
    """
    folder = config.data.shards
    if folder is None:
        raise InputError("data.shards is not set: name the folder of a shard set")
    place = any_path(folder, config.storage)
    packs = on_first(lambda: ShardSet.open(place), _refusal)
    manifest = packs.manifest
    vocabulary = vocabulary_of(config, folder, manifest)
    if config.data.verify:
        verify_files(packs)
    vision, tokenizer = manifest.vision_tokenizer, config.data.vision_tokenizer
    codebook = torch.zeros(1, 1)
    if vision:
        codebook = on_first(lambda: _codebook(tokenizer, folder, vision), _refusal)
    notices = Notices()
    fed: Packs = packs
    threads = 0
    if isinstance(place, StorePath):
        threads = config.storage.s3.concurrency
        kept = RangeCache(
            cache.folder(config.storage) / ".packs",  # what has a dot there is not a copy, and left alone
            config.data.cache_bytes,
            int(os.environ.get("LOCAL_WORLD_SIZE", "1")),
            lambda problem: notices.add("storage", f"{socket.gethostname()}: {problem}"),
        )
        ranges = Ranges(kept, manifest.sha256)
        packs.opener = ranges
        fed = StoredPacks(packs, ranges)
    return Inputs(
        packs=packs,
        vocabulary=vocabulary,
        codebook=codebook,
        fingerprint=manifest.set_identity,
        manifest=manifest.sha256,
        text_tokenizer=manifest.text_tokenizer.sha256,
        vision_tokenizer=vision.sha256 if vision else "",
        fed=fed,
        notices=notices,
        threads=threads,
    )


def _refusal(error: Exception) -> Exception:
    """What is not there or not allowed is a mistake in the request; a store that does not answer is none."""
    return InputError(str(error)) if isinstance(error, (FileNotFoundError, PermissionError)) else error


def vocabulary_of(config: TrainConfig, folder: str, manifest: ShardManifest) -> Vocabulary:
    """The joint vocabulary of the shard set in `folder`.

    Raises InputError where the set and the recipe do not fit, ValueError where the rows cannot be split.
    """
    if not manifest.totals.samples:
        raise InputError(f"{folder} holds no packs; there is nothing to train on")
    if manifest.budget.max_length > config.model.max_length:
        raise InputError(
            f"{folder} was packed for {manifest.budget.max_length} slots, model.max_length is {config.model.max_length}; "
            f"set model.max_length to at least {manifest.budget.max_length} or pack shorter"
        )
    ids = manifest.text_tokenizer.vocab_size
    rows = config.model.text_vocabulary or ids
    if rows < ids:
        raise InputError(f"model.text_vocabulary {rows} is below the {ids} ids of the text tokenizer that made the shards")
    vision = manifest.vision_tokenizer
    if vision is not None:
        width = vision.semantic_dim + vision.pixel_dim
        for name, found in (("codebook_size", vision.codebook_size), ("codebook_dim", width)):
            expected = getattr(config.data, name)
            if expected not in (None, found):
                raise InputError(
                    f"{folder} has a codebook of {vision.codebook_size} codes of width {width}, data.{name} is {expected}: "
                    "the model would have another range of codes; correct the recipe, or name the shards it is meant for"
                )
    vocabulary = Vocabulary(text=rows, codes=manifest.codebook_size)
    config.parallel.check_rows(vocabulary.tables)
    return vocabulary


def packed_for_another(config: TrainConfig, manifest: ShardManifest) -> str:
    """What to say where the packs' cost was counted for a model of another shape; "" where it was for this one.

    It is no mistake: the packs hold the same documents. Only their equal cost is another's.
    """
    cost, model = manifest.budget.cost_model, config.model
    pairs = {
        "hidden_size": (cost.hidden_size, model.hidden_size),
        "ffn_size": (cost.ffn_hidden_size, model.ffn_size),
        "layers": (cost.layers, model.layers),
        "heads": (cost.heads, model.heads),
        "query_groups": (cost.query_groups, model.query_groups),
    }
    other = [f"{name} {packed}, here {trained}" for name, (packed, trained) in pairs.items() if packed != trained]
    if not other:
        return ""
    return f"the shards were packed to equal cost for another model ({'; '.join(other)}): steps may differ more in time"


def verify_files(packs: ShardSet) -> None:
    """Compare the sha256 of every file of the set with its manifest's, each process its share of them.

    Raises InputError on all processes, naming the first file that differs.
    """
    mine: list[str] = []
    for name, _, digest in itertools.islice(packs.files(), dist.get_rank(), None, dist.get_world_size()):
        with packs.opener(packs.path / name) as stream:
            if hashlib.file_digest(stream, "sha256").hexdigest() != digest:  # type: ignore[arg-type]
                mine.append(name)
    damaged = sorted(name for part in of_all(mine) for name in part)
    if damaged:
        more = f" (and {len(damaged) - 1} more)" if len(damaged) > 1 else ""
        raise InputError(
            f"{packs.path}/{damaged[0]}{more} was changed after it was written: its sha256 is not the manifest's; "
            f"`mnf audit {packs.path}` says where, then restore it or pack again"
        )


def _codebook(tokenizer: Path | None, shards: str, expected: VisionTokenizerRecord) -> Tensor:
    if tokenizer is None:
        raise InputError(f"data.vision_tokenizer is not set, and {shards} holds images: name the tokenizer that made them")
    found = identity(tokenizer)
    if found != expected.sha256:
        raise InputError(
            f"{shards} was made with the vision tokenizer {expected.sha256}, {tokenizer} is {found}: its codes mean other "
            "things; name the tokenizer that made the shards"
        )
    codebook = torch.from_numpy(load_codebook(tokenizer))
    said = (expected.codebook_size, expected.semantic_dim + expected.pixel_dim)
    if tuple(codebook.shape) != said:
        raise InputError(
            f"{tokenizer} has a codebook of {codebook.shape[0]} × {codebook.shape[1]}, the manifest of {shards} says "
            f"{said[0]} × {said[1]}: codes would fall outside the vocabulary's range; pack the shards again"
        )
    return codebook
