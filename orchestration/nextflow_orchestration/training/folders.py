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

from nextflow_pipelines.contract.stage import canonical_json
from nextflow_tokenize.shards.manifest import MANIFEST, ShardManifest, from_bytes
from pydantic import ValidationError

from megatron_nextflow.checkpoint.format import read_manifest
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.launching.launcher import with_absolute_paths
from megatron_nextflow.runtime.training_folder import CONFIG, CheckpointError, last_step, latest
from nextflow_orchestration.runs.lineage import NoRun


def training_folder(root: Path, config: TrainConfig, shards: Path) -> Path:
    """`<root>/train-<12 digits>` of a training on the shard set in the folder `shards`, or the one that it has already.

    Raises FileNotFoundError, ManifestError for what is no shard set.
    """
    manifest = from_bytes((shards / MANIFEST).read_bytes(), str(shards / MANIFEST))
    identity = canonical_json({"settings": config.identity(), "shards": manifest.set_identity})
    named = root / f"train-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"
    return named if last_step(named) else _same_training(root, config, manifest) or named


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


def with_paths(
    train: TrainConfig, shards: Path, vision_tokenizer: Path, text_tokenizer: Path | None, output: Path
) -> TrainConfig:
    """A run's `train` section with its paths filled in, validated again."""
    tree: dict[str, Any] = train.model_dump()
    tree["output"] = output.absolute()
    tree["data"] |= {"shards": str(shards.absolute()), "vision_tokenizer": vision_tokenizer.absolute()}
    if text_tokenizer is not None:
        tree["data"]["text_tokenizer"] = text_tokenizer.absolute()
    return TrainConfig.model_validate(tree)
