"""The recipe's section for the vision tokenizer: what it is, how it is trained, and how its codes are drawn.

Every number that the paper leaves open is a field here, with a default measured on small runs of documentation screenshots
and photographs on two CPU cores; the published values stand in the field comments and, all together, in
`recipes/tokenizer_nextflow.yaml`. What a tokenizer *is* (`VisionTokenizerConfig` without `training` and `path`) is stored
beside its weights and hashed with them; how it came about is not. The cost of one flat section a concern: a recipe for the
published model names two dozen fields.
"""

from __future__ import annotations

from pathlib import Path
from typing import Literal, Self

from nextflow_data.common.section import Section, operational
from pydantic import Field, model_validator

from nextflow_tokenize.schedule import LEVEL_SCALES, PIXELS_PER_TOKEN


class SiglipShape(Section):
    """Shape of a SigLIP vision model, after transformers' config; the defaults are siglip2-so400m-patch16-naflex."""

    family: Literal["siglip2", "siglip"] = "siglip2"
    """siglip2: NaFlex, any grid (NextFlow). siglip: one fixed square grid (TokenFlow's siglip-so400m-patch14-384)."""
    hidden_size: int = Field(default=1152, ge=1)
    intermediate_size: int = Field(default=4304, ge=1)
    num_hidden_layers: int = Field(default=27, ge=2)
    num_attention_heads: int = Field(default=16, ge=1)
    patch_size: int = Field(default=16, ge=1)
    """Pixels of a patch's side."""
    num_patches: int = Field(default=256, ge=1)
    """Learned positions: 16×16, resized to each grid (siglip2); for siglip (image side // patch)²."""
    layer_norm_eps: float = Field(default=1e-6, gt=0)
    hidden_act: str = "gelu_pytorch_tanh"


class VisionTrainingConfig(Section):
    """How the vision tokenizer is trained. The paper gives neither steps nor learning rate: all values are our choice."""

    stage: Literal["pixel", "joint", "decoder"] = "joint"
    """NextFlow's three stages (§3.1). pixel: the pixel branch alone, nearest codes by the pixel distance only. joint: both
    branches. decoder: the pixel decoder alone, all else frozen; the recipe doubles its widths."""
    steps: int = Field(default=500, ge=0)
    """Optimiser steps. A number of steps, not of seconds, so that two runs give the same weights."""
    max_seconds: float | None = Field(default=None, gt=0)
    """Stop early after this much wall time. A guard for slow machines: where it strikes, weights depend on the machine."""
    batch_tokens: int = Field(default=1024, ge=1)
    """Images of one micro-batch, all of one grid, counted in final-grid positions: 1024 is four square images at level 256
    and 16 at 128."""
    micro_batches: int = Field(default=1, ge=1)
    """Micro-batches of one step, each of its own grid. Processes share them out, so their number must divide it; how many
    processes there are changes sums in the last bits and nothing else."""
    learning_rate: float = Field(default=1e-3, gt=0)
    """Peak rate (cosine to `final_rate` of it after a linear warm-up). TokenFlow: 1e-4 over 500,000 steps."""
    final_rate: float = Field(default=0.1, ge=0, le=1)
    """Share of `learning_rate` that is left at the last step."""
    warmup_steps: int = Field(default=10, ge=0)
    """Steps in which the rate rises from 0."""
    gradient_clip: float = Field(default=1.0, gt=0)
    """Largest norm of a gradient, of the tokenizer's and of the discriminator's alike."""
    weights_ema: float = Field(default=0.0, ge=0, lt=1)
    """Decay of the running mean of all weights, which is what is saved; 0: the weights themselves are. (LlamaGen: 0.999.)"""

    l2_weight: float = Field(default=1.0, ge=0)
    """Weight of the mean squared error of pixels."""
    l1_weight: float = Field(default=0.1, ge=0)
    """Weight of the mean absolute error of pixels. TokenFlow: 0."""
    perceptual: Literal["gradient", "lpips"] = "gradient"
    """lpips: LPIPS with the weights at `lpips_path` (TokenFlow). gradient: the L1 distance of image gradients at three
    octaves, our documented stand-in, since LPIPS weights need a download."""
    perceptual_weight: float = Field(default=0.2, ge=0)
    """TokenFlow: 1.0 with LPIPS."""
    lpips_path: str | None = None
    """Folder with LPIPS's VGG16 and linear weights (`nextflow_tokenize.vision.scores.perceptual`)."""
    adversarial_weight: float = Field(default=0.0, ge=0)
    """Weight of the PatchGAN hinge loss (TokenFlow: 0.5); 0: no discriminator."""
    adversarial_start: int = Field(default=20_000, ge=0)
    """First step with the adversarial loss (TokenFlow: 20,000)."""
    discriminator_channels: int = Field(default=64, ge=1)
    """Width of the discriminator's first layer."""
    discriminator_layers: int = Field(default=3, ge=1)
    """Strided layers of the discriminator, each twice as wide as the last (up to eight times)."""
    semantic_weight: float = Field(default=0.5, ge=0)
    """Weight of 1 − cos(decoded semantic feature, teacher feature). TokenFlow: 1.0."""
    commitment: float = Field(default=0.25, ge=0)
    """β of the commitment loss (TokenFlow: 0.25)."""

    scale_drop_steps: float = Field(default=1.0, ge=0, le=1)
    """Share of the micro-batches in which scales are dropped. NextFlow does not say; TokenFlow: 0.1."""
    scale_drop: float = Field(default=0.02, ge=0, lt=1)
    """Probability that a scale, never the first, is left out where scales are dropped: previews of few scales gain by it,
    the whole loses. NextFlow drops 0.5 of the scales; TokenFlow one of its 15."""

    codebook: Literal["ema", "gradient", "simvq"] = "ema"
    """How codes move. ema: running means of the residuals that chose them (the default by measurement:
    benchmarks/bench_codebook.py). gradient: TokenFlow's codebook loss. simvq: gradient through one linear map that all codes
    share (Zhu et al. 2024, arXiv 2411.02038)."""
    codebook_weight: float = Field(default=1.0, ge=0)
    """Weight of the codebook loss of `gradient` and `simvq` (TokenFlow: 1.0)."""
    ema_decay: float = Field(default=0.97, ge=0, lt=1)
    """Decay of the codebook's running means."""
    restart_below: float = Field(default=0.03, ge=0)
    """A code whose running count of assignments falls below this is put on a random current residual; 0: never."""
    kmeans_iterations: int = Field(default=4, ge=0)
    """Spherical k-means iterations that place the codebook before the first step; 0: random codes, better where the codebook
    is large beside the images that training starts on (measured)."""
    initial_norm: float = Field(default=5.0, gt=0)
    """RMS length of a pixel feature at the start, where linear_skip starts it; codes have length 1, so it sets how fine they
    are beside the features."""

    held_out: float = Field(default=0.1, ge=0, lt=1)
    """Share of the images kept from training (at least one when there are two or more), chosen by their hash."""
    max_images: int = Field(default=2000, ge=1)
    """Images used at most, chosen by their hash."""
    cache_mib: int = operational(1024, ge=0)
    """Memory of a training process for decoded images, shrunk to twice the highest level, shared out to its workers; what
    does not fit is decoded anew each time."""
    workers: int = operational(0, ge=0)
    """Processes that decode and crop ahead of training; 0: the training process does. Changes speed, never weights."""
    crop: float = Field(default=0.9, gt=0, le=1)
    """Smallest share that a random training crop keeps of the largest one of its ratio. Small crops are zoomed in, and
    images are encoded whole: 0.6 trains for what is never asked. 1: images whole, stretched to their grid as encoding does,
    but for those that fill a micro-batch of another ratio."""
    flip: bool = True
    """Mirror half of the crops. Off where images must be learnt as they are, as in a test of overfitting."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Autocast precision of the networks in training; quantisation and losses are float32 always, and so is encoding.
    auto: bfloat16 where the processor multiplies it natively, else float32. With AMX that is about 1.7 times as fast; with
    AVX512-BF16 alone it was measured slower (9.0 s against 6.4 s for 20 steps), and float32 is to be named there."""
    compile: bool = False
    """torch.compile the networks (GPUs)."""
    threads: int = Field(default=1, ge=1)
    """CPU threads while training. Part of the result: sums split differently round differently. On two free cores, two are
    half as fast again as one; beside one other busy process they are four times slower or worse, since OpenMP's threads spin
    while they wait for each other. Hence one."""
    checkpoint_interval: int = operational(100, ge=0)
    """Steps between checkpoints that a stopped run goes on from, exactly; 0: none. The last two stay."""
    picture_interval: int = operational(0, ge=0)
    """Steps between sheets of held-out reconstructions in TensorBoard; 0: none."""
    seed: int = Field(default=0, ge=0)
    """Of the initial weights, of which images are drawn, and of everything random in training."""

    @model_validator(mode="after")
    def _fits(self) -> Self:
        if self.perceptual == "lpips" and self.lpips_path is None:
            raise ValueError("perceptual: lpips needs lpips_path, a folder with LPIPS's weights; or perceptual: gradient")
        return self


class VisionTokenizerConfig(Section):
    """The dual-codebook multi-scale tokenizer (NextFlow §3.1; widths after TokenFlow, whose values stand in comments)."""

    path: str | None = None
    """Folder of a trained tokenizer to use as it is; None: train one on the run's images. With a path, all else here but
    `training` must be left out: the folder says what it is."""
    levels: tuple[int, ...] = (128, 256)
    """Levels it is trained on; an image is encoded at one of them."""
    branches: Literal["dual", "pixel"] = "dual"
    """dual: one index for both branches (TokenFlow, NextFlow). pixel: indices by the pixel distance alone, a single-branch
    multi-scale VQ, for comparison; its semantic decoder then reads the pixel codes."""
    codebook_size: int = Field(default=4096, ge=2)
    """Entries of the shared index. TokenFlow: 32,768; NextFlow's ablation: 16,384; its final size is unpublished."""
    semantic_dim: int = Field(default=12, ge=1)
    """Width of a semantic code (TokenFlow: 32). Measured: from 4, with w_dis 4 and a semantic weight of 0.1, to 12, 2 and
    0.5 the cosine to the teacher rises from 0.87 to 0.93, for 0.1 to 0.2 dB."""
    pixel_dim: int = Field(default=12, ge=1)
    """Width of a pixel code (TokenFlow: 8)."""
    w_dis: float = Field(default=2.0, gt=0)
    """Weight of the pixel distance beside the semantic one (TokenFlow: 1.0). Measured: 2.0 gives 0.3 dB over 1.0 at the same
    semantic agreement, where the semantic loss weighs 0.5."""

    network: Literal["patch", "vqgan"] = "patch"
    """Pixel encoder and decoder. patch: ours for CPUs, a space-to-depth first layer and a linear skip. vqgan: TokenFlow's
    CNN, parameter for parameter; attention after each block of the lowest resolution."""
    patch: int = Field(default=8, ge=1)
    """Space-to-depth factor before the first convolution (network: patch)."""
    channels: int = Field(default=64, ge=1)
    """Base width of the pixel encoder (TokenFlow: 128)."""
    decoder_channels: int = Field(default=96, ge=1)
    """Base width of the pixel decoder (TokenFlow: 128; its enhanced decoder: 256)."""
    channel_mult: tuple[int, ...] = (1, 2)
    """Width factors by resolution (TokenFlow: 1, 1, 2, 2, 4); patch · 2^(len − 1), without patch for vqgan, must be 16."""
    res_blocks: int = Field(default=1, ge=0)
    """Residual blocks a resolution in the encoder (TokenFlow: 2)."""
    decoder_res_blocks: int = Field(default=1, ge=0)
    """Residual blocks a resolution in the decoder (TokenFlow: 2, enhanced: 4; vqgan adds one, as TokenFlow does)."""
    z_channels: int = Field(default=256, ge=1)
    """Width between CNN and codes (network: vqgan; TokenFlow: 256)."""
    attention: bool = False
    """Self-attention at the lowest resolution (network: patch; vqgan always has it)."""
    linear_skip: bool = True
    """Add a linear patch projection, started at the principal components, beside encoder and decoder (network: patch). Our
    choice: a short run then starts from the best linear code and not from noise. Published models have none."""

    teacher: Literal["classical", "siglip"] = "classical"
    """Semantic teacher and encoder. siglip: a SigLIP vision model of shape `siglip`, frozen as teacher, copied as trainable
    encoder (NextFlow: siglip2-so400m-patch16-naflex). classical: a fixed descriptor (gradients and colour), an offline
    stand-in, read by a small trained head."""
    siglip: SiglipShape | None = None
    """Shape of the SigLIP model; left out, it is read from the model at `teacher_path`."""
    teacher_path: str | None = None
    """Folder of the SigLIP model, as transformers saves it: needed to begin training, never to encode."""
    semantic_channels: int = Field(default=64, ge=1)
    """Hidden width of the semantic heads (teacher: classical)."""
    semantic_depth: int = Field(default=3, ge=1)
    """Transformer layers of the semantic decoder (teacher: siglip; TokenFlow: 3)."""
    semantic_heads: int = Field(default=12, ge=1)
    """Attention heads of the semantic decoder (teacher: siglip; TokenFlow: 12)."""
    semantic_grid: int = Field(default=16, ge=1)
    """Side of the grid for which the semantic decoder learns positions, resized to each image's grid (TokenFlow-XL: 27)."""
    sides: tuple[int, ...] | None = None
    """Square scales of a tokenizer that has one fixed schedule (TokenFlow-XL: 1 … 27); None: NextFlow's schedule."""
    image_side: int | None = None
    """Pixels a side of the images of such a tokenizer where that is not 16 a token (TokenFlow-XL: 384 for 27 tokens); the
    pixel branch then works on images resized to 16 pixels a token, as the reference does."""
    training: VisionTrainingConfig = VisionTrainingConfig()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.path is not None:
            fields = type(self).model_fields
            named = [n for n in fields if n not in ("path", "training") and getattr(self, n) != fields[n].default]
            if named:
                raise ValueError(f"path names a trained tokenizer, which says what it is: leave out {', '.join(named)}")
            return self
        unknown = [level for level in self.levels if level not in LEVEL_SCALES]
        if unknown or not (self.levels or self.sides):
            raise ValueError(f"levels must be some of {sorted(LEVEL_SCALES)}, not {list(self.levels)}")
        if not self.channel_mult or min(self.channel_mult) < 1:
            raise ValueError(f"channel_mult must be positive whole numbers, not {list(self.channel_mult)}")
        patch = self.patch if self.network == "patch" else 1
        factor = patch * 2 ** (len(self.channel_mult) - 1)
        if factor != PIXELS_PER_TOKEN:
            raise ValueError(
                f"patch · 2^(len(channel_mult) − 1) must be {PIXELS_PER_TOKEN}, the pixels a token's side has; "
                f"patch={patch} with {len(self.channel_mult)} widths gives {factor}"
            )
        if self.network == "vqgan" and any(c % 32 for c in (self.channels, self.decoder_channels)):
            raise ValueError("network: vqgan normalises 32 groups: channels and decoder_channels must be multiples of 32")
        return self


def missing_weights(config: VisionTokenizerConfig) -> list[str]:
    """What is wrong with the folders of weights that a training reads, so that it is found before any work."""
    given = {"teacher_path": config.teacher_path, "training.lpips_path": config.training.lpips_path}
    wrong = [
        f"vision_tokenizer.{name}: {path} is not a folder"
        for name, path in given.items()
        if path and not Path(path).is_dir()
    ]
    learnt = config.path is None and config.training.stage == "joint" and config.teacher == "siglip"
    if learnt and config.teacher_path is None:
        wrong.append("vision_tokenizer.teacher_path: a joint stage with teacher: siglip needs the SigLIP model's folder")
    return wrong


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
