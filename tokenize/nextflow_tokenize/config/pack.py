"""The recipe's `pack` section: the budget of a pack, the model that the budget is counted for, and the size of shards.

All of it enters the stage's fingerprint, because all of it decides bytes.
"""

from __future__ import annotations

from typing import Literal, Self

from nextflow_data.common.section import Section
from pydantic import Field, model_validator


class CostModel(Section):
    """Sizes of the model whose FLOPs a pack is measured in. Default: Qwen2.5-VL-7B, which NextFlow starts from.

    A recipe that trains a model as well takes them from it.
    """

    hidden_size: int = Field(default=3584, ge=1)
    """Width of the residual stream."""
    ffn_hidden_size: int = Field(default=18944, ge=1)
    """Width of the feed-forward's product."""
    layers: int = Field(default=28, ge=1)
    """Transformer layers."""
    heads: int = Field(default=28, ge=1)
    """Query heads."""

    query_groups: int = Field(default=4, ge=1)
    """Key and value heads."""

    head_size: int | None = Field(default=None, ge=1)
    """Channels of a head; None: hidden_size / heads."""

    gated: bool = True
    """Whether the feed-forward has a gate, hence three matrices (SwiGLU), or two."""

    vocabulary: int = Field(default=152064, ge=1)
    """Rows of the output head: ids of text and images, without the padding that a model may add."""

    passes: int = Field(default=3, ge=1, le=4)
    """Forward passes that a training step is worth: 3 (a backward pass is two), or 4 with full recomputation."""

    @property
    def channels(self) -> int:
        """Channels of a head."""
        return self.head_size if self.head_size is not None else self.hidden_size // self.heads

    @model_validator(mode="after")
    def _said_fits(self) -> Self:
        """What is not said may yet be taken from a model; then who does that checks the rest."""
        said = self.model_fields_set
        self.check(widths={"hidden_size", "heads"} <= said, groups={"heads", "query_groups"} <= said)
        return self

    def check(self, widths: bool = True, groups: bool = True) -> None:
        """Raises ValueError where hidden_size is no multiple of heads (`widths`), or heads of query_groups (`groups`)."""
        if widths and self.head_size is None and self.hidden_size % self.heads:
            raise ValueError(f"hidden_size {self.hidden_size} is not a multiple of heads {self.heads}; give head_size")
        if groups and self.heads % self.query_groups:
            raise ValueError(f"heads {self.heads} is not a multiple of query_groups {self.query_groups}")


class PackConfig(Section):
    """How documents become packs, and packs shards."""

    max_length: int = Field(default=8192, ge=2)
    """Slots of a pack at most: the bound on memory. The paper's length is unpublished; two 512-level images and text
    fit here."""

    max_cost: float | None = Field(default=None, gt=0)
    """FLOPs of a pack at most: the bound on time. None: `relative_cost` decides."""

    relative_cost: float = Field(default=1.0, gt=0)
    """With `max_cost` None: the bound as a multiple of the cost of one text document that fills `max_length`. The lower, the
    oftener compute binds instead of length, and the more equal packs are in cost and the less in length."""

    cost: CostModel = CostModel()

    split: Literal["fill", "drop"] = "fill"
    """A document longer than a pack: `fill` cuts it into pieces that each fill a pack as far as they can, between text
    tokens and never within an image; `drop` sets it aside."""

    image_context: int = Field(default=64, ge=0)
    """Where a cut falls just before an image: text tokens before it, at most, that go with the image instead of staying
    behind, so that an image is not left without the words that lead to it."""

    window: int = Field(default=8192, ge=1)
    """Pieces that are packed together, best-fit decreasing; packs with room left stay open for the next window."""

    open_packs: int = Field(default=1024, ge=1)
    """Packs kept open from one window to the next at most; the fullest are closed first."""

    group_documents: int = Field(default=20_000, ge=1)
    """Documents that one task plans: groups are cut by a hash of the documents' ids, one for each so many documents. 20,000
    take about 2 seconds and 30 MB to plan, and cost under 0.01 points of fill beside one plan of all (our choice)."""

    seed: int = Field(default=0, ge=0)
    """Decides which documents share a pack, their order in it, and the order of packs."""

    samples_per_shard: int = Field(default=1024, ge=1, le=999_999)
    """Packs of a shard at most."""
    shard_bytes: int = Field(default=256 << 20, ge=1 << 12)
    """A shard is closed at whichever of the two it reaches first. The bytes are those of the arrays before tar padding."""
