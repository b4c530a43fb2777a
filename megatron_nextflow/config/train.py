"""The trainer's part of the recipe.

Everything that changes what is learnt, or how it is spread over processes, is a field here; nothing is read from environment
variables. A setting that cannot work stops the training before any process starts: `TrainConfig` refuses what it can see
alone, `TrainConfig.check` what depends on the number of processes and on this machine. The cost: two places to look for a
rule.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from nextflow_data.common.section import Section, operational
from nextflow_data.storage.config import StorageConfig
from pydantic import Field, model_validator

from megatron_nextflow.config import installed
from megatron_nextflow.config.health import HealthConfig
from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.config.model import ModelConfig, ParallelConfig
from megatron_nextflow.config.slurm import SlurmConfig


class OptimizerConfig(Section):
    """AdamW, the paper's learning rates, and what the paper leaves open (betas, decay, clip, warm-up: VAR-RL's and ours)."""

    lr: float = Field(default=1e-3, gt=0)
    """Highest learning rate."""
    min_lr: float = Field(default=1e-5, ge=0)
    """Learning rate at the schedule's end."""
    betas: tuple[float, float] = (0.9, 0.95)
    """Decay of the running means of gradients and of their squares."""
    eps: float = Field(default=1e-8, gt=0)
    """Added to the root of the mean square."""
    weight_decay: float = Field(default=0.05, ge=0)
    """On matrices only; Megatron exempts biases and norms."""
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps in which the rate rises from 0 to `lr`."""
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    """How the rate falls from `lr` to `min_lr` after that; constant: not at all."""
    decay_steps: int | None = Field(default=None, ge=1)
    """Steps until `min_lr`; None means all of `steps`."""


class FeedConfig(Section):
    """What is read, and in which order.

    A training is bound to what the set and the tokenizers *are* (`ShardManifest.set_identity`), not to where they lie.
    """

    shards: str | None = operational(None)
    """Folder or address (s3://…) of the shard set. A whole run fills it in with the set that it packed."""
    vision_tokenizer: Path | None = operational(None)
    """Folder of the vision tokenizer that made the shards: its codebook is where vision inputs begin. A whole run fills it
    in with its own."""
    text_tokenizer: Path | None = operational(None)
    """tokenizer.json of the shards' text; training does not read it, `mnf generate` finds it here."""
    codebook_size: int | None = operational(None, ge=1)
    """Codes of the vision tokenizer: what a dry run reckons with before there are shards. Shards must agree with it."""
    codebook_dim: int | None = operational(None, ge=1)
    """Width of a code's vector, both branches together; as `codebook_size`."""
    global_batch_size: int = Field(default=8, ge=1)
    """Packs a step, over all processes."""
    micro_batch_size: int = operational(1, ge=1)
    """Packs of one forward pass; they are laid end to end in one row, none padded to the longest."""
    align: int = operational(16, ge=1)
    """A row is padded to a multiple of this many slots on each process (FP8 matrix products need 16)."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order; each epoch is another permutation."""
    verify: bool = operational(False)
    """Hash every file of the set against its manifest before the first step, each process its part. Each pack is checked as
    it is read in any case, and `mnf audit` does this once for all trainings."""
    read_ahead: int = operational(4, ge=0)
    """Global batches whose packs are asked of a store before they are laid out, beside the two that wait laid out; a process
    holds its own part of them in memory."""
    cache_bytes: int = operational(20 << 30, ge=0)
    """Most that packs read from a store may take of the disk of `storage.cache`, for the processes of a machine together."""

    def repeats(self, packs: int) -> str:
        """What is to be said of a set of so few packs that each step takes some of them more than once; else ""."""
        if packs >= self.global_batch_size:
            return ""
        return (
            f"there are fewer packs ({packs}) than a step takes (data.global_batch_size {self.global_batch_size}): "
            "each step takes some of them more than once"
        )


class CheckpointConfig(Section):
    """What becomes of checkpoints once they are in force."""

    copy_to: str | None = operational(None)
    """Folder or address (s3://…) that each is copied to beside the training, and from which a training whose own folder has
    none goes on. One for each training."""
    copy_keep: int = operational(2, ge=1)
    """Newest copies kept there."""
    copy_wait: float = operational(600.0, ge=0)
    """Seconds that a training which ends waits for its last copy; never more than twice `health.hang_seconds`."""


class WandbConfig(Section):
    """Where a training is shown on Weights & Biases. The key comes from the environment (WANDB_API_KEY), never from a
    recipe."""

    project: str = Field(default="megatron-nextflow", min_length=1)
    name: str | None = None
    """Of the run; None lets Weights & Biases choose."""
    mode: Literal["online", "offline"] = "online"
    """offline writes under the training's folder, to be sent later with `wandb sync`."""


class TrainConfig(Section):
    """The whole training. `mnf train` writes it, resolved, beside the checkpoints."""

    output: Path = operational(Path("runs/train"))
    """Folder of checkpoints, metrics.jsonl, logs by rank and TensorBoard files."""
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = operational(ParallelConfig())
    optimizer: OptimizerConfig = OptimizerConfig()
    data: FeedConfig = FeedConfig()
    loss: LossConfig = LossConfig()
    steps: int = operational(100, ge=1)
    """Optimizer steps in all; with more, a finished training goes on."""
    log_interval: int = operational(1, ge=1)
    """Steps between rows of metrics.jsonl."""
    checkpoint_interval: int = operational(50, ge=1)
    """Steps between checkpoints; one is also written at the end and when the training is told to stop."""
    keep: int = operational(2, ge=1)
    """Newest checkpoints kept; older ones go once a newer one is verified."""
    keep_every: int | None = operational(None, ge=1)
    """Checkpoints of steps that are multiples of this are never removed."""
    checkpoint: CheckpointConfig = operational(CheckpointConfig())
    storage: StorageConfig = operational(StorageConfig())
    """How stores are reached; a whole run fills it in with its own `storage` section."""
    async_save: bool = operational(True)
    """Write checkpoints beside the training; the step that follows waits only for the copy. The last one of a training is
    waited for."""
    resume: bool = operational(True)
    """Go on from the latest checkpoint under `output`; False refuses to start where there is one."""
    init_from: Path | None = None
    """Another training's output folder or one of its checkpoints, to begin from its weights (with a new optimizer and
    from the first pack): how one training stage follows another."""
    trainable: Literal["all", "connector_and_head"] = "all"
    """What is learnt: everything, or the alignment's connector and output head (NextFlow §4). With the connector go
    the scale embeddings, new as it is (our choice); the codebook stays as the tokenizer has it."""
    precision: Literal["float32", "bf16"] = "float32"
    """Of weights and activations in the passes; the optimizer's are float32."""
    fp8: Literal["tensorwise", "delayed", "blockwise", "auto"] | None = None
    """FP8 recipe of Transformer Engine for the matrix products; the attention stays in bf16. A named one is refused where
    Transformer Engine or the hardware lacks it; `auto` takes tensorwise where it can be had, else bf16, and says which."""
    first_last_bf16: int = Field(default=0, ge=0)
    """Layers at the beginning, and as many at the end, that stay in bf16 under FP8."""
    health: HealthConfig = operational(HealthConfig())
    tensorboard: bool = operational(True)
    """Write TensorBoard files too, where it is installed."""
    wandb: WandbConfig | None = operational(None)
    """Weights & Biases as well, where it is installed (pip install 'megatron-nextflow[wandb]')."""
    peak_tflops: float | None = operational(None, gt=0)
    """A device's dense bf16 peak, TFLOP/s, from which MFU is reckoned; None looks the GPU's name up, and a CPU has none."""
    memory_gib: float | None = operational(None, gt=0)
    """A device's memory, GiB, against which a dry run checks the estimate; None does not check."""
    slurm: SlurmConfig = operational(SlurmConfig())
    recompute: bool = operational(False)
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    device: Literal["auto", "cpu", "cuda"] = operational("auto")
    """auto: a GPU where there is one."""
    threads: int = operational(1, ge=1)
    """CPU threads of each process."""
    master_port: int | None = operational(None, ge=1, le=65535)
    """Port on which the processes find each other; None takes a free one, in a Slurm job one by the job's number."""

    @model_validator(mode="after")
    def _divides(self) -> TrainConfig:
        self.parallel.check_model(self.model)
        if self.data.global_batch_size % self.data.micro_batch_size:
            raise ValueError(
                f"data.global_batch_size {self.data.global_batch_size} is not divisible by "
                f"data.micro_batch_size {self.data.micro_batch_size}"
            )
        decay_steps = self.optimizer.decay_steps or self.steps
        if self.optimizer.warmup_steps >= decay_steps:
            raise ValueError(
                f"optimizer.warmup_steps {self.optimizer.warmup_steps} must be below the {decay_steps} steps of the schedule"
            )
        if self.optimizer.min_lr > self.optimizer.lr:
            raise ValueError(f"optimizer.min_lr {self.optimizer.min_lr} is above optimizer.lr {self.optimizer.lr}")
        if self.fp8 is not None and self.precision != "bf16":
            raise ValueError("fp8 needs precision: bf16 for all that is not a matrix product")
        if self.fp8 is not None and self.data.align % 16:
            raise ValueError(f"data.align {self.data.align}: fp8 needs rows in multiples of 16 slots")
        if self.first_last_bf16 and self.fp8 is None:
            raise ValueError("first_last_bf16 keeps layers out of fp8, which is not set: set it, or leave this out")
        if self.first_last_bf16 and self.fp8 == "delayed":
            raise ValueError("first_last_bf16 does not go with fp8: delayed, whose scaling factors span all layers")
        if self.first_last_bf16 * 2 > self.model.layers:
            raise ValueError(f"first_last_bf16 {self.first_last_bf16} twice is more than model.layers {self.model.layers}")
        return self

    def check(self, processes: int) -> int:
        """Refuse what cannot run with `processes` processes on this machine; returns the data-parallel size.

        Raises ValueError. Megatron-Core ignores FP8 without Transformer Engine and trains on in silence, so that is
        refused here.
        """
        if self.data.shards is None:
            raise ValueError("data.shards is not set: name the folder of a shard set")
        data_parallel = self.parallel.copies(processes)
        per_pass = data_parallel * self.data.micro_batch_size
        if self.data.global_batch_size % per_pass:
            raise ValueError(
                f"data.global_batch_size {self.data.global_batch_size} is not divisible by {data_parallel} data-parallel "
                f"copies × micro_batch_size {self.data.micro_batch_size}"
            )
        self.parallel.check_micro_batches(self.data.global_batch_size // per_pass)
        if self.fp8 not in (None, "auto") and not installed.transformer_engine():
            raise ValueError(
                f"fp8: {self.fp8} needs Transformer Engine, which is not installed (pip install 'megatron-nextflow[gpu]'); "
                "without it Megatron would train in bf16 and not say so; `fp8: auto` does that and says it"
            )
        if self.wandb is not None and not installed.wandb():
            raise ValueError("wandb is set and not installed: pip install 'megatron-nextflow[wandb]', or leave it out")
        return data_parallel
