"""The chunked objective against torch in float64: value, gradients, terms, report, padding of the vocabulary, memory."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from nextflow_tokenize.schedule import grids, token_count
from nextflow_tokenize.segments import ImageSegment, TextSegment
from torch.utils._python_dispatch import TorchDispatchMode

from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.loss_terms.z_loss import ZLoss
from megatron_nextflow.model.loss import HeadShare, logits_bytes, objective
from megatron_nextflow.sequence.batch import LayoutBatch, collate
from megatron_nextflow.sequence.pack_layout import IGNORED, build_pack_layout
from megatron_nextflow.sequence.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=11, codes=20, multiple=8)
SHARE = HeadShare(VOCABULARY.size)
WIDTH = 4


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
        return build_pack_layout(segments, rng.integers(0, 11, 7), *codes, VOCABULARY, n + 10, 64.0, LossConfig(alpha=0.9))

    return collate([pack(True), pack(False)])


def states_and_head(found: LayoutBatch, dtype: torch.dtype = torch.float32) -> tuple[torch.Tensor, torch.Tensor]:
    """Random hidden states [L, B, H] and head [V, H], its padding rows anything."""
    generator = torch.Generator().manual_seed(1)
    b, s = found.labels.shape
    states = torch.randn(s, b, WIDTH, generator=generator).to(dtype)
    head = torch.randn(VOCABULARY.padded, WIDTH, generator=generator).to(dtype)
    return states.requires_grad_(), head.requires_grad_()


def reference(states: torch.Tensor, head: torch.Tensor, found: LayoutBatch) -> torch.Tensor:
    """Each slot's cross-entropy [B, L], float64."""
    logits = (states.double() @ head.double().t())[..., : VOCABULARY.size]
    return torch.nn.functional.cross_entropy(logits.permute(1, 2, 0), found.labels, ignore_index=IGNORED, reduction="none")


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_sum_count_and_report_against_torch(chunk: int) -> None:
    given = batch()
    states, head = states_and_head(given)
    expected = reference(states, head, given)
    total, count, totals = objective(states, head, given, SHARE, 5, LossConfig(chunk=chunk))
    assert total.item() == pytest.approx((expected * given.weights).sum().item(), rel=1e-6)
    # 1 ⟨boi⟩ and 30 codes and 4 words in the first pack, 4 words in the second.
    assert count.item() == 39 and count.dtype == torch.int64
    names = ["text", *(f"image/{scale}" for scale in range(1, 6))]
    assert [totals[f"labels/{name}"].item() for name in names] == [9, 1, 4, 9, 16, 0]
    for kind, name in enumerate(names):
        of_kind = (given.scale == kind) & (given.labels != IGNORED)
        assert totals[f"nats/{name}"].item() == pytest.approx(expected[of_kind].sum().item(), rel=1e-6)
    weighted = expected * given.weights
    for name, of_term in (("text", given.scale == 0), ("image", given.scale > 0)):
        assert totals[f"term/{name}"].item() == pytest.approx(weighted[of_term].sum().item(), rel=1e-6)
    assert not any(value.requires_grad for value in totals.values())


@pytest.mark.parametrize("chunk", [1, 7, 1000])
def test_gradients_are_those_of_the_weighted_sum_and_nothing_reaches_padding(chunk: int) -> None:
    given = batch()
    states, head = states_and_head(given)
    mine = torch.autograd.grad(objective(states, head, given, SHARE, 5, LossConfig(chunk=chunk))[0] * 3, (states, head))
    theirs = torch.autograd.grad((reference(states, head, given) * given.weights).sum() * 3, (states, head))
    for ours, expected in zip(mine, theirs, strict=True):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)
    assert mine[1][VOCABULARY.size :].abs().max() == 0
    assert mine[0].transpose(0, 1)[given.labels == IGNORED].abs().max() == 0


@pytest.mark.parametrize("chunk", [7, 1000])
def test_z_loss_is_palms(chunk: int) -> None:
    """weight · log² Z a label (arXiv 2204.02311, §5), with the gradient that torch finds for it from whole logits."""
    given = batch()
    states, head = states_and_head(given)
    log_z = (states.double() @ head.double().t())[..., : VOCABULARY.size].logsumexp(-1).t()
    squared = 0.01 * log_z.square()[given.labels != IGNORED].sum()
    loss = LossConfig(chunk=chunk, terms={"z_loss": ZLoss(weight=0.01)})
    total, _, totals = objective(states, head, given, SHARE, 5, loss)
    assert totals["term/z_loss"].item() == pytest.approx(squared.item(), rel=1e-6)
    parts = sum(totals[f"term/{name}"].item() for name in ("text", "image", "z_loss"))
    assert total.item() == pytest.approx(parts, rel=1e-6)
    whole = (reference(states, head, given) * given.weights).sum() + squared
    for ours, expected in zip(
        torch.autograd.grad(total, (states, head)), torch.autograd.grad(whole, (states, head)), strict=True
    ):
        torch.testing.assert_close(ours, expected, atol=1e-5, rtol=1e-5)


def test_a_weight_of_0_changes_no_bit() -> None:
    given = batch()
    states, head = states_and_head(given)
    found = []
    for loss in (LossConfig(chunk=7), LossConfig(chunk=7, terms={"z_loss": ZLoss()})):
        total, *_ = objective(states, head, given, SHARE, 5, loss)
        found.append((total, *torch.autograd.grad(total, (states, head))))
    assert all(torch.equal(plain, with_it) for plain, with_it in zip(*found, strict=True))


def test_bf16_keeps_its_type_and_adds_up_in_float32() -> None:
    given = batch()
    states, head = states_and_head(given, torch.bfloat16)
    total, *_ = objective(states, head, given, SHARE, 5, LossConfig(chunk=7))
    found = torch.autograd.grad(total, (states, head))
    expected = torch.autograd.grad((reference(states, head, given) * given.weights).sum(), (states, head))
    assert total.dtype == torch.float32
    for ours, theirs in zip(found, expected, strict=True):
        assert ours.dtype == torch.bfloat16
        torch.testing.assert_close(ours.float(), theirs.float(), atol=0.05, rtol=0.05)


def test_a_batch_without_labels_costs_nothing_and_still_has_a_gradient() -> None:
    given = batch()
    given.labels.fill_(IGNORED)
    given.weights.zero_()
    states, head = states_and_head(given)
    total, count, totals = objective(states, head, given, SHARE, 5, LossConfig())
    total.backward()
    assert total.item() == 0 and count.item() == 0 and not any(totals.values())
    for gradient in (states.grad, head.grad):
        assert gradient is not None and gradient.abs().max() == 0


def test_what_is_frozen_gets_no_gradient() -> None:
    given = batch()
    states, head = states_and_head(given)
    objective(states, head.detach(), given, SHARE, 5, LossConfig())[0].backward()
    expected = torch.autograd.grad((reference(states, head, given) * given.weights).sum(), states)[0]
    assert states.grad is not None
    torch.testing.assert_close(states.grad, expected, atol=1e-5, rtol=1e-5)
    with torch.no_grad():
        assert not objective(states, head, given, SHARE, 5, LossConfig())[0].requires_grad


class _Largest(TorchDispatchMode):
    """Remembers the largest result of any operation, in elements."""

    def __init__(self) -> None:
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        out = func(*args, **(kwargs or {}))
        for value in out if isinstance(out, tuple | list) else [out]:
            if isinstance(value, torch.Tensor):
                self.elements = max(self.elements, value.numel())
        return out


def test_the_logits_are_never_held_whole() -> None:
    given = batch()
    states, head = states_and_head(given)
    labels = int((given.labels != IGNORED).sum())
    with _Largest() as seen:
        objective(states, head, given, SHARE, 5, LossConfig(chunk=4))[0].backward()
    assert seen.elements < labels * VOCABULARY.padded / 2
    with _Largest() as whole:
        objective(states, head, given, SHARE, 5, LossConfig(chunk=labels))[0].backward()
    assert whole.elements == labels * VOCABULARY.padded
    assert logits_bytes(10_000, 1000, 1024) == (80_000_000, 8_192_000)
