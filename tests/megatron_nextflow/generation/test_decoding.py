"""Decoding on a real (tiny, random) Megatron model: cached passes against whole ones, batches, words and images in turn."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
import torch
from nextflow_tokenize.packing.cost import attended_pairs
from nextflow_tokenize.schedule import Grid, canonical_final, grids, token_count
from nextflow_tokenize.segments import ImageSegment, TextSegment
from numpy.typing import NDArray

from megatron_nextflow.config.generate import GenerateConfig, GenerationError
from megatron_nextflow.config.loss import LossConfig
from megatron_nextflow.config.model import ModelConfig
from megatron_nextflow.config.train import TrainConfig
from megatron_nextflow.generation.cache import CachedModel, KeyValueCache
from megatron_nextflow.generation.cost import Work
from megatron_nextflow.generation.decoding import LONG_PROMPT, Words, continue_texts, draw_images, write_interleaved
from megatron_nextflow.generation.growing_document import GrowingDocument, ImagePart, Part, TextPart, layout_of
from megatron_nextflow.generation.sampling import draw, guided
from megatron_nextflow.model.attention import BlockRangeParams
from megatron_nextflow.model.initialise import initialise
from megatron_nextflow.model.layer_spec import transformer_config
from megatron_nextflow.model.nextflow import NextFlowModel
from megatron_nextflow.sequence.batch import collate
from megatron_nextflow.sequence.pack_layout import build_pack_layout
from megatron_nextflow.sequence.vocabulary import Vocabulary
from megatron_nextflow.step.process_groups import start_parallel

VOCABULARY = Vocabulary(text=40, codes=24)
CODES = slice(VOCABULARY.code_offset, VOCABULARY.size)
IDS = 31
"""Ids of the text tokenizer, where the vocabulary has 40 rows for text."""
EXTENT = 64.0
Schedule = tuple[Grid, ...]


def built(width: torch.dtype = torch.float32) -> NextFlowModel:
    config = TrainConfig(
        model=ModelConfig(hidden_size=48, layers=3, heads=4, query_groups=2, ffn_size=96, init_std=0.3, seed=5)
    )
    start_parallel(config)
    codebook = torch.nn.functional.normalize(torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), dim=-1)
    model = NextFlowModel(transformer_config(config), config.model, VOCABULARY, codebook)
    initialise(model.sharded_state_dict(), config.model)
    return model.to(width).eval()


@pytest.fixture(scope="module")
def model() -> NextFlowModel:
    return built()


@pytest.fixture(scope="module")
def exact() -> NextFlowModel:
    """The same model in float64, in which no processor's order of sums can be seen."""
    return built(torch.float64)


def schedule_ending(final: Grid, scales: int) -> Schedule:
    return grids(canonical_final(final, scales), scales)


def image(schedule: Schedule, seed: int) -> ImagePart:
    return ImagePart(schedule, np.random.default_rng(seed).integers(0, 24, token_count(schedule)))


def by_scale(part: ImagePart) -> list[NDArray[np.int64]]:
    return np.split(part.codes, np.cumsum([h * w for h, w in part.grids])[:-1])


@torch.no_grad()
def whole(model: NextFlowModel, parts: Sequence[Part]) -> torch.Tensor:
    """Logits [slots, ids] of one pass over everything."""
    batch = collate([layout_of(parts, VOCABULARY, EXTENT)])
    return model(batch, BlockRangeParams.of(batch.visible))[:, 0, : VOCABULARY.size]


def feed_whole_document(model: NextFlowModel, given: Sequence[list[Part]], made: Sequence[ImagePart]) -> list[torch.Tensor]:
    """Every slot's logits: each row's prompt and image block by block, then ⟨eoi⟩ and two words, one a pass."""
    cached = CachedModel(model, len(given), 400)
    documents = {row: GrowingDocument(parts, VOCABULARY, EXTENT) for row, parts in enumerate(given)}
    pieces = [cached.feed({row: document.begin(made[row].grids) for row, document in documents.items()})]
    for codes in zip(*map(by_scale, made), strict=True):
        windows = {row: document.grow(codes[row]) for row, document in documents.items()}
        if all(windows.values()):
            pieces.append(cached.feed(windows))  # type: ignore[arg-type]
    for word in (7, 9):
        for document in documents.values():
            document.add(word)
        pieces.append(cached.feed({row: document.unread() for row, document in documents.items()}))
    return [cached.score(torch.cat([piece[row] for piece in pieces]), 0, VOCABULARY.size) for row in documents]


def test_cached_logits_equal_those_of_one_whole_pass(exact: NextFlowModel) -> None:
    """Text, image, text, an image scale by scale, words: teacher-forced, four rows of other lengths, every slot."""
    tall, wide = schedule_ending((128, 32), 5), schedule_ending((48, 84), 6)
    given: list[list[Part]] = [
        [TextPart((3, 1, 4)), image(tall, 0), TextPart((1, 5))],
        [TextPart((9,))],
        [],
        [image(grids((64, 64), 4), 1), image(tall, 2), TextPart((2, 6, 5, 3, 5, 8))],
    ]
    made = [image(wide, 10 + row) for row in range(4)]
    found = feed_whole_document(exact, given, made)
    for parts, drawn, logits in zip(given, made, found, strict=True):
        expected = whole(exact, [*parts, drawn, TextPart((7, 9))])
        assert logits.shape == expected.shape
        torch.testing.assert_close(logits, expected.float(), atol=1e-6, rtol=1e-6)


def test_a_row_may_stand_still_or_begin_anew(exact: NextFlowModel) -> None:
    texts = [[1, 2, 3, 4], [5, 6], [7, 8, 9]]
    cached = CachedModel(exact, 3, 8)
    documents = {row: GrowingDocument([TextPart(tuple(ids))], VOCABULARY, EXTENT) for row, ids in enumerate(texts)}
    cached.feed({row: document.unread() for row, document in documents.items()})
    for row in (0, 2):  # rows that are no neighbours
        documents[row].add(11)
    found = cached.feed({row: documents[row].unread() for row in (0, 2)})
    for row in (0, 2):
        expected = whole(exact, [TextPart((*texts[row], 11))])[-1:].float()
        torch.testing.assert_close(cached.score(found[row], 0, VOCABULARY.size), expected, atol=1e-6, rtol=1e-6)
    cached.cache.clear(1)
    again = cached.feed({1: GrowingDocument([TextPart((4, 4))], VOCABULARY, EXTENT).unread()})[1]
    torch.testing.assert_close(
        cached.score(again, 0, 40), whole(exact, [TextPart((4, 4))])[:, :40].float(), atol=1e-6, rtol=1e-6
    )


def test_a_cache_that_would_overflow_is_refused() -> None:
    cache = KeyValueCache(2, 4)
    cache.begin({0: 4, 1: 1})
    cache.commit()
    with pytest.raises(ValueError, match="do not fit"):
        cache.begin({0: 1})


def uncached_image(
    model: NextFlowModel, prompt: Sequence[Part], schedule: Schedule, settings: GenerateConfig, generator: torch.Generator
) -> NDArray[np.int64]:
    """All of an image's scales with a whole pass for each, with the prompt and without."""
    sizes = [h * w for h, w in schedule]
    codes = np.zeros(sum(sizes), np.int64)
    before = sum(part.slots for part in prompt)
    for k, size in enumerate(sizes):
        first = sum(sizes[:k])
        rows = [
            whole(model, [*parts, ImagePart(schedule, codes)])[n + first :][:size, CODES]
            for parts, n in ((prompt, before), ([], 0))
        ]
        logits = guided(rows[0], rows[1], settings.guidance * k / (len(sizes) - 1))
        codes[first : first + size] = draw(logits, settings.sampling(k + 1), generator).numpy()
    return codes


def test_greedy_codes_are_those_of_uncached_passes(model: NextFlowModel) -> None:
    """Conditional and not, guided as VAR does; the prompt with an image in it."""
    schedule, settings = grids((64, 64), 5), GenerateConfig(top_k=1, guidance=2.0)
    prompt = [TextPart((3, 1, 4)), image(schedule_ending((48, 84), 4), 3)]
    (found,), work = draw_images(model, [prompt], schedule, settings, EXTENT, [0])
    assert found.tolist() == uncached_image(model, prompt, schedule, settings, torch.Generator()).tolist()
    assert len(set(found.tolist())) > 3, "a random model should not give one code everywhere"
    assert work.passes == 5


def test_work_is_counted_exactly(model: NextFlowModel) -> None:
    """Pairs by the arithmetic that packs are priced with; ⟨eoi⟩ is not fed, and without guidance there is one row."""
    schedule = schedule_ending((48, 84), 6)
    settings = GenerateConfig(guidance=0)
    _, work = draw_images(model, [[TextPart((1, 2, 3))]], schedule, settings, EXTENT, [0])
    segments = [
        TextSegment(kind="text", doc="a", tokens=3, loss=True),
        ImageSegment(kind="image", doc="a", sha256="", grid=list(schedule[-1]), scales=6, loss=True),
    ]
    codes = token_count(schedule)
    assert work == Work(6, 3 + codes, attended_pairs(segments) - (3 + codes + 1), codes * 24)  # type: ignore[arg-type]


def test_an_image_of_a_batch_is_the_image_drawn_alone(model: NextFlowModel) -> None:
    """Rows of different lengths, one without a prompt and one with a prompt of its own pass, all with their own draws."""
    schedule, settings = grids((32, 128), 6), GenerateConfig(top_k=(20, 10))
    prompts: list[list[Part]] = [
        [TextPart((1, 2))], [TextPart((1, 2))], [], [TextPart((7,) * (LONG_PROMPT + 1))],
        [TextPart((5,)), image(grids((64, 64), 4), 0)],
    ]  # fmt: skip
    seeds = [1, 2, 1, 1, 3]
    shown: list[tuple[int, list[int]]] = []
    together, _ = draw_images(
        model, prompts, schedule, settings, EXTENT, seeds, lambda scale, codes: shown.append((scale, list(map(len, codes))))
    )
    for prompt, seed, codes in zip(prompts, seeds, together, strict=True):
        (alone,), _ = draw_images(model, [prompt], schedule, settings, EXTENT, [seed])
        assert np.array_equal(codes, alone)
    assert all(codes.shape == (token_count(schedule),) and codes.min() >= 0 and codes.max() < 24 for codes in together)
    assert len({codes.tobytes() for codes in together}) == 5
    assert shown == [(k, [token_count(schedule[:k])] * 5) for k in range(1, 7)]


def test_guidance_and_sampling_follow_the_scale(model: NextFlowModel) -> None:
    """A rising guidance leaves scale 1 alone, a constant one does not; greedy scales follow from those before."""
    schedule, prompt = grids((64, 64), 4), [TextPart((3, 1, 4))]

    def drawn(**settings: object) -> list[list[int]]:
        wild = GenerateConfig.of({"temperature": (8, 1), "top_k": (0, 1), "top_p": (1,)} | settings)
        return [codes.tolist() for codes in draw_images(model, [prompt] * 5, schedule, wild, EXTENT, range(5))[0]]

    plain, rising, constant = drawn(guidance=0), drawn(guidance=9), drawn(guidance=9, guidance_schedule="constant")
    assert [codes[0] for codes in rising] == [codes[0] for codes in plain] and rising != plain
    assert [codes[0] for codes in constant] != [codes[0] for codes in plain]
    again = drawn(guidance=0, seed=5)
    assert again == plain and len({codes[0] for codes in plain}) > 2
    by_first = {codes[0]: codes for codes in plain}
    assert all(by_first[codes[0]] == codes for codes in plain)


def test_continuations_are_text_only_and_equal_whole_passes(model: NextFlowModel) -> None:
    """Beside each other, of different lengths, one after an image; one ends early and the others go on."""
    prompts: list[list[Part]] = [[TextPart((5, 6, 7))], [TextPart((8,)), image(grids((64, 64), 4), 5)], [TextPart((9, 9))]]
    greedy = GenerateConfig(top_k=1)
    found, _ = continue_texts(model, prompts, 6, Words(IDS), greedy, EXTENT, [0, 0, 0])
    for prompt, ids in zip(prompts, found, strict=True):
        assert len(ids) == 6
        for n, token in enumerate(ids):
            assert token == int(whole(model, [*prompt, TextPart(tuple(ids[:n]))])[-1, :IDS].argmax())
    stop = found[0][2]
    ended, _ = continue_texts(model, prompts, 6, Words(IDS, stop), greedy, EXTENT, [0, 0, 0])
    assert ended == [ids[: ids.index(stop)] if stop in ids else ids for ids in found]
    (drawn,), _ = continue_texts(model, [prompts[0]], 60, Words(IDS), GenerateConfig(text_temperature=10), EXTENT, [0])
    assert len(drawn) == 60 and max(drawn) < IDS
    with pytest.raises(GenerationError, match="at least a word or an image"):
        continue_texts(model, [[TextPart(())]], 5, Words(IDS), greedy, EXTENT, [0])


def test_text_with_images_equals_whole_passes_with_the_same_draws(model: NextFlowModel) -> None:
    """Words over the tokenizer's ids and ⟨boi⟩; an image where it is drawn; ⟨eoi⟩ given; and on."""
    schedule = grids((64, 64), 3)
    settings = GenerateConfig(text_temperature=8, text_top_k=0, text_top_p=1, top_k=5, max_tokens=50, max_images=2)
    prompt: list[Part] = [TextPart((1, 2)), image(schedule, 7)]
    seed = 1
    found = write_interleaved(model, prompt, schedule, settings, EXTENT, seed, Words(IDS), 500)
    generator = torch.Generator().manual_seed(seed)
    parts, words, images = list(prompt), 0, 0
    while words < 50:
        ids = [*range(IDS), *([VOCABULARY.boi] if images < 2 else [])]
        token = int(draw(whole(model, parts)[-1:, ids], settings.text_sampling, generator))
        if token == IDS:
            parts.append(ImagePart(schedule, uncached_image(model, parts, schedule, settings, generator)))
            images += 1
        else:
            parts.append(TextPart((token,)))
            words += 1
    assert images == 2, "this seed is to begin as many images as it may"
    flat = [(p.ids if isinstance(p, TextPart) else (tuple(p.codes.tolist()),)) for p in found.parts]
    assert [x for ids in flat for x in ids] == [
        x for p in parts[2:] for x in (p.ids if isinstance(p, TextPart) else (tuple(p.codes.tolist()),))
    ]
    assert found.ended == "max_tokens"


def test_text_with_images_ends_where_training_ended(model: NextFlowModel) -> None:
    """No image is begun that would not fit, and no slot is fed beyond the longest sequence of training."""
    schedule = grids((64, 64), 3)
    settings = GenerateConfig(text_temperature=8, text_top_p=1, max_tokens=50, max_images=9, guidance=0)
    prompt = [TextPart((1, 2))]
    found = write_interleaved(model, prompt, schedule, settings, EXTENT, 4, Words(40), 40)
    slots = 2 + sum(part.slots for part in found.parts)
    assert found.ended == "room" and slots == 41 and found.work.slots == 40
    assert 1 <= sum(isinstance(part, ImagePart) for part in found.parts) <= 2
    (text,) = write_interleaved(model, prompt, schedule, settings, EXTENT, 4, Words(40), 16).parts
    assert isinstance(text, TextPart) and len(text.ids) == 15
    stop = next(token for token in text.ids if token != text.ids[0])
    stopped = write_interleaved(model, prompt, schedule, settings, EXTENT, 4, Words(40, stop), 16)
    assert stopped.ended == "end of text" and stopped.parts == (TextPart(text.ids[: text.ids.index(stop)]),)


def test_a_document_is_laid_out_as_a_pack_of_training_is() -> None:
    """The same segments, text and codes through the trainer's own call."""
    schedule = schedule_ending((48, 84), 6)
    part = image(schedule, 0)
    segments = [
        TextSegment(kind="text", doc="a", tokens=2, loss=True),
        ImageSegment(kind="image", doc="a", sha256="", grid=list(schedule[-1]), scales=6, loss=True),
        TextSegment(kind="text", doc="a", tokens=1, loss=True),
    ]
    slots = token_count(schedule) + 4
    trained = build_pack_layout(
        segments, np.array([3, 1, 4]), part.codes, part.codes, VOCABULARY, slots, EXTENT, LossConfig()
    )  # type: ignore[arg-type]
    found = layout_of([TextPart((3, 1)), part, TextPart((4,))], VOCABULARY, EXTENT)
    for name in ("token_ids", "is_vision", "scale", "num_scales", "positions", "visible"):
        assert np.array_equal(getattr(found, name), getattr(trained, name)), name
    with pytest.raises(GenerationError, match="canonical"):
        layout_of([image(grids((48, 84), 6), 0)], VOCABULARY, EXTENT)
