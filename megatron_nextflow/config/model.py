"""The shape of the transformer and how it is spread over processes: the `model` and `parallel` parts of a training recipe.

A checkpoint is bound to the first (another shape is another model) and free of the second (any parallel layout loads it),
which is why they are two sections. Needs no torch.
"""

from __future__ import annotations

from nextflow_data.section import Section
from pydantic import Field, model_validator


class ModelConfig(Section):
    """The transformer: Qwen2.5's block (RMSNorm, SwiGLU, grouped queries, bias on q, k, v), NextFlow's inputs, positions."""

    hidden_size: int = Field(default=128, ge=8)
    """Width of the residual stream."""
    layers: int = Field(default=4, ge=1)
    """Transformer layers."""
    heads: int = Field(default=4, ge=1)
    """Query heads."""
    query_groups: int = Field(default=2, ge=1)
    """Key-value heads; Qwen2.5-7B has 4 for 28 heads."""
    ffn_size: int = Field(default=352, ge=8)
    """Width of the SwiGLU product (Qwen2.5-7B: 18944 for a hidden size of 3584)."""
    rope_theta: float = Field(default=1e6, gt=0)
    """Base of the rotary frequencies (Qwen2.5's)."""
    rope_sections: tuple[int, int, int] | None = None
    """Rotary frequencies given to (scale or text position, row, column); they sum to half a head's width. Which section
    carries which axis is unpublished; None gives 1/4, 3/8, 3/8, the proportions of Qwen2.5-VL's [16, 24, 24]."""
    rope_extent: float = Field(default=64.0, gt=0)
    """C of NextFlow Eq. 1: rows and columns of every grid span [0, C). Unpublished; 64, our choice, is the side of the
    largest square grid, so that neighbours in it are one position apart."""
    max_length: int = Field(default=8192, ge=8)
    """Most slots of a pack; shorter packs are not padded to it."""
    max_scales: int = Field(default=18, ge=1)
    """Rows of the learnable scale embedding."""
    text_vocabulary: int | None = Field(default=None, ge=1)
    """Text ids that have rows; None: as many as the shards' text tokenizer has. Converted weights may have more rows than
    their tokenizer has ids (Qwen2.5-VL-7B: 152064 for 151665) and keep them all."""
    train_codebook: bool = True
    """Whether the codebook vectors, from which vision inputs are made, are learnt on. NextFlow initialises the vision
    embeddings from the codebook and trains all but the tokenizer; False keeps them as the tokenizer has them."""
    init_std: float = Field(default=0.02, gt=0)
    """Standard deviation of initial weights; divided by √(2·layers) where they write to the residual stream (GPT-2)."""
    layernorm_epsilon: float = Field(default=1e-6, gt=0)
    """Added to the mean square in RMSNorm."""
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
    """How the model is spread; the data-parallel size is what the process count leaves.

    A process count is tp × cp × pp × data-parallel copies. Every parallel layout gives the same losses (tested in float32).
    """

    tp: int = Field(default=1, ge=1)
    """Tensor-parallel size: each layer's heads and feed-forward columns, and the head's rows, over this many processes."""
    pp: int = Field(default=1, ge=1)
    """Pipeline stages."""
    vpp: int = Field(default=1, ge=1)
    """Model chunks that each pipeline stage holds: 1 is the plain 1F1B schedule, more the interleaved one, whose idle share
    is that much smaller and which sends that much more between pipeline stages."""
    cp: int = Field(default=1, ge=1)
    """Context-parallel size: each sequence's slots over this many processes, which gather one another's keys and values."""
    overlap_grad_reduce: bool = False
    """Reduce gradients among data-parallel copies while the last micro-batch's backward pass goes on: for GPUs, whose
    networks work beside their kernels; on a CPU there is nothing to gain."""
    sequence_parallel: bool = False
    """Split norms and the residual stream over the tensor-parallel group too; needs tp above 1."""

    @property
    def model_parallel(self) -> int:
        """Processes that one copy of the model takes, those of its context-parallel group included."""
        return self.tp * self.pp * self.cp

    @model_validator(mode="after")
    def _possible(self) -> ParallelConfig:
        if self.vpp > 1 and self.pp == 1:
            raise ValueError(f"vpp {self.vpp} interleaves pipeline stages, and pp is 1: set pp to 2 or more, or vpp to 1")
        if self.sequence_parallel and self.tp == 1:
            raise ValueError("sequence_parallel splits over the tensor-parallel group, and tp is 1: set it to false")
        return self
