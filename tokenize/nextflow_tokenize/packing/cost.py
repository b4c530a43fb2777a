"""What a pack costs in FLOPs: a linear part a slot and an attention part an attended pair.

NextFlow (arXiv 2601.02204, section 4) precomputes the FLOPs of every sequence length and packs to equal compute. A length is
not enough here, because attention sees only its own document and is bidirectional within a scale, so the attended pairs are
counted exactly from the segments. The cost of that choice: a pack's cost depends on how its documents are laid out, and
every reader that recomputes it must use this module.
"""

from __future__ import annotations

from collections.abc import Iterable
from functools import lru_cache
from itertools import groupby

from nextflow_tokenize.config.pack import CostModel
from nextflow_tokenize.schedule import Grid, schedule_of
from nextflow_tokenize.segments import Segment, slots


def flops_per_slot(model: CostModel) -> int:
    """FLOPs of one slot through all layers and the output head, attention products apart.

    2 FLOPs a multiply-add over the weights: query and output projections, key and value projections, the feed-forward
    matrices (three when gated), and the head; times `model.passes`. Norms, rotations and softmax are left out, as is usual.
    """
    h, kv = model.hidden_size, model.query_groups * model.channels
    q = model.heads * model.channels
    layer = 2 * h * q + 2 * h * kv + (3 if model.gated else 2) * h * model.ffn_hidden_size
    return 2 * model.passes * (model.layers * layer + h * model.vocabulary)


def flops_per_pair(model: CostModel) -> int:
    """FLOPs of one (query, key) pair over all layers and heads: 2 for score and 2 for value a channel, times `passes`."""
    return 4 * model.passes * model.layers * model.heads * model.channels


@lru_cache(maxsize=4096)
def image_pairs(grid: Grid, scales: int) -> int:
    """Attended pairs of an image that begins a document.

    Blocks: ⟨boi⟩, each scale from the second on, ⟨eoi⟩; a block of b slots that begins at slot o of its document attends
    b·(o + b) pairs. An image at offset o adds o for each of its slots.
    """
    pairs, offset = 0, 0
    for block in (1, *(h * w for h, w in schedule_of(grid, scales)[1:]), 1):
        pairs += block * (offset + block)
        offset += block
    return pairs


def text_pairs(tokens: int) -> int:
    """Attended pairs of a text that begins a document: n(n+1)/2, each token seeing itself and what precedes it."""
    return tokens * (tokens + 1) // 2


def attended_pairs(segments: Iterable[Segment]) -> int:
    """(query, key) pairs that the attention of a pack computes: exact, an integer.

    Consecutive segments of one `doc` are one document; a query sees from its document's first slot to its own block's last.
    """
    pairs = 0
    for _, document in groupby(segments, key=lambda segment: segment["doc"]):
        offset = 0
        for segment in document:
            if segment["kind"] == "text":
                own = text_pairs(segment["tokens"])
            else:
                h, w = segment["grid"]
                own = image_pairs((h, w), segment["scales"])
            taken = slots(segment)
            pairs += own + offset * taken
            offset += taken
    return pairs


def cost_of(taken: int, pairs: int, model: CostModel) -> int:
    """FLOPs of `taken` slots and `pairs` attended pairs, an exact integer."""
    return taken * flops_per_slot(model) + pairs * flops_per_pair(model)
