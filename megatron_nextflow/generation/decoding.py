"""Images scale by scale and words one by one, for a batch of documents beside each other.

An image of K scales takes K forward passes: the prompt with ⟨boi⟩ gives scale 1, and each further pass takes in one scale's
codes, upsampled, and gives all codes of the next (NextFlow, arXiv 2601.02204, section 2). Codes are drawn from the codes
alone and words from the words alone. With guidance a second row runs beside each document: the same image after no prompt
at all, from position 0, as an image that opens a document is in training (our choice). Every document has a generator of
its own, so what it draws does not depend on its neighbours; their number can change the last bits of a matrix product, and
with them a code at a near tie. The cost: all documents of a batch are at the same scale of the same schedule.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from nextflow_tokenize.schedule import Grid, token_count
from nextflow_tokenize.segments import image_slots
from numpy.typing import NDArray

from megatron_nextflow.config.generate import NO_PROMPT, GenerateConfig, GenerationError
from megatron_nextflow.generation.cache import CachedModel
from megatron_nextflow.generation.cost import Work
from megatron_nextflow.generation.growing_document import GrowingDocument, Part
from megatron_nextflow.generation.sampling import draw, guided
from megatron_nextflow.model.nextflow import NextFlowModel

LONG_PROMPT = 256
"""Prompts of more slots are fed in passes of their own, so that no row is padded to them."""

OnScale = Callable[[int, Sequence[NDArray[np.int64]]], None]
"""Called after each scale, counted from 1, with the codes of all scales so far [Σ_{k≤n} hw] of each document."""


class Words(NamedTuple):
    """What is drawn as words: ids below `ids`, which the text tokenizer has; a text ends before the id `stop`.

    Converted weights have more rows than that, and nothing can be read from an id of those.
    """

    ids: int
    stop: int | None = None


@dataclass
class Row:
    """A document, its row of the cache and its generator; `beside`: row and document without the prompt, for guidance."""

    number: int
    document: GrowingDocument
    generator: torch.Generator
    beside: tuple[int, GrowingDocument] | None = None

    @property
    def documents(self) -> dict[int, GrowingDocument]:
        """By row of the cache."""
        return {self.number: self.document, **dict([self.beside] if self.beside else [])}


def draw_images(
    model: NextFlowModel,
    prompts: Sequence[Sequence[Part]],
    schedule: tuple[Grid, ...],
    settings: GenerateConfig,
    extent: float,
    seeds: Sequence[int],
    on_scale: OnScale | None = None,
) -> tuple[list[NDArray[np.int64]], Work]:
    """Codes [Σhw] of one image after each prompt, and what they took; image i draws with `seeds`[i].

    A prompt with nothing in it has nothing to be guided by.
    """
    guiding = [r for r, prompt in enumerate(prompts) if settings.guidance and any(part.slots for part in prompt)]
    # ⟨eoi⟩ is not fed: nothing follows it.
    capacity = max(sum(part.slots for part in prompt) for prompt in prompts) + token_count(schedule)
    cached = CachedModel(model, len(prompts) + len(guiding), capacity)
    rows = [
        Row(r, GrowingDocument(prompt, model.vocabulary, extent), torch.Generator(cached.device).manual_seed(seed))
        for r, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    for place, r in enumerate(guiding, start=len(rows)):
        rows[r].beside = (place, GrowingDocument([], model.vocabulary, extent))
    codes = fill_images(cached, rows, schedule, settings, on_scale)
    return codes, cached.work


def fill_images(
    cached: CachedModel,
    rows: Sequence[Row],
    schedule: tuple[Grid, ...],
    settings: GenerateConfig,
    on_scale: OnScale | None = None,
) -> list[NDArray[np.int64]]:
    """Begin an image in each document and draw all its scales; gives their codes. What was not fed yet is fed before."""
    first, last = cached.model.vocabulary.code_offset, cached.model.vocabulary.size
    documents = {number: document for row in rows for number, document in row.documents.items()}
    for number, document in documents.items():
        if document.slots - document.fed > LONG_PROMPT:
            cached.feed({number: document.unread()})
    hidden = cached.feed({number: document.begin(schedule) for number, document in documents.items()})
    drawn: list[list[NDArray[np.int64]]] = [[] for _ in rows]
    for scale, (height, width) in enumerate(schedule, start=1):
        size, strength = height * width, settings.strength(scale, len(schedule))
        windows = {}
        for row, codes in zip(rows, drawn, strict=True):
            logits = cached.score(hidden[row.number][-size:], first, last)
            if row.beside and strength:
                logits = guided(logits, cached.score(hidden[row.beside[0]][-size:], first, last), strength)
            codes.append(draw(logits, settings.sampling(scale), row.generator).cpu().numpy())
            for number, document in row.documents.items():
                windows[number] = document.grow(codes[-1])
        if on_scale is not None:
            on_scale(scale, [np.concatenate(codes) for codes in drawn])
        if scale < len(schedule):
            hidden = cached.feed({number: window for number, window in windows.items() if window is not None})
    return [np.concatenate(codes) for codes in drawn]


def continue_texts(
    model: NextFlowModel,
    prompts: Sequence[Sequence[Part]],
    most: int,
    words: Words,
    settings: GenerateConfig,
    extent: float,
    seeds: Sequence[int],
) -> tuple[list[list[int]], Work]:
    """Up to `most` text ids after each prompt, one a pass; and what they took.

    A document that has ended takes part in no further pass. Raises GenerationError for a prompt with nothing in it.
    """
    lengths = [sum(part.slots for part in prompt) for prompt in prompts]
    if not all(lengths):
        raise GenerationError(NO_PROMPT)
    # The last token drawn is not fed.
    cached = CachedModel(model, len(prompts), max(lengths) + most - 1)
    rows = [
        Row(r, GrowingDocument(prompt, model.vocabulary, extent), torch.Generator(cached.device).manual_seed(seed))
        for r, (prompt, seed) in enumerate(zip(prompts, seeds, strict=True))
    ]
    hidden: dict[int, torch.Tensor] = {}
    for row in rows:
        if row.document.slots > LONG_PROMPT:
            hidden |= cached.feed({row.number: row.document.unread()})
    found: list[list[int]] = [[] for _ in prompts]
    going = list(rows)
    while going:
        waiting = {row.number: row.document.unread() for row in going if row.document.fed < row.document.slots}
        hidden |= cached.feed(waiting) if waiting else {}
        logits = cached.score(torch.stack([hidden[row.number][-1] for row in going]), 0, words.ids)
        still = []
        for row, scores in zip(going, logits, strict=True):
            token = int(draw(scores[None], settings.text_sampling, row.generator))
            if token != words.stop:
                found[row.number].append(token)
                row.document.add(token)
                still += [row] * (len(found[row.number]) < most)
        going = still
    return found, cached.work


@dataclass(frozen=True)
class Written:
    """Text with images, in order, without its prompt; `ended`: at the end-of-text token, at the most tokens, or where the
    model has seen no longer sequences."""

    parts: tuple[Part, ...]
    ended: str
    work: Work


def write_interleaved(
    model: NextFlowModel,
    prompt: Sequence[Part],
    schedule: tuple[Grid, ...],
    settings: GenerateConfig,
    extent: float,
    seed: int,
    words: Words,
    room: int,
) -> Written:
    """Text after `prompt` in which the model itself begins images, where it draws ⟨boi⟩ among the words.

    An image is drawn whole, ⟨eoi⟩ is given, and text goes on. `room`: slots of the longest sequence the model was trained
    on; an image that would not fit, or is one more than `max_images`, is not begun, for ⟨boi⟩ is then not drawn. Raises
    GenerationError for a prompt with nothing in it.
    """
    document = GrowingDocument(prompt, model.vocabulary, extent)
    if not document.slots:
        raise GenerationError(NO_PROMPT)
    size, boi = image_slots(schedule), model.vocabulary.boi
    capacity = min(room, document.slots + settings.max_tokens + settings.max_images * size)
    cached = CachedModel(model, 2 if settings.guidance else 1, capacity)
    row = Row(0, document, torch.Generator(cached.device).manual_seed(seed))
    written = images = 0
    ended = "max_tokens"
    while written < settings.max_tokens:
        if document.slots > capacity:
            ended = "room"
            break
        state = cached.feed({0: document.unread()})[0][-1:]
        fits = images < settings.max_images and document.slots + size <= capacity
        logits = cached.score(state, 0, words.ids)
        if fits:
            logits = torch.cat([logits, cached.score(state, boi, boi + 1)], dim=-1)
        token = int(draw(logits, settings.text_sampling, row.generator))
        if token == words.stop:
            ended = "end of text"
            break
        if token < words.ids:
            document.add(token)
            written += 1
            continue
        if settings.guidance:
            row.beside = (1, GrowingDocument([], model.vocabulary, extent))
            cached.cache.clear(1)
        fill_images(cached, [row], schedule, settings)
        images += 1
    return Written(tuple(document.parts[document.given :]), ended, cached.work)
