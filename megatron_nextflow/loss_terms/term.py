"""The socket of the loss's terms, and what a term is: a section of `train.loss.terms` that says what each label adds.

    @loss_terms.register("my_term")
    class MyTerm(LossTerm):
        weight: float = 0.0
        def of_labels(self, labels: Labels) -> Tensor:
            return self.weight * labels.log_z.abs()

That is all: its name is a key of the recipe and of the metrics, its settings are checked where the recipe is, and its
gradient is found by torch from what it returns. Logits are never whole (see `model.loss`), so a term sees of them, a label,
its own cross-entropy and the logarithm of the softmax's normaliser, of which any function gives a gradient to all logits:
∂f/∂loss · (softmax − one-hot) + ∂f/∂log Z · softmax. The cost: what needs other logits than the label's own is no such term.
Settings are read where there is no torch, so a term imports none at its file's head.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING

from nextflow_data.common.section import Section
from nextflow_data.common.sockets import Socket

if TYPE_CHECKING:
    from torch import Tensor


@dataclass(frozen=True)
class Labels:
    """Some labels of a batch, n of them; the same on all processes of a tensor-parallel group.

    `loss` [n] float32: cross-entropy, nats, differentiable. `log_z` [n] float32: log Σ exp of the logits over the whole
    vocabulary, differentiable. `weights` [n] float32: the pack layout's. `scale` [n] int64: 0 for text, k for a code of
    scale k.
    """

    loss: Tensor
    log_z: Tensor
    weights: Tensor
    scale: Tensor


class LossTerm(Section):
    """A term of the objective, which is Σ over terms and labels, divided by the number of labels of the global batch."""

    @abstractmethod
    def of_labels(self, labels: Labels) -> Tensor:
        """What each label adds, [n] float32: a differentiable function of its `loss` and `log_z`, label by label."""


loss_terms: Socket[type[LossTerm]] = Socket("term of the loss", "megatron_nextflow.loss_terms", "nextflow.loss_terms")
