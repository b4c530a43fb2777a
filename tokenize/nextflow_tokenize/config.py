"""The recipe's sections for tokenisation: the vision tokenizer and its training, the text tokenizer, and encoding.

Every number that the paper leaves open is a field here, with a default measured on small runs of documentation screenshots
and photographs on two CPU cores; the published values stand in the field comments, so that a large recipe is a matter of
settings. The cost of one flat section a concern: a recipe for the published model names a dozen fields.
"""

from __future__ import annotations

from typing import Literal, Self

from nextflow_data.config import Section
from pydantic import Field, model_validator

from nextflow_tokenize.pack_config import CostModel as CostModel
from nextflow_tokenize.pack_config import PackConfig as PackConfig
from nextflow_tokenize.schedule import LEVEL_SCALES, PIXELS_PER_TOKEN


class VisionTrainingConfig(Section):
    """How the vision tokenizer is trained. The paper gives neither steps nor learning rate: all values are our choice."""

    steps: int = Field(default=500, ge=0)
    """Optimiser steps. A number of steps, not of seconds, so that two runs give the same weights."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop early after this much wall time. A guard for slow machines: where it strikes, weights depend on the machine."""
    batch_tokens: int = Field(default=1024, ge=1)
    """Images of one step, counted in final-grid positions: 1024 is four square images at level 256 and 16 at 128."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate (cosine to a tenth after a linear warm-up). TokenFlow: 1e-4 over 500,000 steps."""
    warmup_steps: int = Field(default=10, ge=0)
    gradient_clip: float = Field(default=1.0, gt=0)
    commitment: float = Field(default=0.25, ge=0)
    """β of the commitment loss (TokenFlow: 0.25)."""
    l1_weight: float = Field(default=0.1, ge=0)
    gradient_weight: float = Field(default=0.2, ge=0)
    """Weight of the L1 distance between image gradients: a perceptual stand-in for LPIPS, whose weights need a download."""
    semantic_weight: float = Field(default=0.05, ge=0)
    """Weight of 1 − cos(decoded semantic feature, teacher feature)."""
    scale_drop: float = Field(default=0.02, ge=0, lt=1)
    """Probability that a scale, never the first, is left out of a step: previews of few scales gain by it, the whole loses.
    TokenFlow drops one scale in a tenth of its steps; NextFlow drops half the scales, how often is not stated."""
    ema_decay: float = Field(default=0.97, ge=0, lt=1)
    """Decay of the codebook's running means."""
    restart_below: float = Field(default=0.03, ge=0)
    """A code whose running count of assignments falls below this is put on a random current residual."""
    kmeans_iterations: int = Field(default=4, ge=0)
    """Spherical k-means iterations that place the codebook before the first step; 0: random codes."""
    initial_norm: float = Field(default=5.0, gt=0)
    """RMS length of a pixel feature at the start, where linear_skip starts it; codes have length 1, so it sets how fine they
    are beside the features."""
    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the images kept from training (at least one when there are two or more), chosen by their hash."""
    max_images: int = Field(default=2000, ge=1)
    """Images used at most, chosen by their hash: they are kept decoded in memory."""
    crop: float = Field(default=0.9, gt=0, le=1)
    """Smallest share that a random training crop keeps of the largest one of its ratio. Small crops are zoomed in, and
    images are encoded whole: 0.6 trains for what is never asked."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast precision of the networks in training; quantisation and losses are float32 always, and so is encoding.
    auto: bfloat16 where the processor multiplies it natively, about 1.7 times as fast, else float32."""
    threads: int = Field(default=1, ge=1)
    """CPU threads while training. Part of the result: sums split differently round differently. On two free cores, two are
    half as fast again as one; beside one other busy process they are four times slower or worse, since OpenMP's threads spin
    while they wait for each other. Hence one."""
    seed: int = 0


class VisionTokenizerConfig(Section):
    """The dual-codebook multi-scale tokenizer (NextFlow §3.1; widths after TokenFlow, whose values stand in comments)."""

    levels: tuple[int, ...] = (128, 256)
    """Levels it is trained on; an image is encoded at one of them."""
    codebook_size: int = Field(default=4096, ge=2)
    """Entries of the shared index. TokenFlow: 32,768; NextFlow's ablation: 16,384; its final size is unpublished."""
    semantic_dim: int = Field(default=4, ge=1)
    """Width of a semantic code (TokenFlow: 32)."""
    pixel_dim: int = Field(default=12, ge=1)
    """Width of a pixel code (TokenFlow: 8)."""
    w_dis: float = Field(default=4.0, gt=0)
    """Weight of the pixel distance beside the semantic one (TokenFlow: 1.0). Four dimensions of a small descriptor take more
    than their due of an index at 1.0: measured on the linear start, 4.0 gives 0.2 dB over 2.0 at the same semantic error."""
    patch: int = Field(default=8, ge=1)
    """Space-to-depth factor before the first convolution, for CPUs (published: 1, none)."""
    channels: int = Field(default=64, ge=1)
    """Base width of the pixel encoder (TokenFlow: 128)."""
    decoder_channels: int = Field(default=96, ge=1)
    """Base width of the pixel decoder (TokenFlow: 128; its enhanced decoder: 256)."""
    channel_mult: tuple[int, ...] = (1, 2)
    """Width factors by resolution (TokenFlow: 1, 1, 2, 2, 4); patch · 2^(len − 1) must be 16."""
    res_blocks: int = Field(default=1, ge=0)
    """Residual blocks a resolution in the encoder (TokenFlow: 2)."""
    decoder_res_blocks: int = Field(default=1, ge=0)
    """Residual blocks a resolution in the decoder (TokenFlow: 2 + 1; enhanced: 4)."""
    attention: bool = False
    """Self-attention at the lowest resolution (TokenFlow: yes)."""
    linear_skip: bool = True
    """Add a linear patch projection, started at the principal components, beside encoder and decoder. Our choice: a short
    run then starts from the best linear code and not from noise. Published models have none."""
    teacher: Literal["classical"] = "classical"
    """Semantic teacher: `classical` is a fixed descriptor (gradients and colour), an offline stand-in for SigLIP 2."""
    semantic_channels: int = Field(default=64, ge=1)
    """Hidden width of the semantic encoder and of its decoder head."""
    training: VisionTrainingConfig = VisionTrainingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        unknown = [level for level in self.levels if level not in LEVEL_SCALES]
        if unknown or not self.levels:
            raise ValueError(f"levels must be some of {sorted(LEVEL_SCALES)}, not {list(self.levels)}")
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult must be positive whole numbers, not {list(self.channel_mult)}")
        factor = self.patch * 2 ** (len(self.channel_mult) - 1)
        if factor != PIXELS_PER_TOKEN:
            raise ValueError(
                f"patch · 2^(len(channel_mult) − 1) must be {PIXELS_PER_TOKEN}, the pixels a token's side has; "
                f"patch={self.patch} with {len(self.channel_mult)} widths gives {factor}"
            )
        return self


class SelfCorrectionConfig(Section):
    """Codes fed to the model are drawn from the nearest few, the target stays the nearest (NextFlow §3, self-correction)."""

    samples: float = Field(default=1.0, ge=0, le=1)
    """Share of images it is applied to (the paper's best: 1.0)."""
    tokens: float = Field(default=0.6, ge=0, le=1)
    """Probability that a token is drawn and not taken (the paper's best: 60 % of the tokens of a scale)."""
    top_k: int = Field(default=10, ge=1)
    """How many nearest codes a draw is from. Unpublished; DetailFlow takes 50 of 8,192: our choice."""
    temperature: float | None = Field(default=None, gt=0)
    """None: each of the k is as likely (DetailFlow). Else weights are softmax(−distance / temperature)."""


class TextTokenizerConfig(Section):
    """The text tokenizer: one to train on the run's text, or any tokenizer.json by path."""

    path: str | None = None
    """A tokenizer.json of the `tokenizers` library; None: train a byte-level BPE."""
    vocab_size: int = Field(default=4096, ge=257)
    """Entries of a trained vocabulary: 256 bytes, the end-of-text token, and merges."""
    min_frequency: int = Field(default=2, ge=1)
    """Pairs seen less often are not merged."""
    end_of_text: str = "<|endoftext|>"
    """The token that ends each document; a tokenizer given by path must have it (Qwen2.5: `<|endoftext|>`)."""


class TokenizeConfig(Section):
    """How documents become ids and codes."""

    level: int = 256
    """Level of the images; an image too small for it falls to the largest of `lower_levels` that it fills."""
    lower_levels: tuple[int, ...] = (128,)
    max_upscale: float = Field(default=1.5, ge=1)
    """An image is never enlarged more than this to fill its grid. Our choice."""
    captions: bool = True
    """Put an image's caption, as text, before the image."""
    separator: str = "\n\n"
    """Between two neighbouring blocks of text."""
    batch_size: int = Field(default=8, ge=1)
    """Images of one grid that are quantised together. Changes speed, never codes."""
    max_pending: int = Field(default=64, ge=1)
    """Images held, resized, while a batch of their grid fills, and a quarter of the documents held so: bounds memory."""
    self_correction: SelfCorrectionConfig = SelfCorrectionConfig()

    @model_validator(mode="after")
    def _levels(self) -> Self:
        for level in (self.level, *self.lower_levels):
            if level not in LEVEL_SCALES:
                raise ValueError(f"levels are {sorted(LEVEL_SCALES)}, not {level}")
        if any(level >= self.level for level in self.lower_levels):
            raise ValueError(f"lower_levels must lie below level {self.level}, not {list(self.lower_levels)}")
        return self
