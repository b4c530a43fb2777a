"""Where a training begins: at its own last checkpoint, or the last copy of one where its folder has none, at another
training stage's weights, or at the initial ones.

A checkpoint goes on only with what it was trained on: another tokenizer, shard set, order or model is refused with what
differs, because the place in the data or the codes would mean something else. Another training's weights (`init_from`) need
the same tokenizers, and a model in which they mean the same. Only the number of scales may differ, because a stage of higher
resolution has more of them: rows of the scale embedding that the weights lack begin as copies of their last one, the scale
nearest to them (our choice; NextFlow does not say). The cost: those scales have to be told apart anew.

Where it begins is found before the model is built (`find_origin`), so that no initial values are drawn for weights that a
checkpoint overwrites, and what does not fit is refused sooner.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from nextflow_data.common.whole_files import replace_file
from nextflow_data.storage.files import any_path, put
from nextflow_data.storage.store_path import AnyPath
from torch import Tensor

from megatron_nextflow.checkpoint.copies import Copy, copies, restore
from megatron_nextflow.checkpoint.format import CheckpointManifest, CheckpointState, RunRecord
from megatron_nextflow.checkpoint.load import in_force, load, load_weights
from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.feeding import inputs
from megatron_nextflow.runtime import training_folder
from megatron_nextflow.runtime.training_folder import CheckpointError
from megatron_nextflow.step.trainer import Trainer

_SHAPE = ("hidden_size", "layers", "heads", "query_groups", "ffn_size")
_MEANING = ("rope_theta", "sections", "layernorm_epsilon")
_TOLD = ("rope_extent", "max_length", "train_codebook")
"""Settings of the model by what becomes of a difference: no weights fit, they would mean something else, it is said."""


@dataclass(frozen=True)
class Origin:
    """Where a training begins, checked but not read: `fresh` is its state at step 0, `checkpoint` where its weights are and
    what they are, None where initial ones are drawn; `resumed` where that is one of its own."""

    fresh: CheckpointState
    checkpoint: tuple[Path, CheckpointManifest] | None = None
    resumed: bool = False
    said: str = ""
    """What is to be told of the shards of a training that begins; "" where there is nothing."""


@dataclass(frozen=True)
class Beginning:
    """`state` is what the training goes on from, that of a checkpoint of its own where `resumed`; `said` tells what it
    has of another training, or what was changed since the checkpoint, and is "" where there is nothing to tell."""

    state: CheckpointState
    resumed: bool = False
    said: str = ""


def find_origin(config: TrainConfig, source: inputs.Inputs) -> Origin:
    """The training's latest checkpoint, else the newest whole copy of one, else `init_from`, else nothing.

    Every process must call this. Raises CheckpointError where a checkpoint does not belong to this training, or copies could
    not be written; OSError where the store that has the copies does not answer.
    """
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
        trainable=config.trainable,
    )
    found = in_force(lambda: _own(config, fresh, source))
    if found is not None:
        if not config.resume:
            raise CheckpointError(f"{found[0]} exists and resume is false; choose another output folder or remove it")
        _require_same_training(*found, fresh, source.manifest)
        return Origin(fresh, found, resumed=True)
    said = inputs.packed_for_another(config, source.packs.manifest)
    if config.init_from is None:
        return Origin(fresh, said=said)
    path = config.init_from
    given = in_force(lambda: path if (path / training_folder.MANIFEST).is_file() else training_folder.latest(path))
    if given is None:
        raise CheckpointError(f"init_from: {path} holds no checkpoint")
    _require_tokenizers(given[0], given[1].state, fresh)
    _require_same_model(given[0], given[1].state.model, fresh.model)
    return Origin(fresh, given, said=said)


def begin(origin: Origin, trainer: Trainer) -> Beginning:
    """Fills the trainer from the checkpoint found, whole; without one it stays at its initial weights.

    Every process must call this. Raises CheckpointError where the checkpoint is damaged.
    """
    fresh = origin.fresh
    if origin.checkpoint is None:
        return Beginning(fresh, said=origin.said)
    path, manifest = origin.checkpoint
    if not origin.resumed:
        inherited = _inherit(path, manifest, fresh, trainer)
        return Beginning(fresh, said="\n".join(line for line in (inherited, origin.said) if line))
    load(trainer, path, manifest)
    kept = {name: getattr(manifest.state, name) for name in ("step", "consumed", "skipped", "losses")}
    return Beginning(fresh.model_copy(update=kept), resumed=True, said=_changed(manifest.state.run, trainer))


def _own(config: TrainConfig, fresh: CheckpointState, source: inputs.Inputs) -> Path | None:
    """The training's checkpoint in force; one that nothing points to is pointed to, because others look there."""
    output = config.output
    path = training_folder.latest(output)
    pointer = training_folder.folder(output) / training_folder.LATEST
    if path is not None and not pointer.is_file():
        replace_file(pointer, path.name + "\n")
    if config.checkpoint.copy_to is None:
        return path
    place = any_path(config.checkpoint.copy_to, config.storage)
    found = copies(place)
    if found:
        _require_own_copies(found[-1], fresh, source.manifest)
    if found and not config.resume:
        raise CheckpointError(f"{place} holds copies of checkpoints and resume is false; choose another checkpoint.copy_to")
    try:  # that nothing can be copied there is better known before the first step
        put(place / training_folder.CONFIG, config.model_dump_json(indent=1) + "\n")
    except PermissionError as error:
        raise CheckpointError(f"checkpoint.copy_to: {error}") from None
    return path or restore(place, output, lambda said: source.notices.add("storage", said))


def _require_own_copies(newest: Copy, fresh: CheckpointState, set_manifest: str) -> None:
    """Copies of another training would be taken for this one's on a fresh machine."""
    try:
        manifest, _ = newest.manifest()
    except (CheckpointError, FileNotFoundError):
        return  # passed over where it would be fetched
    try:
        _require_same_training(newest.path, manifest, fresh, set_manifest)
    except CheckpointError as error:
        raise CheckpointError(f"checkpoint.copy_to holds copies of another training, name another: {error}") from None


def _changed(before: RunRecord | None, trainer: Trainer) -> str:
    """What of schedule and precision is not as it was: it may be changed, and may be seen in the loss."""
    if before is None:
        return ""
    config = trainer.config
    now = {"steps": config.steps, "precision": trainer.precision, **config.optimizer.model_dump(mode="json")}
    old = {"steps": before.steps, "precision": before.precision, **before.optimizer}
    changed = [f"{name} {old.get(name)} → {value}" for name, value in now.items() if old.get(name) != value]
    return f"changed since the checkpoint: {', '.join(changed)}" if changed else ""


def _require_same_training(path: AnyPath, manifest: CheckpointManifest, fresh: CheckpointState, set_manifest: str) -> None:
    old = manifest.state
    if old.shards == set_manifest:  # as checkpoints named a set before it had an identity
        old = old.model_copy(update={"shards": fresh.shards})
    _require_tokenizers(path, old, fresh)
    changed = {k: v for k, v in old.model.model_dump().items() if v != getattr(fresh.model, k)}
    for name, before, now, why in (
        ("shards", old.shards, fresh.shards, "its place in the data would mean nothing"),
        ("seed", old.seed, fresh.seed, "its place in the data would mean nothing"),
        ("model", changed, {k: getattr(fresh.model, k) for k in changed}, "it is another model"),
        ("trainable", old.trainable, fresh.trainable, "its optimizer has other parameters"),
    ):
        if before != now:
            raise CheckpointError(
                f"checkpoint {path} was trained with {name} {before}, this training has {now}: {why}; train into another "
                f"output folder, with init_from: {path} to begin from these weights"
            )


def _inherit(path: Path, manifest: CheckpointManifest, fresh: CheckpointState, trainer: Trainer) -> str:
    """Fill the model with another training's weights; says what came from where."""
    old, new = manifest.state.model, fresh.model
    _load_weights(trainer, path, manifest)
    trainer.optimizer.reload_model_params()
    changed = [f"{n} {getattr(old, n)} → {getattr(new, n)}" for n in _TOLD if getattr(old, n) != getattr(new, n)]
    return (
        f"inherited from {path} (step {manifest.state.step}): words, codebook, connector, {new.layers} layers, output "
        f"head, {_rows_in_words(old.max_scales, new.max_scales)}; optimizer, schedule and data begin anew"
        + (f"; changed: {', '.join(changed)}" if changed else "")
    )


def _require_same_model(path: Path, old: ModelConfig, new: ModelConfig) -> None:
    for names, why in (
        (_SHAPE, "weights of another shape cannot be inherited"),
        (_MEANING, "the same weights would mean something else"),
    ):
        for name in names:
            before, now = getattr(old, name), getattr(new, name)
            if before != now:
                raise CheckpointError(
                    f"init_from: {path} was trained with model.{name.replace('sections', 'rope_sections')} {before}, this "
                    f"recipe has {now}: {why}; set it to {before}, or begin without init_from"
                )


@torch.no_grad()
def _load_weights(trainer: Trainer, path: Path, manifest: CheckpointManifest) -> None:
    """The model's weights from the checkpoint; scale embeddings take the rows there are, more begin as the last of them."""
    rows = manifest.state.model.max_scales
    parameter = next((chunk.embedding.scale_embeddings for chunk in trainer.chunks if chunk.pre_process), None)
    if parameter is None or len(parameter) == rows:
        load_weights(trainer.chunks, path, manifest)
        return
    whole: Tensor = parameter.data
    parameter.data = whole.new_empty(rows, whole.shape[1])
    load_weights(trainer.chunks, path, manifest)
    kept = min(rows, len(whole))
    whole[:kept] = parameter[:kept]
    whole[kept:] = parameter[kept - 1]
    parameter.data = whole


def _rows_in_words(old: int, new: int) -> str:
    if new > old:
        return f"scale embeddings {old} of {new} rows ({new - old} new ones begin as row {old})"
    return f"scale embeddings, {new} rows" + (f" of its {old}" if new < old else "")


def _require_tokenizers(path: AnyPath, old: CheckpointState, new: CheckpointState) -> None:
    for name in ("text_tokenizer", "vision_tokenizer", "text_vocabulary", "codebook_size", "codebook_dim"):
        before, now = getattr(old, name), getattr(new, name)
        if before != now:
            raise CheckpointError(
                f"checkpoint {path} was trained with {name.replace('_', ' ')} {before}, the shards were made with {now}: "
                "its codes would mean something else; take the shards' own checkpoint or tokenize again"
            )
