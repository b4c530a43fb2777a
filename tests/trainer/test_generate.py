"""Generation on a real (tiny, random) Megatron model: cached passes, sampling in range, and a checkpoint end to end."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from megatron.core import parallel_state
from nextflow_tokenize.schedule import canonical_final, grids, token_count
from nextflow_tokenize.segments import ImageSegment, TextSegment

from megatron_nextflow.attention import BlockRangeParams
from megatron_nextflow.cache import CachedModel, KeyValueCache, window
from megatron_nextflow.config import ModelConfig, TrainConfig
from megatron_nextflow.generate import GenerationError, continue_ids, document, image_grids_of, sample_codes
from megatron_nextflow.initialise import initialise
from megatron_nextflow.layout import ImageInput, LayoutConfig, build_layout, collate
from megatron_nextflow.model import NextFlowModel
from megatron_nextflow.sampling import Sampling
from megatron_nextflow.spec import transformer_config
from megatron_nextflow.training import start_parallel
from megatron_nextflow.vocabulary import Vocabulary

VOCABULARY = Vocabulary(text=40, codes=24)
LAYOUT = LayoutConfig()


@pytest.fixture(scope="module")
def model() -> Iterator[NextFlowModel]:
    mine = not parallel_state.model_parallel_is_initialized()
    config = TrainConfig(
        model=ModelConfig(hidden_size=48, layers=3, heads=4, query_groups=2, ffn_size=96, init_std=0.3, seed=5)
    )
    if mine:
        start_parallel(config)
    codebook = torch.nn.functional.normalize(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    built = NextFlowModel(transformer_config(config), config.model, VOCABULARY, codebook)
    initialise(built.sharded_state_dict(), config.model)
    yield built.eval()
    if mine:
        parallel_state.destroy_model_parallel()


@torch.no_grad()
def test_cached_logits_equal_those_of_one_whole_pass(model: NextFlowModel) -> None:
    """Two rows of different lengths, each: text, an image, text. Teacher-forced, block by block."""
    schedule = grids(canonical_final((48, 84), 6), 6)
    rng = np.random.default_rng(0)
    n = token_count(schedule)
    codes = rng.integers(0, 24, (2, n))
    layouts = []
    for row, words in enumerate((9, 1)):
        segments = [
            TextSegment(kind="text", doc="a", tokens=words, loss=True),
            ImageSegment(kind="image", doc="a", sha256="", grid=list(schedule[-1]), scales=6, loss=True),
            TextSegment(kind="text", doc="a", tokens=3, loss=True),
        ]
        text = rng.integers(0, 40, words + 3)
        layouts.append(build_layout(segments, text, codes[row], codes[row], VOCABULARY, words + n + 4))
    whole = []
    for layout in layouts:
        batch = collate([layout])
        whole.append(model(batch, BlockRangeParams.of(batch.visible))[:, 0])
    cached = CachedModel(model, 2, max(layout.used for layout in layouts))
    at = [10, 2]
    pieces = [cached.feed([window(layout, 0, a) for layout, a in zip(layouts, at, strict=True)])]
    sizes = [h * w for h, w in schedule]
    for k, (source, target) in enumerate(itertools.pairwise(schedule), start=1):
        start = sum(sizes[: k - 1])
        feeds = [(ImageInput((source, target), row[start : start + sizes[k - 1]]),) for row in codes]
        pieces.append(cached.feed([window(x, a, a + sizes[k], f) for x, a, f in zip(layouts, at, feeds, strict=True)]))
        at = [a + sizes[k] for a in at]
    for _ in range(2):
        pieces.append(cached.feed([window(layout, a, a + 2) for layout, a in zip(layouts, at, strict=True)]))
        at = [a + 2 for a in at]
    assert cached.passes == 6 + 2
    for row, layout in enumerate(layouts):
        assert at[row] == layout.used
        found = torch.cat([piece[row] for piece in pieces])[:, : VOCABULARY.size]
        torch.testing.assert_close(found, whole[row][:, : VOCABULARY.size], atol=1e-5, rtol=1e-5)


@torch.no_grad()
def test_greedy_codes_are_those_of_uncached_passes(model: NextFlowModel) -> None:
    """Every scale's codes from a whole pass over all before it, conditional and not, guided as VAR does."""
    schedule, prompt, guidance = grids((64, 64), 5), [3, 1, 4], 2.0
    found = sample_codes(model, prompt, schedule, Sampling(top_k=1, guidance=guidance), LAYOUT)
    sizes = [h * w for h, w in schedule]
    expected = np.zeros(sum(sizes), np.int64)
    for k in range(5):
        rows = []
        for ids in (prompt, []):
            layout = document(ids, schedule, VOCABULARY, LAYOUT)
            batch = collate([layout])
            (image,) = batch.images
            image.codes[:] = expected
            logits = model(batch, BlockRangeParams.of(batch.visible))[:, 0]
            first = len(ids) + sum(sizes[:k])
            rows.append(logits[first : first + sizes[k], VOCABULARY.code_offset : VOCABULARY.size])
        t = guidance * k / 4
        chosen = ((1 + t) * rows[0] - t * rows[1]).argmax(-1)
        expected[sum(sizes[:k]) : sum(sizes[: k + 1])] = chosen.numpy()
    assert found.tolist() == expected.tolist()
    assert len(set(found.tolist())) > 3, "a random model should not give one code everywhere"


def test_codes_lie_in_the_codebook_and_follow_prompt_and_seed(model: NextFlowModel) -> None:
    schedule = grids((32, 128), 8)
    base = Sampling(seed=1)
    one = sample_codes(model, [1, 2], schedule, base, LAYOUT)
    assert one.shape == (token_count(schedule),) and one.min() >= 0 and one.max() < 24
    assert np.array_equal(one, sample_codes(model, [1, 2], schedule, base, LAYOUT))
    assert not np.array_equal(one, sample_codes(model, [1, 2], schedule, Sampling(seed=2), LAYOUT))
    assert not np.array_equal(one, sample_codes(model, [7, 7, 7], schedule, base, LAYOUT))
    assert len(sample_codes(model, [], grids((64, 64), 1), base, LAYOUT)) == 1


@torch.no_grad()
def test_a_continuation_is_text_only_and_equals_whole_passes(model: NextFlowModel) -> None:
    prompt = [5, 6, 7]
    greedy = continue_ids(model, prompt, 6, None, Sampling(top_k=1), LAYOUT)
    ids = list(prompt)
    for _ in range(6):
        batch = collate([document(ids, None, VOCABULARY, LAYOUT)])
        ids.append(int(model(batch, BlockRangeParams.of(batch.visible))[-1, 0, :40].argmax()))
    assert greedy == ids[3:]
    assert continue_ids(model, prompt, 6, greedy[2], Sampling(top_k=1), LAYOUT) == greedy[: greedy.index(greedy[2])]
    drawn = continue_ids(model, prompt, 60, None, Sampling(temperature=10), LAYOUT)
    assert len(drawn) == 60 and max(drawn) < 40
    with pytest.raises(GenerationError, match="prompt"):
        continue_ids(model, [], 5, None, Sampling(), LAYOUT)


def test_a_schedule_that_no_shard_could_name_is_refused() -> None:
    schedule = grids((48, 84), 6)
    assert schedule != grids(canonical_final((48, 84), 6), 6)
    with pytest.raises(GenerationError, match="canonical"):
        document([1], schedule, VOCABULARY, LAYOUT)


def test_a_cache_that_would_overflow_is_refused() -> None:
    cache = KeyValueCache(2, 4)
    cache.begin([4, 1])
    cache.commit()
    with pytest.raises(ValueError, match="do not fit"):
        cache.begin([1, 1])


@pytest.mark.parametrize(
    ("level", "ratio", "last"), [(128, 1.0, (8, 8)), (256, 0.25, (8, 32)), (1024, 1.0, (64, 64)), (1024, 4.0, (128, 32))]
)
def test_the_schedule_of_a_request(level: int, ratio: float, last: tuple[int, int]) -> None:
    assert image_grids_of(level, ratio)[-1] == last


@pytest.mark.parametrize(("level", "ratio"), [(300, 1.0), (256, 0.0), (256, -1.0), (256, 1e9), (256, float("nan"))])
def test_a_request_outside_the_schedule_is_refused(level: int, ratio: float) -> None:
    with pytest.raises(GenerationError):
        image_grids_of(level, ratio)
