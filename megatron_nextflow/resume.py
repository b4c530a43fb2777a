"""Where a run begins: at its own last checkpoint, at another stage's weights, or at the initial ones.

A checkpoint goes on only with what it was trained on: another tokenizer, shard set, order or model is refused with what
differs, because the place in the data or the codes would mean something else. Another run's weights (`init_from`) need the
same tokenizers only.
"""

from __future__ import annotations

from pathlib import Path

import torch.distributed as dist

from megatron_nextflow import checkpoint, inputs
from megatron_nextflow.checkpoint import CheckpointError, CheckpointState
from megatron_nextflow.config import TrainConfig
from megatron_nextflow.training import Trainer


def begin(config: TrainConfig, trainer: Trainer, source: inputs.Inputs) -> CheckpointState:
    """The state to go on from: the latest checkpoint's, with its tensors loaded, or that of a fresh start."""
    fresh = CheckpointState(
        step=0,
        consumed=0,
        seed=config.data.seed,
        shards=source.fingerprint,
        text_tokenizer=source.text_tokenizer,
        vision_tokenizer=source.vision_tokenizer,
        text_vocabulary=source.vocabulary.text,
        codebook_size=source.vocabulary.codes,
        codebook_dim=int(source.codebook.shape[1]),
        model=config.model,
        tp=config.parallel.tp,
        pp=config.parallel.pp,
        processes=dist.get_world_size(),
    )
    path = checkpoint.latest(config.output)
    if path is not None:
        if not config.resume:
            raise CheckpointError(f"{path} exists and resume is false; choose another output folder or remove it")
        return _go_on(path, fresh, trainer)
    if config.init_from is not None:
        _load_weights(config.init_from, fresh, trainer)
    return fresh


def _go_on(path: Path, fresh: CheckpointState, trainer: Trainer) -> CheckpointState:
    manifest = checkpoint.read_manifest(path)
    _require_tokenizers(path, manifest.state, fresh)
    for name in ("shards", "seed", "model"):
        old, new = getattr(manifest.state, name), getattr(fresh, name)
        if name == "model":
            changed = {k: v for k, v in old.model_dump().items() if v != getattr(new, k)}
            if not changed:
                continue
            old, new = changed, {k: getattr(new, k) for k in changed}
        if old != new:
            raise CheckpointError(
                f"checkpoint {path} was trained with {name} {old}, this run has {new}: its place in the data would mean "
                f"nothing; train into another output folder, with init_from: {path} to begin from these weights"
            )
    checkpoint.load(trainer, path, manifest)
    return fresh.model_copy(update={"step": manifest.state.step, "consumed": manifest.state.consumed})


def _load_weights(path: Path, fresh: CheckpointState, trainer: Trainer) -> None:
    found = path if (path / checkpoint.MANIFEST).is_file() else checkpoint.latest(path)
    if found is None:
        raise CheckpointError(f"init_from: {path} holds no checkpoint")
    manifest = checkpoint.read_manifest(found)
    _require_tokenizers(found, manifest.state, fresh)
    checkpoint.load_weights(trainer.model, found, manifest)
    trainer.optimizer.reload_model_params()


def _require_tokenizers(path: Path, old: CheckpointState, new: CheckpointState) -> None:
    for name in ("text_tokenizer", "vision_tokenizer", "text_vocabulary", "codebook_size", "codebook_dim"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            raise CheckpointError(
                f"checkpoint {path} was trained with {name.replace('_', ' ')} {before}, the shards were made with {now}: "
                "its codes would mean something else; take the shards' own checkpoint or tokenize again"
            )
