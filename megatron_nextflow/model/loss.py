"""The objective: cross-entropy over the joint vocabulary, weighted a slot, and its report by kind; logits never held whole.

NextFlow (arXiv 2601.02204, §3) trains one head over text and codes with plain cross-entropy on indices, and weighs the codes
by scale. Weights come with the layout; here they only multiply. At 180,000 ids the logits of one sequence would be the
largest tensor of a training, so head and cross-entropy are one function that takes `chunk` labels at a time, and computes
their gradients while their logits are at hand (§4: Liger's fused linear cross-entropy; this one is also vocabulary-parallel
and skips slots that predict nothing). The cost: the head's gradient, added up in float32, lives from the forward pass to the
backward pass in the head's own type, and the function cannot be differentiated twice.

Megatron's schedules are given a sum and a count (`calculate_per_token_loss`), so the gradient is that of the sum divided by
the whole global batch's count of labels, however the batch is cut up.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_nextflow.sequence.batch import LayoutBatch
from megatron_nextflow.sequence.pack_layout import IGNORED


@dataclass(frozen=True)
class HeadShare:
    """This process's rows of the output head: [`first`, `first` + rows) of the vocabulary, of which `size` ids are real.

    `group`: the tensor-parallel group over which the vocabulary is split; None where it is whole.
    """

    size: int
    first: int = 0
    group: dist.ProcessGroup | None = None

    def reduce(self, value: Tensor, op: dist.ReduceOp.RedOpType = dist.ReduceOp.SUM) -> None:
        """In place over the group; does nothing for a whole vocabulary."""
        if self.group is not None and self.group.size() > 1:
            dist.all_reduce(value, op=op, group=self.group)


class _ChunkedCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor, share: HeadShare, chunk: int, train: bool
    ) -> tuple[Tensor, Tensor]:
        losses = torch.empty(labels.size(0), dtype=torch.float32, device=hidden.device)
        want_hidden, want_head = (train and need for need in ctx.needs_input_grad[:2])
        hidden_grad = torch.empty_like(hidden) if want_hidden else None
        head_grad = torch.zeros_like(head, dtype=torch.float32) if want_head else None
        real = max(0, min(share.size - share.first, head.size(0)))
        for at in range(0, labels.size(0), chunk):
            here = slice(at, at + chunk)
            states = hidden[here]
            scores = (states @ head.t()).float()
            scores[:, real:] = -torch.inf
            top = scores.amax(-1)
            share.reduce(top, dist.ReduceOp.MAX)
            scores -= top.unsqueeze(1)
            own = labels[here] - share.first
            mine = (own >= 0) & (own < head.size(0))
            own = own.clamp(0, head.size(0) - 1).unsqueeze(1)
            target = scores.gather(1, own).squeeze(1).where(mine, 0.0)
            scores.exp_()
            sums = torch.stack([scores.sum(-1), target])
            share.reduce(sums)
            losses[here] = sums[0].log() - sums[1]
            if not (want_hidden or want_head):
                continue
            scores *= (weights[here] / sums[0]).unsqueeze(1)
            scores.scatter_add_(1, own, -(weights[here] * mine).unsqueeze(1))
            errors = scores.to(head.dtype)
            if hidden_grad is not None:
                torch.mm(errors, head, out=hidden_grad[here])
            if head_grad is not None:
                head_grad += errors.t() @ states
        ctx.save_for_backward(hidden_grad, None if head_grad is None else head_grad.to(head.dtype))
        ctx.mark_non_differentiable(losses)
        return (losses * weights).sum(), losses

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0]
        found = [None if saved is None else saved * factor.to(saved.dtype) for saved in ctx.saved_tensors]
        return (*found, None, None, None, None, None)


def cross_entropy(
    hidden: Tensor, head: Tensor, labels: Tensor, weights: Tensor, share: HeadShare, chunk: int
) -> tuple[Tensor, Tensor]:
    """Σ weight · loss (float32, differentiable in `hidden` and `head`) and each label's own loss [n] float32, nats.

    `hidden` [n, H], `head` [V/tp, H] this process's rows, `labels` [n] ids of the joint vocabulary, `weights` [n] float32.
    Both results are the same on all processes of the share's group; the gradient of `hidden` is this process's summand of
    it, so `hidden` must come out of Megatron's copy or gather to the group, which add the summands up. At most
    `chunk` × V/tp logits exist at a time.
    """
    total, losses = _ChunkedCrossEntropy.apply(hidden, head, labels, weights, share, chunk, torch.is_grad_enabled())
    return total, losses


def weighted_loss(
    hidden: Tensor, head: Tensor, batch: LayoutBatch, share: HeadShare, kinds: int, chunk: int = 1024
) -> tuple[Tensor, Tensor, Tensor]:
    """Σ weight · loss (differentiable), the number of labels (int64), and by kind [kinds, 2] float64 (Σ loss, labels).

    `hidden` [L, B, H] for `batch`; `head`, `share` and `chunk` as in `cross_entropy`. Kind 0 is text, kind k the codes of
    scale k; losses by kind are not weighted. `kinds` − 1 is the largest scale that can occur.
    """
    counted = batch.labels != IGNORED
    labels, scale = batch.labels[counted], batch.scale[counted]
    total, losses = cross_entropy(hidden.transpose(0, 1)[counted], head, labels, batch.weights[counted], share, chunk)
    entries = torch.stack([losses, torch.ones_like(losses)], dim=-1).double()
    by_kind = entries.new_zeros(kinds, 2).index_add_(0, scale, entries)
    return total, counted.sum(), by_kind


def logits_bytes(slots: int, head_rows: int, chunk: int) -> tuple[int, int]:
    """Bytes of the logits of `slots` slots over `head_rows` ids, at once and in chunks.

    Counted as the plain way holds them, each in float32: the logits and their gradient.
    """
    return slots * head_rows * 8, min(slots, chunk) * head_rows * 8
