"""Documents and packs with the lengths of a real mixture and random content, for benchmarks of the trainer.

Speed depends on how long texts and images are, not on what they say. Texts have 64 to 1,024 tokens (log-uniform, our
choice); images the schedule of their level.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from nextflow_tokenize.schedule import LEVEL_SCALES, grids, token_count
from nextflow_tokenize.segments import ImageSegment, Segment, TextSegment, slots_of

from megatron_nextflow.sequence.pack_layout import PackLayout, build_pack_layout
from megatron_nextflow.sequence.vocabulary import Vocabulary


@dataclass(frozen=True)
class Document:
    """A text of `words` tokens, and behind it an image of each of `levels`."""

    words: int
    levels: tuple[int, ...] = ()

    def segments(self, name: str) -> list[Segment]:
        """As a shard has them."""
        found: list[Segment] = [TextSegment(kind="text", doc=name, tokens=self.words, loss=True)]
        for level in self.levels:
            schedule = grids((64, 64), LEVEL_SCALES[level])
            grid, scales = list(schedule[-1]), len(schedule)
            found.append(ImageSegment(kind="image", doc=name, sha256="", grid=grid, scales=scales, loss=True))
        return found

    @property
    def codes(self) -> int:
        """Codes of all its images."""
        return sum(token_count(grids((64, 64), LEVEL_SCALES[level])) for level in self.levels)

    @property
    def slots(self) -> int:
        """Slots it takes."""
        return slots_of(self.segments(""))


def documents(count: int, levels: Sequence[int], seed: int, text_only: float = 0.4) -> list[Document]:
    """`count` documents: a share `text_only` of text alone, the others with one image of one of `levels`."""
    rng = np.random.default_rng(seed)
    words = np.exp(rng.uniform(np.log(64), np.log(1024), count)).astype(int)
    return [
        Document(int(n), () if rng.random() < text_only else (int(levels[int(rng.integers(len(levels)))]),)) for n in words
    ]


def layout_of(pack: Sequence[Document], vocabulary: Vocabulary, seed: int = 0, length: int | None = None) -> PackLayout:
    """The layout of documents end to end, with random ids and codes, padded to `length` slots where that is given."""
    rng = np.random.default_rng(seed)
    segments = [segment for number, one in enumerate(pack) for segment in one.segments(str(number))]
    words, codes = sum(one.words for one in pack), sum(one.codes for one in pack)
    text, given = rng.integers(0, vocabulary.text, words), rng.integers(0, vocabulary.codes, (2, codes))
    return build_pack_layout(segments, text, given[0], given[1], vocabulary, length or slots_of(segments))
