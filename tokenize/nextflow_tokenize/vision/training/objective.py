"""What the tokenizer is trained to do: one micro-batch to its losses, for each of NextFlow's three stages.

Losses are TokenFlow's (2412.03069 §3): L2 and a perceptual distance of the decoded image, an adversarial term from a step
on, 1 − cosine of the decoded semantic feature to the teacher's, and commitment; weights are settings. The gradient passes
straight through quantisation as in VAR: the decoders see the sum of codes f̂, the encoders get the decoders' gradient, and
commitment pulls features to f̂ as a whole. TokenFlow's own code passes it through each scale's normalised vector instead; on
features that are not normalised VAR's way keeps their length trainable. Quantisation and losses are float32 always.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nextflow_tokenize.config.vision import VisionTrainingConfig
from nextflow_tokenize.schedule import Grid
from nextflow_tokenize.vision.codes.codebook import RunningMeans
from nextflow_tokenize.vision.codes.quantizer import Trace
from nextflow_tokenize.vision.model import VisionTokenizer
from nextflow_tokenize.vision.scores.perceptual import Lpips, gradient_distance


@dataclass(frozen=True)
class Outcome:
    """One micro-batch: its losses (unweighted), their weighted sum `loss`, the decoded images and the walk over scales."""

    loss: Tensor
    losses: dict[str, Tensor]
    image: Tensor
    trace: Trace


class Objective(nn.Module):
    """The tokenizer and what moves its codes, so that one forward of one module holds all that has a gradient."""

    def __init__(self, tokenizer: VisionTokenizer, means: RunningMeans, settings: VisionTrainingConfig, bf16: bool) -> None:
        super().__init__()
        self.tokenizer, self.means, self.settings, self.bf16 = tokenizer, means, settings, bf16
        # In a list: the weights of a metric are not the tokenizer's and must not be saved or averaged with them.
        self._lpips: list[Lpips] = []
        if settings.perceptual == "lpips" and settings.lpips_path is not None and settings.perceptual_weight:
            self._lpips = [Lpips.load(Path(settings.lpips_path)).to(tokenizer.device)]

    def forward(self, pixels: Tensor, schedule: tuple[Grid, ...], dropped: frozenset[int]) -> Outcome:
        """Losses of images [B, 3, 16·h, 16·w] in [−1, 1] of one grid; the scales of `dropped` (from 0) are left out."""
        settings, tokenizer = self.settings, self.tokenizer
        semantic_trained = settings.stage == "joint"
        with torch.autocast(pixels.device.type, torch.bfloat16, enabled=self.bf16):
            taught = tokenizer.teach(pixels) if semantic_trained else None
            features = self._features(pixels, taught)
            trace = tokenizer.quantizer.trace(features.detach(), schedule, dropped)
            total = trace.partial[-1]
            straight = features + (total - features.detach())
            semantic, pixel = straight.split(tokenizer.quantizer.dims, dim=1)
            if settings.stage == "decoder":
                pixel = pixel.detach()
            image = tokenizer.pixel_decoder(pixel).float()
            decoded = None
            if semantic_trained:
                # With one branch the semantic decoder is a probe: it reads the pixel codes and must not move them.
                read = semantic if tokenizer.config.branches == "dual" else pixel.detach()
                decoded = tokenizer.semantic_decoder(read).float()
        losses = {"l2": F.mse_loss(image, pixels), "l1": F.l1_loss(image, pixels)}
        losses["perceptual"] = self._lpips[0](image, pixels).mean() if self._lpips else gradient_distance(image, pixels)
        loss = (
            settings.l2_weight * losses["l2"]
            + settings.l1_weight * losses["l1"]
            + settings.perceptual_weight * losses["perceptual"]
        )
        if decoded is not None and taught is not None:
            losses["semantic"] = 1 - F.cosine_similarity(decoded, taught, dim=1).mean()
            loss = loss + settings.semantic_weight * losses["semantic"]
        if settings.stage != "decoder":
            dual = semantic_trained and tokenizer.config.branches == "dual"
            used = slice(None) if dual else slice(tokenizer.quantizer.dims[0], None)
            losses["commitment"] = F.mse_loss(features[:, used], total[:, used])
            loss = loss + settings.commitment * losses["commitment"]
            if settings.codebook != "ema":
                losses["codebook"] = self.means.loss(trace)
                loss = loss + settings.codebook_weight * losses["codebook"]
        return Outcome(loss, losses, image, trace)

    def _features(self, pixels: Tensor, taught: Tensor | None) -> Tensor:
        if self.settings.stage != "decoder":
            return self.tokenizer.features(pixels, taught)
        with torch.no_grad():
            return self.tokenizer.features(pixels)


def trained_parts(tokenizer: VisionTokenizer, settings: VisionTrainingConfig) -> list[nn.Module]:
    """The parts of the tokenizer that a stage trains; all others are frozen."""
    if settings.stage == "decoder":
        return [tokenizer.pixel_decoder]
    pixel: list[nn.Module] = [tokenizer.pixel_encoder, tokenizer.pixel_decoder]
    if settings.stage == "pixel":
        return pixel
    if tokenizer.config.branches == "pixel":
        return [*pixel, tokenizer.semantic_decoder]
    return [*pixel, tokenizer.semantic_encoder, tokenizer.semantic_decoder]


def trained_parameters(tokenizer: VisionTokenizer, settings: VisionTrainingConfig) -> list[nn.Parameter]:
    """The tokenizer's parameters that a stage trains, marked so, all others not.

    The linear projections stay at the principal components: Adam moves every weight by about the learning rate a step, which
    is a tenth of one of theirs, and the features would shift faster than codes and decoders can follow.
    """
    tokenizer.requires_grad_(False)
    for part in trained_parts(tokenizer, settings):
        part.requires_grad_(True)
    for projection in (tokenizer.pixel_encoder.linear, tokenizer.pixel_decoder.linear):
        if projection is not None:
            projection.requires_grad_(False)
    return [parameter for parameter in tokenizer.parameters() if parameter.requires_grad]
