"""The weighted loss against torch's cross-entropy in float64, its gradient, its report, and padding of the vocabulary."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from nextflow_tokenize.schedule import grids, token_count
from nextflow_tokenize.segments import ImageSegment, TextSegment

from megatron_nextflow.layout import IGNORED, LayoutBatch, LayoutConfig, build_layout, collate
from megatron_nextflow.loss import token_losses, weighted_loss
from megatron_nextflow.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=11, codes=20, multiple=8)


@pytest.fixture(autouse=True)
def groups() -> Iterator[None]:
    """Megatron's process groups of one process, left as they were found."""
    mine = not parallel_state.model_parallel_is_initialized()
    if mine:
        parallel_state.initialize_model_parallel()
    yield
    if mine:
        parallel_state.destroy_model_parallel()


def batch() -> LayoutBatch:
    """Two packs: text with an image of four scales that counts, and a condition image with text; both padded."""
    schedule = grids((64, 64), 4)
    n = token_count(schedule)
    rng = np.random.default_rng(0)

    def pack(loss: bool) -> LayoutBatch:
        image = ImageSegment(kind="image", doc="a", sha256="", grid=list(schedule[-1]), scales=4, loss=loss)
        segments = [
            TextSegment(kind="text", doc="a", tokens=3, loss=False),
            image,
            TextSegment(kind="text", doc="a", tokens=4, loss=True),
        ]
        codes = rng.integers(0, 20, (2, n))
        return build_layout(segments, rng.integers(0, 11, 7), *codes, VOCABULARY, n + 10, LayoutConfig(scale_alpha=0.9))

    return collate([pack(True), pack(False)])


def logits_for(found: LayoutBatch) -> torch.Tensor:
    b, s = found.labels.shape
    logits = torch.randn(s, b, VOCABULARY.padded, generator=torch.Generator().manual_seed(1))
    logits[..., VOCABULARY.size :] = -torch.inf
    return logits


def test_sum_count_and_report_against_torch() -> None:
    given = batch()
    logits = logits_for(given)
    reference = torch.nn.functional.cross_entropy(
        logits[..., : VOCABULARY.size].double().permute(1, 2, 0), given.labels, ignore_index=IGNORED, reduction="none"
    )
    total, count, by_kind = weighted_loss(logits, given, 6)
    assert total.item() == pytest.approx((reference * given.weights).sum().item(), rel=1e-6)
    # 1 ⟨boi⟩ and 30 codes and 4 words in the first pack, 4 words in the second.
    assert count.item() == 39 and count.dtype == torch.int64
    assert by_kind[:, 1].tolist() == [9, 1, 4, 9, 16, 0]
    for kind in range(6):
        of_kind = (given.scale == kind) & (given.labels != IGNORED)
        assert by_kind[kind, 0].item() == pytest.approx(reference[of_kind].sum().item(), rel=1e-6)
    assert not by_kind.requires_grad


def test_gradient_is_that_of_the_weighted_sum_and_nothing_reaches_padding() -> None:
    given = batch()
    mine, theirs = logits_for(given).requires_grad_(), logits_for(given).requires_grad_()
    weighted_loss(mine * 1.0, given, 5)[0].backward()
    reference = torch.nn.functional.cross_entropy(
        theirs[..., : VOCABULARY.size].permute(1, 2, 0), given.labels, ignore_index=IGNORED, reduction="none"
    )
    (reference * given.weights).sum().backward()
    assert mine.grad is not None and theirs.grad is not None
    torch.testing.assert_close(mine.grad, theirs.grad, atol=1e-6, rtol=1e-5)
    assert mine.grad[..., VOCABULARY.size :].abs().max() == 0
    assert mine.grad.transpose(0, 1)[given.labels == IGNORED].abs().max() == 0


def test_a_batch_without_labels_costs_nothing_and_still_has_a_gradient() -> None:
    given = batch()
    given.labels.fill_(IGNORED)
    given.weights.zero_()
    logits = logits_for(given).requires_grad_()
    total, count, by_kind = weighted_loss(logits * 1.0, given, 5)
    total.backward()
    assert total.item() == 0 and count.item() == 0 and by_kind.abs().sum() == 0
    assert logits.grad is not None and logits.grad.abs().max() == 0


def test_losses_stand_in_the_order_of_the_labels() -> None:
    labels = torch.tensor([[3, IGNORED], [IGNORED, 1]])
    logits = torch.zeros(2, 2, 4)
    logits[0, 0, 3] = logits[1, 1, 1] = 50
    assert token_losses(logits, labels).tolist() == [[0, 0], [0, 0]]
    assert token_losses(torch.zeros(2, 2, 4), labels)[0, 0].item() == pytest.approx(np.log(4))
