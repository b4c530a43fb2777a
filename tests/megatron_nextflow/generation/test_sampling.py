"""Sampling rules: what each lets through, and that draws follow the seed and the probabilities."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from megatron_nextflow.config.generate import GenerateConfig, GenerationError, Sampling
from megatron_nextflow.generation.sampling import draw, filtered, guided

LOGITS = st.lists(st.floats(-8, 8, width=32), min_size=1, max_size=12)


@settings(max_examples=200, deadline=None)
@given(LOGITS, st.integers(0, 15), st.floats(0.01, 1), st.floats(0.1, 4))
def test_what_is_left_is_the_smallest_set_of_the_most_probable(
    values: list[float], top_k: int, top_p: float, temperature: float
) -> None:
    logits = torch.tensor([values])
    sampling = Sampling(temperature, top_k, top_p)
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
    found = draw(logits, Sampling(temperature=5, top_k=1), torch.Generator().manual_seed(1))
    assert torch.equal(found, logits.argmax(-1))


def test_a_seed_gives_the_same_draws_and_another_seed_others() -> None:
    logits = torch.randn(100, 30, generator=torch.Generator().manual_seed(0))
    one, same, other = (draw(logits, Sampling(), torch.Generator().manual_seed(s)) for s in (3, 3, 4))
    assert torch.equal(one, same) and not torch.equal(one, other)


def test_draws_follow_the_probabilities() -> None:
    logits = torch.tensor([0.5, 0.3, 0.15, 0.05]).log().expand(20_000, 4)
    counts = draw(logits, Sampling(), torch.Generator().manual_seed(0)).bincount(minlength=4) / 20_000
    # Four standard deviations of a frequency of 20,000 draws are below 0.0142.
    torch.testing.assert_close(counts, torch.tensor([0.5, 0.3, 0.15, 0.05]), atol=0.0142, rtol=0)
    cut = draw(logits, Sampling(top_p=0.7), torch.Generator().manual_seed(0)).bincount(minlength=4)
    assert cut[2:].sum() == 0 and cut[1] > 0


def test_guidance_rises_from_none_to_full() -> None:
    """VAR: t = cfg · k/(K−1) for k = 0…K−1, logits = (1 + t) · conditional − t · unconditional."""
    conditional, unconditional = torch.tensor([[2.0, 0.0]]), torch.tensor([[1.0, 1.0]])
    rising = GenerateConfig(guidance=4)
    assert torch.equal(guided(conditional, unconditional, rising.strength(1, 5)), conditional)
    assert guided(conditional, unconditional, rising.strength(2, 5)).tolist() == [[3.0, -1.0]]
    assert guided(conditional, unconditional, rising.strength(5, 5)).tolist() == [[6.0, -4.0]]
    assert rising.strength(1, 1) == 0
    assert [GenerateConfig(guidance=4, guidance_schedule="constant").strength(k, 5) for k in (1, 5)] == [4, 4]


def test_settings_by_scale_hold_for_the_rest_and_words_take_the_first() -> None:
    config = GenerateConfig.of({"top_k": (100, 10), "temperature": 0.5, "top_p": [1.0, 0.9, 0.8], "text_top_p": 0.7})
    found = [config.sampling(scale) for scale in (1, 2, 3, 8)]
    assert found == [(0.5, 100, 1.0), (0.5, 10, 0.9), (0.5, 10, 0.8), (0.5, 10, 0.8)]
    assert config.text_sampling == (0.5, 100, 0.7)
    assert GenerateConfig.model_validate_json(config.model_dump_json()) == config
    assert config.model_dump(mode="json", include={"top_k", "temperature"}) == {"temperature": 0.5, "top_k": [100, 10]}
    assert GenerateConfig.of({"top_k": "5,0", "temperature": "0.5", "aspect": "16:9"}).sampling(2) == (0.5, 0, 0.95)


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ({"temperature": 0}, "temperature: Input should be greater than 0"),
        ({"top_p": [0.5, 1.5]}, "top_p: Input should be less than or equal to 1"),
        ({"top_k": "1,many"}, "top_k: Input should be a valid integer"),
        ({"top_k": []}, "top_k: a list by scale needs at least one number"),
        ({"top_k": [1] * 9}, "top_k lists 9 numbers, an image of level 128 has 8 scales"),
        ({"level": 300}, "level: Input should be 128, 256, 512 or 1024"),
        ({"aspect": "16:0"}, "aspect: '16:0' is not a ratio: write width:height"),
        ({"aspect": 969}, "aspect: 969 is no height over width, about 0.25 to 4; 16:9 needs quotes"),
        ({"aspect": "wide"}, "aspect: Input should be a valid number"),
        ({"tempreature": 1}, "tempreature: Extra inputs are not permitted"),
    ],
)
def test_a_wrong_setting_is_named_in_one_line(bad: dict[str, object], message: str) -> None:
    with pytest.raises(GenerationError) as error:
        GenerateConfig.of(bad)
    assert str(error.value).startswith(message) and "\n" not in str(error.value)


def test_a_ratio_in_words_is_width_to_height() -> None:
    assert GenerateConfig.of({"aspect": "16:9"}).aspect == GenerateConfig(aspect=9 / 16).aspect
    assert GenerateConfig().aspect is None


@pytest.mark.parametrize("bad", [{"temperature": 0}, {"top_p": 0}, {"top_p": 1.1}, {"top_k": -1}, {"guidance": -1}])
def test_settings_without_meaning_are_refused(bad: dict[str, float]) -> None:
    with pytest.raises(ValidationError):
        GenerateConfig(**bad)  # type: ignore[arg-type]
