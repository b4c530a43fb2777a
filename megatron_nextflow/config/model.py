"""The shape of the transformer and how it is spread over processes: the `model` and `parallel` parts of a training recipe.

A checkpoint is bound to the first (another shape is another model) and free of the second (any parallel layout loads it),
which is why they are two sections. What a dimension of the parallel layout is called, how it counts and what it asks of
model and processes stands here alone; elsewhere a dimension is named only where its own arithmetic is done. Needs no torch.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from nextflow_data.common.section import Section
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


def _dimension(label: str, processes: bool = True) -> Any:
    """A dimension of the parallel layout; `processes`: whether it multiplies the processes of a copy of the model."""
    return Field(default=1, ge=1, title=label, json_schema_extra={"dimension": processes})


class ParallelConfig(Section):
    """How the model is spread; the data-parallel size is what the process count leaves.

    A process count is tp × cp × pp × data-parallel copies. Every parallel layout gives the same losses (tested in float32).
    """

    tp: int = _dimension("Tensor parallel")
    """Tensor-parallel size: each layer's heads and feed-forward columns, and the head's rows, over this many processes."""
    pp: int = _dimension("Pipeline parallel")
    """Pipeline stages."""
    vpp: int = _dimension("Chunks a stage", processes=False)
    """Model chunks that each pipeline stage holds: 1 is the plain 1F1B schedule, more the interleaved one, whose idle share
    is that much smaller and which sends that much more between pipeline stages."""
    cp: int = _dimension("Context parallel")
    """Context-parallel size: each sequence's slots over this many processes, which gather one another's keys and values."""
    overlap_grad_reduce: bool = False
    """Reduce gradients among data-parallel copies while the last micro-batch's backward pass goes on: for GPUs, whose
    networks work beside their kernels; on a CPU there is nothing to gain."""
    sequence_parallel: bool = False
    """Split norms and the residual stream over the tensor-parallel group too; needs tp above 1."""

    @classmethod
    def dimensions(cls) -> dict[str, str]:
        """Names of the dimensions, each with what it is called on a page."""
        return {name: str(field.title) for name, field in cls.model_fields.items() if _counts(name) is not None}

    def sizes(self) -> dict[str, int]:
        """Size of each dimension by name; what checkpoints record."""
        return {name: getattr(self, name) for name in self.dimensions()}

    def words(self, processes: int) -> str:
        """The layout of so many processes, as in "tp 2 × pp 2 × dp 4"; see `layout_words`."""
        return layout_words(self.sizes(), processes)

    def megatron(self) -> dict[str, int | None]:
        """Sizes by the names that megatron-core's parallel state and its TransformerConfig both take."""
        return {
            "tensor_model_parallel_size": self.tp,
            "pipeline_model_parallel_size": self.pp,
            "virtual_pipeline_model_parallel_size": self.vpp if self.interleaved else None,
            "context_parallel_size": self.cp,
        }

    @property
    def model_parallel(self) -> int:
        """Processes that one copy of the model takes, those of its context-parallel group included."""
        return model_processes(self.sizes())

    @property
    def interleaved(self) -> bool:
        """Whether a pipeline stage holds several chunks of the model."""
        return self.vpp > 1

    @property
    def chunks(self) -> int:
        """Chunks of consecutive layers that the model is cut into."""
        return self.pp * self.vpp

    @property
    def sequence_parts(self) -> int:
        """Processes over which norms and the residual stream are split."""
        return self.tp if self.sequence_parallel else 1

    def row_multiple(self, align: int) -> int:
        """What the slots of a row must be a multiple of, for each process's part to be one of `align`.

        Under context parallelism a part is two equal stretches.
        """
        part = align * self.cp * self.sequence_parts
        return math.lcm(part, 2 * self.cp) if self.cp > 1 else part

    def copies(self, processes: int) -> int:
        """The data-parallel size on so many processes. Raises ValueError where they hold no whole number of copies."""
        shape = self.model_parallel
        if processes % shape:
            raise ValueError(f"{processes} processes cannot hold copies of parallel.{self.words(shape)} = {shape} processes")
        return processes // shape

    def check_model(self, model: ModelConfig) -> None:
        """Raises ValueError where `model` cannot be divided so."""
        for name in ("heads", "query_groups", "ffn_size"):
            if getattr(model, name) % self.tp:
                raise ValueError(f"model.{name} {getattr(model, name)} is not divisible by parallel.tp {self.tp}")
        if model.layers % self.chunks:
            by = layout_words({"pp": self.pp, "vpp": self.vpp}, self.pp)
            raise ValueError(f"model.layers {model.layers} is not divisible by parallel.{by}")

    def check_rows(self, rows: Mapping[str, int]) -> None:
        """Raises ValueError where the rows of a table over the vocabulary, by the table's name, cannot be split."""
        for name, count in rows.items():
            if count % self.tp:
                raise ValueError(
                    f"the {name}'s {count} rows are not divisible by parallel.tp {self.tp}: take a power of two"
                )

    def check_micro_batches(self, count: int) -> None:
        """Raises ValueError where the schedule cannot run with `count` micro-batches a data-parallel copy."""
        if self.interleaved and count % self.pp:
            raise ValueError(
                f"the interleaved schedule needs micro-batches in multiples of parallel.pp {self.pp}, and each "
                f"data-parallel copy has {count}; change data.global_batch_size or set parallel.vpp to 1"
            )

    @model_validator(mode="after")
    def _possible(self) -> ParallelConfig:
        if self.interleaved and self.pp == 1:
            raise ValueError(f"vpp {self.vpp} interleaves pipeline stages, and pp is 1: set pp to 2 or more, or vpp to 1")
        if self.sequence_parallel and self.tp == 1:
            raise ValueError("sequence_parallel splits over the tensor-parallel group, and tp is 1: set it to false")
        return self


def layout_words(sizes: Mapping[str, int], processes: int) -> str:
    """Sizes above 1, the data-parallel one last: "tp 2 × pp 2 × dp 4"; "1 process" where all are 1.

    `sizes` may be a checkpoint's record, also of a version that had other dimensions.
    """
    named = {**sizes, "dp": processes // model_processes(sizes)}
    return " × ".join(f"{name} {size}" for name, size in named.items() if size > 1) or "1 process"


def model_processes(sizes: Mapping[str, int]) -> int:
    """Processes that one copy of the model takes, by the sizes of its dimensions."""
    return math.prod(size for name, size in sizes.items() if _counts(name) is not False)


def _counts(name: str) -> bool | None:
    """Whether a dimension multiplies processes; None for what is no dimension."""
    field = ParallelConfig.model_fields.get(name)
    extra = field.json_schema_extra if field is not None else None
    return bool(extra["dimension"]) if isinstance(extra, dict) and "dimension" in extra else None
