"""Which folder a training has, and which checkpoint is its newest.

A training folder is named after what decides the weights: the identity of the shard set, and the settings that are not
operational (`nextflow_data.common.section`). How many steps, how often to save and how many processes are not in the name,
so the same command with more steps, or another parallel layout, goes on from the last checkpoint; nor does it matter whether
the shards were named or found. The checkpoints have manifests of their own (`megatron_nextflow.checkpoint`), so training is
not under the stage contract.

A name is only a name: what a training *is* stands in its train.json and its checkpoint. Where the folder of that name has no
checkpoint, one in which both agree is taken, so that a training whose name was made by an older rule is gone on with. The
cost: a new training looks into every train-* folder of its root once.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from nextflow_data.storage.config import StorageConfig
from nextflow_data.storage.files import download
from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.contract.stage import canonical_json, stage_file
from nextflow_pipelines.contract.stage import read_manifest as read_stage
from nextflow_tokenize.shards.manifest import MANIFEST, ShardManifest, from_bytes
from pydantic import ValidationError

from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launcher import with_absolute_paths
from megatron_nextflow.runtime.training_folder import CONFIG, CheckpointError, last_step, latest
from nextflow_orchestration.runs.lineage import NoRun


def training_folder(work: Path, config: TrainConfig, shards: AnyPath) -> Path:
    """`<work>/train-<12 digits>` of a training on the shard set in the folder `shards`, or the one that it has already.

    Raises FileNotFoundError, ManifestError for what is no shard set.
    """
    manifest = from_bytes((shards / MANIFEST).read_bytes(), str(shards / MANIFEST))
    identity = canonical_json({"settings": config.identity(), "shards": manifest.set_identity})
    named = work / f"train-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return named if last_step(named) else _same_training(work, config, manifest) or named


def _same_training(root: Path, config: TrainConfig, shards: ShardManifest) -> Path | None:
    """The folder under `root` whose checkpoint is of this set and whose train.json decides the same; of several, the one
    that is furthest."""
    wanted = with_absolute_paths(config, Path.cwd()).identity()
    found = []
    for folder in root.glob("train-*"):
        try:
            checkpoint = latest(folder)
            if checkpoint is None or read_manifest(checkpoint).state.shards not in (shards.set_identity, shards.sha256):
                continue
            stored = TrainConfig.model_validate_json((folder / CONFIG).read_bytes())
        except (OSError, CheckpointError, ValidationError):
            continue  # whoever trains there is told; here it only is no answer
        if stored.identity() == wanted:
            found.append((last_step(folder), folder.name, folder))
    return max(found)[2] if found else None


def last_checkpoint(output: Path) -> Path:
    """The folder of the checkpoint in force. Raises NoRun where there is none, CheckpointError where it is not there."""
    found = latest(output)
    if found is None:
        raise NoRun(f"{output} holds no checkpoint: run `mnf train` first, or name one with --checkpoint")
    return found


def on_disk(stage: AnyPath, inner: str, work: Path) -> Path:
    """A file or folder of a committed stage on this machine: itself, or a copy under `work`, by the names it has there.

    A copy of its own and not one of the bounded cache, because a training needs it for as long as it goes on.
    """
    if isinstance(stage, Path):
        return stage / inner
    for entry in read_stage(stage)["files"]:
        if entry["path"] == inner or entry["path"].startswith(f"{inner}/"):
            target = work / stage.name / entry["path"]
            if not target.is_file() or target.stat().st_size != entry["bytes"]:
                target.parent.mkdir(parents=True, exist_ok=True)
                download(stage_file(stage, entry), target)
    return work / stage.name / inner


def with_paths(
    train: TrainConfig,
    shards: AnyPath,
    vision_tokenizer: Path,
    text_tokenizer: Path | None,
    output: Path,
    copy: AnyPath | None = None,
    storage: StorageConfig | None = None,
) -> TrainConfig:
    """A run's `train` section with its paths filled in, validated again. `copy`: where its checkpoints are copied to, unless
    it says so itself; `storage`: how stores are reached."""
    tree: dict[str, Any] = train.model_dump()
    tree["output"] = output.absolute()
    place = shards.absolute() if isinstance(shards, Path) else shards
    if storage is not None:
        tree["storage"] = storage
    if copy is not None and train.checkpoint.copy_to is None:
        tree["checkpoint"] |= {"copy_to": str(copy)}
    tree["data"] |= {"shards": str(place), "vision_tokenizer": vision_tokenizer.absolute()}
    if text_tokenizer is not None:
        tree["data"]["text_tokenizer"] = text_tokenizer.absolute()
    return TrainConfig.model_validate(tree)
