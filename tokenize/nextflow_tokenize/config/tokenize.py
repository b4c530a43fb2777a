"""The recipe's sections for tokenisation: the text tokenizer and encoding; the vision tokenizer's is in `vision`."""

from __future__ import annotations

from typing import Self

from nextflow_data.common.section import Section, operational
from pydantic import Field, model_validator

from nextflow_tokenize.config.vision import SelfCorrectionConfig
from nextflow_tokenize.schedule import LEVEL_SCALES


class TextTokenizerConfig(Section):
    """The text tokenizer: one to train on the run's text, or any tokenizer.json by path."""

    path: str | None = None
    """A tokenizer.json of the `tokenizers` library; None: train a byte-level BPE."""
    vocab_size: int = Field(default=4096, ge=257)
    """Entries of a trained vocabulary: 256 bytes, the end-of-text token, and merges."""
    min_frequency: int = Field(default=2, ge=1)
    """Pairs seen less often are not merged."""
    max_bytes: int = Field(default=1 << 30, ge=1)
    """Bytes of text that a vocabulary is trained on, about: of more, whole documents are drawn by a hash of `seed` and their
    id, each with the same chance. 1 GiB is some 250 million tokens, far past where merges of a byte-level BPE still change
    (our choice); a corpus that has less is taken whole."""
    seed: int = Field(default=0, ge=0)
    """Which documents are drawn, where not all are."""
    end_of_text: str = "<|endoftext|>"
    """The token that ends each document; a tokenizer given by path must have it (Qwen2.5: `<|endoftext|>`)."""


class TokenizeConfig(Section):
    """How documents become ids and codes."""

    level: int = 256
    """Level of the images; an image too small for it falls to the largest of `lower_levels` that it fills."""
    lower_levels: tuple[int, ...] = (128,)
    """Levels below `level` for smaller images; an image that fills none of them is left out."""
    max_upscale: float = Field(default=1.5, ge=1)
    """An image is never enlarged more than this to fill its grid. Our choice."""
    captions: bool = True
    """Put an image's caption, as text, before the image."""
    separator: str = "\n\n"
    """Between two neighbouring blocks of text."""
    batch_size: int = Field(default=8, ge=1)
    """Images of one grid that are quantised together. On a CPU it changes speed, never codes; on a GPU last bits depend on
    it, so there every batch has exactly this size, filled up where images are missing."""
    max_pending: int = operational(64, ge=1)
    """Images held, resized, while a batch of their grid fills, and a quarter of the documents held so: bounds memory (0.2 MB
    an image at level 256). On a GPU many times `batch_size`, so that few batches are forced before they are full."""
    self_correction: SelfCorrectionConfig = SelfCorrectionConfig()

    @model_validator(mode="after")
    def _levels(self) -> Self:
        for level in (self.level, *self.lower_levels):
            if level not in LEVEL_SCALES:
                raise ValueError(f"levels are {sorted(LEVEL_SCALES)}, not {level}")
        if any(level >= self.level for level in self.lower_levels):
            raise ValueError(f"lower_levels must lie below level {self.level}, not {list(self.lower_levels)}")
        return self
