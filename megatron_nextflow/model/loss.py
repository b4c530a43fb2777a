"""The objective: terms over the joint vocabulary, added up by label and reported by name; logits are never held whole.

NextFlow (arXiv 2601.02204, §3) trains one head over text and codes with plain cross-entropy on indices. At 180,000 ids the
logits of one sequence would be the largest tensor of a training, so head and objective are one function that takes `chunk`
labels at a time, and computes their gradients while their logits are at hand (§4: Liger's fused linear cross-entropy; this
one is also vocabulary-parallel and skips slots that predict nothing). What is made of a label's cross-entropy and of the
softmax's normaliser is the terms' (`loss_terms`); both are all that a term sees. The cost: the head's gradient, added up in
float32, lives from the forward pass to the backward pass in the head's own type, and the function cannot be differentiated
twice.

Megatron's schedules are given a sum and a count (`calculate_per_token_loss`), so the gradient is that of the sum divided by
the whole global batch's count of labels, however the batch is cut up.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.loss_terms.term import Labels, LossTerm
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


class _ChunkedObjective(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        hidden: Tensor,
        head: Tensor,
        labels: Tensor,
        weights: Tensor,
        scale: Tensor,
        share: HeadShare,
        chunk: int,
        terms: tuple[LossTerm, ...],
        train: bool,
    ) -> tuple[Tensor, Tensor, Tensor]:
        losses = torch.empty(labels.size(0), dtype=torch.float32, device=hidden.device)
        added = torch.empty(len(terms), labels.size(0), dtype=torch.float32, device=hidden.device)
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
            log_sum = sums[0].log()
            losses[here] = log_sum - sums[1]
            seen = Labels(losses[here].clone(), log_sum + top, weights[here], scale[here])
            added[:, here], by_loss, by_log_z = _values_and_slopes(terms, seen)
            if not (want_hidden or want_head):
                continue
            scores *= ((by_loss + by_log_z) / sums[0]).unsqueeze(1)
            scores.scatter_add_(1, own, -(by_loss * mine).unsqueeze(1))
            errors = scores.to(head.dtype)
            if hidden_grad is not None:
                torch.mm(errors, head, out=hidden_grad[here])
            if head_grad is not None:
                head_grad += errors.t() @ states
        ctx.save_for_backward(hidden_grad, None if head_grad is None else head_grad.to(head.dtype))
        ctx.mark_non_differentiable(losses, added)
        return added.sum(0).sum(), losses, added

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        factor = gradients[0]
        found = [None if saved is None else saved * factor.to(saved.dtype) for saved in ctx.saved_tensors]
        return (*found, None, None, None, None, None, None, None)


def _values_and_slopes(terms: tuple[LossTerm, ...], labels: Labels) -> tuple[Tensor, Tensor, Tensor]:
    """What each term adds [terms, n], and the derivatives of their sum by each label's `loss` and `log_z`, [n] each."""
    inputs = (labels.loss.requires_grad_(), labels.log_z.requires_grad_())
    with torch.enable_grad():
        values = torch.stack([term.of_labels(labels) for term in terms])
        by_loss, by_log_z = torch.autograd.grad(values.sum(), inputs, materialize_grads=True)
    return values.detach(), by_loss, by_log_z


def objective(
    hidden: Tensor, head: Tensor, batch: LayoutBatch, share: HeadShare, max_scales: int, config: LossConfig
) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
    """Σ over terms and labels (float32, differentiable in `hidden` and `head`), the number of labels (int64), and totals.

    `hidden` [L, B, H] for `batch`, `head` [V/tp, H] this process's rows. Results are the same on all processes of the
    share's group; the gradient of `hidden` is this process's summand of it, so `hidden` must come out of Megatron's copy or
    gather to the group, which add the summands up. At most `config.chunk` × V/tp logits exist at a time. The totals, scalars
    float64 by the names of `total_names`: what each term added; by kind of label, plain cross-entropy in nats and how many
    labels there were. Raises IndexError where the batch has more scales than `max_scales`.
    """
    terms = config.all_terms()
    counted = batch.labels != IGNORED
    labels, weights, scale = batch.labels[counted], batch.weights[counted], batch.scale[counted]
    total, losses, added = _ChunkedObjective.apply(
        hidden.transpose(0, 1)[counted],
        head,
        labels,
        weights,
        scale,
        share,
        config.chunk,
        tuple(terms.values()),
        torch.is_grad_enabled(),
    )
    entries = torch.stack([losses, torch.ones_like(losses)], dim=-1).double()
    by_kind = entries.new_zeros(max_scales + 1, 2).index_add_(0, scale, entries)
    values = torch.cat([added.double().sum(1), by_kind.flatten()])
    return total, counted.sum(), dict(zip(total_names(terms, max_scales), values.unbind(), strict=True))


def kinds(max_scales: int) -> list[str]:
    """Kinds of labels: text, and the codes of each scale."""
    return ["text", *(f"image/{scale}" for scale in range(1, max_scales + 1))]


def total_names(terms: Mapping[str, LossTerm], max_scales: int) -> list[str]:
    """Names of what `objective` counts: "term/NAME", then for each kind "nats/KIND" and "labels/KIND"."""
    return [f"term/{name}" for name in terms] + [
        f"{what}/{kind}" for kind in kinds(max_scales) for what in ("nats", "labels")
    ]


def logits_bytes(slots: int, head_rows: int, chunk: int) -> tuple[int, int]:
    """Bytes of the logits of `slots` slots over `head_rows` ids, at once and in chunks.

    Counted as the plain way holds them, each in float32: the logits and their gradient.
    """
    return slots * head_rows * 8, min(slots, chunk) * head_rows * 8
