"""The objective: vocabulary-parallel cross-entropy over the joint vocabulary, weighted a slot, and its report by kind.

NextFlow (arXiv 2601.02204, section 3) trains one head over text and codes with plain cross-entropy on indices, and weighs
the codes by scale. Weights come with the layout; here they only multiply. Megatron's schedules are given a sum and a count
(`calculate_per_token_loss`), so the gradient is that of the sum divided by the whole global batch's count of labels, however
the batch is cut up. The cost: a micro-batch's own mean is never what is differentiated.
"""

from __future__ import annotations

import torch
from megatron.core.tensor_parallel import vocab_parallel_cross_entropy

from megatron_nextflow.layout import IGNORED, LayoutBatch


def token_losses(logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    """Cross-entropy [b, s] float32, nats, 0 where the label is IGNORED; `labels` [b, s] are ids of the joint vocabulary.

    `logits` [s, b, V/tp] are this process's part of the vocabulary, padding at −∞. Logits in float32 are overwritten: that
    is how Megatron's function works.
    """
    counted = labels != IGNORED
    target = labels.where(counted, torch.zeros_like(labels))
    losses = vocab_parallel_cross_entropy(logits, target.transpose(0, 1).contiguous()).transpose(0, 1)
    return losses.where(counted, torch.zeros_like(losses))


def weighted_loss(logits: torch.Tensor, batch: LayoutBatch, kinds: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Σ weight · loss (differentiable), the number of labels (int64), and by kind [kinds, 2] float64 (Σ loss, labels).

    Kind 0 is text, kind k the codes of scale k; losses by kind are not weighted. `kinds` − 1 is the largest scale that can
    occur. Identical on all tensor-parallel processes. `logits` [s, b, V/tp] as in `token_losses`.
    """
    losses = token_losses(logits, batch.labels)
    counted = batch.labels != IGNORED
    total = (losses * batch.weights).sum()
    entries = torch.stack([losses.detach(), counted], dim=-1).double().flatten(0, 1)
    by_kind = entries.new_zeros(kinds, 2).index_add_(0, batch.scale.flatten(), entries)
    return total, counted.sum(), by_kind
