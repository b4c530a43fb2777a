"""The arithmetic of a generation: FLOPs by passes, and the paper's comparison with diffusion.

NextFlow counts a layer of width h at 12·s_q·h² + 4·s_q·s_kv·h FLOPs for s_q new slots that see s_kv slots, summed over the
passes of an image (arXiv 2601.02204, on inference efficiency): square matrices, a feed-forward of 4h, one FLOP a
multiply-add of a matrix. `layer_flops` is that to the letter and gives the published polynomials. Their quotient is the
published 5.96 at h = 2048; at 4096 it is 6.38. What one of our models does is counted as training counts it (`flops`: two
FLOPs a multiply-add, grouped queries, SwiGLU, attended pairs). The cost: the two counts cannot be compared. No torch needed.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from nextflow_tokenize.schedule import Grid

from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.estimate.flops import step_flops
from megatron_nextflow.sequence.vocabulary import Vocabulary

Passes = Sequence[tuple[int, int]]
"""(new slots, slots that they see) of each forward pass."""


@dataclass(frozen=True)
class LayerFlops:
    """FLOPs of one layer over all passes as a polynomial in its width h: `linear`·h² + `attention`·h."""

    linear: int
    attention: int

    def at(self, width: int) -> int:
        """FLOPs at the width h = `width`."""
        return self.linear * width**2 + self.attention * width


def layer_flops(passes: Passes) -> LayerFlops:
    """The paper's count: 12·s_q·h² + 4·s_q·s_kv·h summed over the passes."""
    return LayerFlops(12 * sum(new for new, _ in passes), 4 * sum(new * seen for new, seen in passes))


def image_passes(schedule: Sequence[Grid], prefix: int) -> Passes:
    """The passes of an image after `prefix` text tokens, as the paper counts them: the text, then one a scale."""
    passes, seen = [(prefix, prefix)], prefix
    for height, width in schedule:
        seen += height * width
        passes.append((height * width, seen))
    return passes


def diffusion_passes(tokens: int, steps: int) -> Passes:
    """The passes of a diffusion transformer: all of its `tokens` latent tokens at every step, text left out."""
    return [(tokens, tokens)] * steps


@dataclass(frozen=True)
class Work:
    """What a generation fed its model with: forward passes, slots, attended pairs of slots, logits; padding left out."""

    passes: int = 0
    slots: int = 0
    pairs: int = 0
    logits: int = 0

    def __add__(self, other: Work) -> Work:
        sums = (self.passes + other.passes, self.slots + other.slots, self.pairs + other.pairs, self.logits + other.logits)
        return Work(*sums)


def generation_flops(model: ModelConfig, vocabulary: Vocabulary, work: Work) -> float:
    """FLOPs of `work`, two a multiply-add: the layers' (a third of a training step's) and those of the logits computed."""
    layers = step_flops(model, vocabulary, work.slots, work.pairs, labels=0) / 3
    return layers + 2 * model.hidden_size * work.logits
