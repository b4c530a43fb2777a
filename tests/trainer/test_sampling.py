"""Sampling rules: what each lets through, and that draws follow the seed and the probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_nextflow.generate_config import GenerateConfig
from megatron_nextflow.sampling import draw, filtered, guided

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(LOGITS, st.integers(0, 15), st.floats(0.01, 1), st.floats(0.1, 4))
def test_what_is_left_is_the_smallest_set_of_the_most_probable(
    values: list[float], top_k: int, top_p: float, temperature: float
) -> None:
    logits = torch.tensor([values])
    sampling = GenerateConfig(top_k=top_k, top_p=top_p, temperature=temperature)
    found = filtered(logits, sampling)[0]
    kept = [i for i in range(len(values)) if found[i] > -torch.inf]
    ranked = sorted(range(len(values)), key=lambda i: (-values[i], i))[: top_k or len(values)]
    assert sorted(ranked[: len(kept)]) == kept and kept
    for i in kept:
        assert found[i].item() == pytest.approx(values[i] / temperature, rel=1e-6, abs=1e-6)
    weights = torch.tensor([values[i] / temperature for i in ranked], dtype=torch.float64).softmax(0)
    mass = weights[: len(kept)].sum().item()
    assert mass >= top_p - 1e-5
    if len(kept) > 1:
        assert mass - weights[len(kept) - 1].item() < top_p + 1e-5


def test_top_k_1_is_greedy_whatever_the_temperature() -> None:
    logits = torch.randn(50, 30, generator=torch.Generator().manual_seed(0))
    found = draw(logits, GenerateConfig(top_k=1, temperature=5), torch.Generator().manual_seed(1))
    assert torch.equal(found, logits.argmax(-1))


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    logits = torch.randn(100, 30, generator=torch.Generator().manual_seed(0))
    one, same, other = (draw(logits, GenerateConfig(top_p=1), torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, 4)
    counts = draw(logits, GenerateConfig(top_p=1), torch.Generator().manual_seed(0)).bincount(minlength=4) / 20_000
    # Four standard deviations of a frequency of 20,000 draws are below 0.0142.
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.0142, rtol=0)
    cut = draw(logits, GenerateConfig(top_p=0.7), torch.Generator().manual_seed(0)).bincount(minlength=4)
    assert cut[2:].sum() == 0 and cut[1] > 0


def test_guidance_rises_from_none_to_full() -> None:
    """VAR: t = cfg · k/(K−1) for k = 0…K−1, logits = (1 + t) · conditional − t · unconditional."""
    conditional, unconditional = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    assert torch.equal(guided(conditional, unconditional, 4, 1, 5), conditional)
    assert guided(conditional, unconditional, 4, 2, 5).tolist() == [[3.0, -1.0]]
    assert guided(conditional, unconditional, 4, 5, 5).tolist() == [[6.0, -4.0]]
    assert torch.equal(guided(conditional, unconditional, 4, 1, 1), conditional)


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"guidance": -1}])
def test_settings_without_meaning_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GenerateConfig(**bad)  # type: ignore[arg-type]
