"""Cross-entropy of text and of image codes (NextFlow, arXiv 2601.02204, §3), the two terms that are always there.

One head predicts both, so they are one function of two kinds of labels; they are two terms because their sizes are looked at
apart. Their weights are the pack layout's (`LossConfig.alpha`, `vision_weight`), so neither has a setting.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from megatron_nextflow.loss_terms.term import Labels, LossTerm, loss_terms

if TYPE_CHECKING:
    from torch import Tensor


@loss_terms.register("text")
class TextCrossEntropy(LossTerm):
    """Weight · cross-entropy of the labels that are text, ⟨boi⟩ among them."""

    def of_labels(self, labels: Labels) -> Tensor:
        return (labels.weights * labels.loss).where(labels.scale == 0, 0.0)


@loss_terms.register("image")
class ImageCrossEntropy(LossTerm):
    """Weight · cross-entropy of the labels that are codes."""

    def of_labels(self, labels: Labels) -> Tensor:
        return (labels.weights * labels.loss).where(labels.scale > 0, 0.0)
