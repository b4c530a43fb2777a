"""Which folder a training has, and which checkpoint is its newest.

A training folder is named after what decides the weights: the shard set, the model, the optimizer, the loss. How many steps,
how often to save and how many processes are not in the name, so the same command with more steps, or another parallel
layout, goes on from the last checkpoint. The checkpoints have manifests of their own (`megatron_nextflow.checkpoint`), so
training is not under the stage contract.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import Any

from nextflow_pipelines.contract.stage import canonical_json

from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.runtime.training_folder import latest
from nextflow_orchestration.recipes.run import Recipe
from nextflow_orchestration.runs.lineage import NoRun

OPERATIONAL = (
    "output", "parallel", "steps", "log_interval", "checkpoint_interval", "keep", "keep_every", "async_save", "resume",
    "health", "tensorboard", "wandb", "peak_tflops", "memory_gib", "slurm", "recompute", "device", "threads", "master_port",
)  # fmt: skip
"""Settings that decide how a training is carried out, not what is learnt."""


def training_folder(root: Path, config: TrainConfig, shards_fingerprint: str) -> Path:
    """`<root>/train-<12 digits>`, from the settings that decide the weights and the fingerprint of the shard set."""
    settings = config.model_dump(mode="json", exclude=set(OPERATIONAL))
    settings["data"] = {k: v for k, v in settings["data"].items() if k in ("seed", "global_batch_size")}
    del settings["loss"]["chunk"]
    if not config.loss.terms:  # trainings older than this setting are found again
        del settings["loss"]["terms"]
    identity = canonical_json({"settings": settings, "shards": shards_fingerprint})
    return root / f"train-{hashlib.sha256(identity.encode()).hexdigest()[:12]}"


def last_checkpoint(output: Path) -> Path:
    """The folder of the checkpoint in force. Raises NoRun where there is none, CheckpointError where it is not there."""
    found = latest(output)
    if found is None:
        raise NoRun(f"{output} holds no checkpoint: run `mnf train` first, or name one with --checkpoint")
    return found


def with_paths(
    recipe: Recipe, shards: Path, vision_tokenizer: Path, text_tokenizer: Path | None, output: Path
) -> TrainConfig:
    """The recipe's `train` section with its paths filled in, validated again."""
    tree: dict[str, Any] = recipe.train.model_dump()
    tree["output"] = output.absolute()
    tree["data"] |= {"shards": str(shards.absolute()), "vision_tokenizer": vision_tokenizer.absolute()}
    if text_tokenizer is not None:
        tree["data"]["text_tokenizer"] = text_tokenizer.absolute()
    return TrainConfig.model_validate(tree)
