"""The trainer's part of the recipe.

Everything that changes what is learnt, or how it is spread over processes, is a field here; nothing is read from environment
variables. A setting that cannot work stops the run before any process starts: `TrainConfig` refuses what it can see alone,
`TrainConfig.check` what depends on the number of processes and on this machine. The cost: two places to look for a rule.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Literal

from nextflow_data.config import Section
from pydantic import Field, model_validator


class ModelConfig(Section):
    """The transformer: Qwen2.5's block (RMSNorm, SwiGLU, grouped queries, bias on q, k, v), NextFlow's inputs, positions."""

    hidden_size: int = Field(default=128, ge=8)
    layers: int = Field(default=4, ge=1)
    heads: int = Field(default=4, ge=1)
    query_groups: int = Field(default=2, ge=1)
    """Key-value heads; Qwen2.5-7B has 4 for 28 heads."""
    ffn_size: int = Field(default=352, ge=8)
    """Width of the SwiGLU product (Qwen2.5-7B: 18944 for a hidden size of 3584)."""
    rope_theta: float = Field(default=1e6, gt=0)
    rope_sections: tuple[int, int, int] | None = None
    """Rotary frequencies given to (scale or text position, row, column); they sum to half a head's width. Which section
    carries which axis is unpublished; None gives 1/4, 3/8, 3/8, the proportions of Qwen2.5-VL's [16, 24, 24]."""
    rope_extent: float = Field(default=64.0, gt=0)
    """C of NextFlow Eq. 1: rows and columns of every grid span [0, C). Unpublished; 64, our choice, is the side of the
    largest square grid, so that neighbours in it are one position apart."""
    max_length: int = Field(default=8192, ge=8)
    """Slots of a sequence; shorter packs are padded to it."""
    max_scales: int = Field(default=18, ge=1)
    """Rows of the learnable scale embedding."""
    train_codebook: bool = True
    """Whether the codebook vectors, from which vision inputs are made, are learnt on. NextFlow initialises the vision
    embeddings from the codebook and trains all but the tokenizer; False keeps them as the tokenizer has them."""
    init_std: float = Field(default=0.02, gt=0)
    layernorm_epsilon: float = Field(default=1e-6, gt=0)
    seed: int = Field(default=1234, ge=0)
    """Seed of the initial weights; each parameter draws from its own stream, named after it."""

    @property
    def head_dim(self) -> int:
        """Channels of one attention head."""
        return self.hidden_size // self.heads

    @property
    def sections(self) -> tuple[int, int, int]:
        """`rope_sections`, or the default for this head width."""
        if self.rope_sections is not None:
            return self.rope_sections
        half = self.head_dim // 2
        spatial = half * 3 // 8
        return (half - 2 * spatial, spatial, spatial)

    @model_validator(mode="after")
    def _shapes(self) -> ModelConfig:
        if self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not divisible by heads {self.heads}")
        if self.head_dim % 2:
            raise ValueError(f"hidden_size / heads = {self.head_dim} must be even for rotary positions")
        if self.heads % self.query_groups:
            raise ValueError(f"heads {self.heads} is not divisible by query_groups {self.query_groups}")
        if sum(self.sections) != self.head_dim // 2:
            raise ValueError(f"rope_sections {self.sections} must sum to hidden_size / heads / 2 = {self.head_dim // 2}")
        return self


class ParallelConfig(Section):
    """How the model is spread; the data-parallel size is what the process count leaves."""

    tp: int = Field(default=1, ge=1)
    """Tensor-parallel size: each layer's heads and feed-forward columns, and the head's rows, over this many processes."""
    pp: int = Field(default=1, ge=1)
    """Pipeline stages."""
    sequence_parallel: Literal[False] = False
    """Not offered yet: norms and embeddings would have to be sharded over the sequence."""


class OptimizerConfig(Section):
    """AdamW, the paper's learning rates, and what the paper leaves open (betas, decay, clip, warm-up: VAR-RL's and ours)."""

    lr: float = Field(default=1e-3, gt=0)
    min_lr: float = Field(default=1e-5, ge=0)
    betas: tuple[float, float] = (0.9, 0.95)
    eps: float = Field(default=1e-8, gt=0)
    weight_decay: float = Field(default=0.05, ge=0)
    """On matrices only; Megatron exempts biases and norms."""
    clip: float = Field(default=1.0, ge=0)
    """Largest global gradient norm; 0 does not clip."""
    warmup_steps: int = Field(default=10, ge=0)
    decay: Literal["constant", "linear", "cosine"] = "cosine"
    decay_steps: int | None = Field(default=None, ge=1)
    """Steps until `min_lr`; None means all of `steps`."""


class FeedConfig(Section):
    """What is read, and in which order."""

    shards: str | None = None
    """Folder or address (s3://…) of the shard set. A whole run fills it in with the set that it packed."""
    vision_tokenizer: Path | None = None
    """Folder of the vision tokenizer that made the shards: its codebook is where vision inputs begin. A whole run fills it
    in with its own."""
    text_tokenizer: Path | None = None
    """tokenizer.json of the shards' text; training does not read it, `mnf generate` finds it here."""
    global_batch_size: int = Field(default=8, ge=1)
    """Packs a step, over all processes."""
    micro_batch_size: int = Field(default=1, ge=1)
    """Packs of one forward pass."""
    seed: int = Field(default=0, ge=0)
    """Seed of the order; each epoch is another permutation."""
    verify: bool = True
    """Hash every shard against the manifest before the first step (each process takes its part of the shards)."""


class LossConfig(Section):
    """NextFlow §3.3: scale k of an image weighs 1/(h·w)^alpha a token, such that an image keeps its total weight."""

    alpha: float = Field(default=0.9, ge=0, le=2)
    """The paper's 0.9; 0 is uniform."""
    vision_weight: float = Field(default=1.0, ge=0)
    """Weight of an image token beside a text token; unpublished, 1 is our choice."""
    predict_boi: bool = True
    """Whether the text token before an image learns to predict ⟨boi⟩ (see `megatron_nextflow.layout.LayoutConfig`)."""


class TrainConfig(Section):
    """The whole training run. `mnf train` writes it, resolved, beside the checkpoints."""

    output: Path = Path("runs/train")
    """Folder of checkpoints, metrics.jsonl and TensorBoard files."""
    model: ModelConfig = ModelConfig()
    parallel: ParallelConfig = ParallelConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    data: FeedConfig = FeedConfig()
    loss: LossConfig = LossConfig()
    steps: int = Field(default=100, ge=1)
    log_interval: int = Field(default=1, ge=1)
    checkpoint_interval: int = Field(default=50, ge=1)
    """Steps between checkpoints; one is also written at the end and when the run is told to stop."""
    keep: int = Field(default=2, ge=1)
    """Checkpoints kept; the oldest go first."""
    resume: bool = True
    """Go on from the latest checkpoint under `output`; False refuses to start where there is one."""
    init_from: Path | None = None
    """Another run's output folder or one of its checkpoints, to begin from its weights (with a new optimizer and from the
    first pack): how one training stage follows another."""
    precision: Literal["float32", "bf16"] = "float32"
    fp8: Literal["tensorwise", "delayed", "blockwise"] | None = None
    """FP8 recipe of Transformer Engine for the matrix products; the attention stays in bf16."""
    recompute: bool = False
    """Recompute each layer's activations in the backward pass instead of keeping them."""
    device: Literal["auto", "cpu", "cuda"] = "auto"
    threads: int = Field(default=1, ge=1)
    """CPU threads of each process."""
    master_port: int | None = Field(default=None, ge=1, le=65535)
    """Port on which the processes find each other; None takes a free one. Set it for more than one machine."""

    @model_validator(mode="after")
    def _divides(self) -> TrainConfig:
        tp, pp, model = self.parallel.tp, self.parallel.pp, self.model
        for name, value in (("heads", model.heads), ("query_groups", model.query_groups), ("ffn_size", model.ffn_size)):
            if value % tp:
                raise ValueError(f"model.{name} {value} is not divisible by parallel.tp {tp}")
        if model.layers % pp:
            raise ValueError(f"model.layers {model.layers} is not divisible by parallel.pp {pp}")
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
        return self

    def check(self, processes: int) -> int:
        """Refuse what cannot run with `processes` processes on this machine; returns the data-parallel size.

        Raises ValueError. Megatron-Core ignores FP8 without Transformer Engine and trains on in silence, so that is
        refused here.
        """
        if self.data.shards is None:
            raise ValueError("data.shards is not set: name the folder of a shard set")
        shape = self.parallel.tp * self.parallel.pp
        if processes % shape:
            raise ValueError(
                f"{processes} processes cannot hold parallel.tp {self.parallel.tp} × pp {self.parallel.pp} = {shape}"
            )
        data_parallel = processes // shape
        if self.data.global_batch_size % (data_parallel * self.data.micro_batch_size):
            raise ValueError(
                f"data.global_batch_size {self.data.global_batch_size} is not divisible by {data_parallel} data-parallel "
                f"copies × micro_batch_size {self.data.micro_batch_size}"
            )
        if self.fp8 is not None and importlib.util.find_spec("transformer_engine") is None:
            raise ValueError(
                f"fp8: {self.fp8} needs Transformer Engine, which is not installed (pip install 'megatron-nextflow[gpu]'); "
                "without it Megatron would train in bf16 and not say so"
            )
        return data_parallel


class GenerateConfig(Section):
    """How `mnf generate` samples. The paper publishes no sampling settings; VAR-RL's (guidance 5, top-k 2, top-p 0.9) follow
    VAR. The defaults are ours, wider, for small models that are far from converged."""

    guidance: float = Field(default=2.0, ge=0)
    """Strength of classifier-free guidance at the last scale; it grows linearly over the scales (VAR). 0 switches it off."""
    temperature: float = Field(default=1.0, gt=0)
    top_k: int = Field(default=0, ge=0)
    """Most probable codes or words that are drawn from; 0 means all."""
    top_p: float = Field(default=0.95, gt=0, le=1)
    """Smallest set of codes or words that holds this probability."""
    level: Literal[128, 256, 512, 1024] = 128
    """Resolution level of the image, which fixes the number of scales."""
    aspect: float = Field(default=1.0, gt=0)
    """Height over width of the image; the nearest of the schedule's 41 ratios is taken."""
    max_tokens: int = Field(default=64, ge=1)
    """Text tokens of a continuation."""
    seed: int = Field(default=0, ge=0)
