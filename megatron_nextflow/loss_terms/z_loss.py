"""z-loss: keeps the softmax's normaliser near 1, so that logits do not drift where bf16 is coarse.

PaLM (arXiv 2204.02311, §5, "Loss function"): 10⁻⁴ · log² Z a token, found to make training more stable. NextFlow does not
say whether it has one. Every label counts alike, whatever the pack layout weighs it (our choice: Z drifts for all logits).
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from pydantic import Field

from megatron_nextflow.loss_terms.term import Labels, LossTerm, loss_terms

if TYPE_CHECKING:
    from torch import Tensor


@loss_terms.register("z_loss")
class ZLoss(LossTerm):
    """weight · log² Z a label."""

    weight: float = Field(default=0.0, ge=0)
    """PaLM's is 1e-4; 0 adds nothing."""

    def of_labels(self, labels: Labels) -> Tensor:
        return self.weight * labels.log_z.square()
