"""What a checkpoint is on disk: a folder that is either whole or not there, and a manifest that says what it holds.

    checkpoints/latest                    the name of the checkpoint in force
    checkpoints/step-00000050/            megatron/ (tensors), generators/ (one file a process), manifest.json
    checkpoints/.step-00000100.writing/   a save under way, or what a kill has left of one

`manifest.json` has the size and sha256 of every other file and everything that is no tensor: the step, the feeding state,
the identity of what was trained on. It is written last, then the folder is renamed, then `latest` is replaced: a kill at any
moment leaves the checkpoint before in force. The cost is a rename within one file system: `checkpoints` cannot be a bucket.

Needs no torch.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from nextflow_data.common.section import Section
from pydantic import Field, ValidationError, model_validator

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.runtime.training_folder import MANIFEST, CheckpointError

VERSION = 2
"""1 had no more of the parallel layout than `tp` and `pp`, and nothing of the recipe; it is still read."""
TENSORS = "megatron"
"""Folder of Megatron's files within a checkpoint."""


class CheckpointFile(Section):
    """One file: bytes and hex sha256."""

    size: int
    sha256: str


class RunRecord(Section):
    """How the training that wrote a checkpoint was set up; for people: a training that goes on says what is changed, and
    refuses nothing."""

    recipe: str
    """sha256 of the resolved TrainConfig, as JSON with sorted keys."""
    steps: int
    """Steps that the training was to take, and with `optimizer` the whole schedule."""
    optimizer: dict[str, Any]
    precision: str
    libraries: dict[str, str]
    """Versions of torch and megatron-core."""


class CheckpointState(Section):
    """What a checkpoint says of itself besides tensors: what a resume goes on from, and what it compares first."""

    version: Literal[1, 2] = 2
    step: int
    consumed: int
    """Packs fed so far; with `seed` and `shards` the whole feeding state."""
    skipped: list[int] = Field(default_factory=list)
    """`consumed` before each global batch that was left out because of what it did to the loss."""
    losses: list[float] = Field(default_factory=list)
    """The latest losses, oldest first, by which `health` judges the next."""
    seed: int
    shards: str
    """The shard set's identity; in older checkpoints the sha256 of its manifest."""
    text_tokenizer: str
    vision_tokenizer: str
    text_vocabulary: int
    codebook_size: int
    codebook_dim: int
    model: ModelConfig
    trainable: str = "all"
    parallel: dict[str, int] = Field(default_factory=dict)
    """`ParallelConfig.sizes()` of the training that wrote it. The names of a recipe's settings may change, this and
    `run` stay."""
    processes: int = 1
    run: RunRecord | None = None
    """None in a checkpoint of version 1."""

    @model_validator(mode="before")
    @classmethod
    def _version_1(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "tp" not in values:
            return values
        rest = {name: value for name, value in values.items() if name not in ("tp", "pp")}
        return {**rest, "parallel": {"tp": values["tp"], "pp": values["pp"], "vpp": 1, "cp": 1}}


class CheckpointManifest(Section):
    """manifest.json."""

    state: CheckpointState
    files: dict[str, CheckpointFile]


def generator_file(rank: int) -> str:
    """Name within a checkpoint of a process's file of generator states."""
    return f"generators/rank-{rank:05d}.safetensors"


def read_manifest(path: Path) -> CheckpointManifest:
    """The manifest of the checkpoint folder `path`. Raises CheckpointError where it is not one."""
    try:
        return CheckpointManifest.model_validate_json((path / MANIFEST).read_bytes())
    except (OSError, ValidationError) as error:
        raise CheckpointError(f"{path / MANIFEST} cannot be read as a checkpoint manifest: {error}") from error
