"""Which documents share a pack: sequences within a budget of slots and of FLOPs, planned offline and reproducibly.

The plan needs only each document's shape, a few integers, so one process plans what a cluster then writes. Documents are
ordered by a hash of seed and id, so the plan is the same whatever order or partitioning they arrive in; within a window of
that order pieces are placed best-fit decreasing. The cost: all shapes of a set are in one process's memory (about 300 bytes
a document), and one document changed can move its whole window and what follows it.

Source: NextFlow (arXiv 2601.02204, section 4) packs "with a fixed computation budget", offline. How it fits documents is not
published; best-fit decreasing on two budgets is our choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

import numpy as np
from nextflow_data.document import Decision

from nextflow_tokenize.cost import cost_of, image_pairs, image_slots, text_pairs
from nextflow_tokenize.npy import TEXT_DTYPE
from nextflow_tokenize.pack_config import PackConfig
from nextflow_tokenize.tokenized import TokenizedDocument


@dataclass(frozen=True, slots=True)
class Part:
    """A segment's shape: `text` tokens, or an image of last grid `grid` with `scales` scales (then `text` is 0)."""

    text: int = 0
    grid: tuple[int, int] | None = None
    scales: int = 0

    @property
    def slots(self) -> int:
        """Slots the segment takes."""
        return self.text if self.grid is None else image_slots(self.grid, self.scales)

    @property
    def pairs(self) -> int:
        """Attended pairs if the segment begins its document."""
        return text_pairs(self.text) if self.grid is None else image_pairs(self.grid, self.scales)


@dataclass(frozen=True, slots=True)
class DocumentShape:
    """All that planning needs of a document: its id and the shape of each segment, in order."""

    doc_id: str
    parts: tuple[Part, ...]


@dataclass(frozen=True, slots=True)
class Span:
    """Tokens [start, stop) of the document's text segment number `segment`; for an image [0, 0): always whole."""

    segment: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Piece:
    """A run of a document that goes into one pack whole. A document that fits a pack is its only piece, number 0."""

    doc_id: str
    number: int
    spans: tuple[Span, ...]
    slots: int
    pairs: int
    codes: int


@dataclass(frozen=True, slots=True)
class PackPlan:
    """One pack: its pieces in order, all of different documents; slots and cost in FLOPs."""

    pieces: tuple[Piece, ...]
    slots: int
    cost: int


@dataclass(frozen=True, slots=True)
class PackStatistics:
    """`fill` is used slots / (packs · max_length); `cost_fill` mean cost / budget; `cost_spread` max cost / mean cost."""

    packs: int
    pieces: int
    documents: int
    split_documents: int
    slots: int
    fill: float
    cost_fill: float
    cost_mean: float
    cost_max: float
    cost_spread: float


@dataclass(frozen=True, slots=True)
class Plan:
    """Packs in the order they are to be written, and a decision for each document set aside."""

    packs: tuple[PackPlan, ...]
    decisions: tuple[Decision, ...]
    statistics: PackStatistics


def shape_of(document: TokenizedDocument) -> DocumentShape:
    """The shape of a tokenised document. Raises ValueError for an image whose codes are not Σhw of its schedule."""
    parts = []
    for number, segment in enumerate(document["segments"]):
        if segment["kind"] == "text":
            parts.append(Part(text=len(segment["text"] or ())))
            continue
        (h, w), scales = segment["grid"] or (0, 0), segment["scales"] or 0
        part = Part(grid=(h, w), scales=scales)
        for name in ("input", "target"):
            if (found := len(segment[name] or ())) != part.slots - 1:  # type: ignore[literal-required]
                where = f"document {document['doc_id']}, segment {number}"
                raise ValueError(f"{where}: {found} {name} codes, but grid {h}×{w} at {scales} scales has {part.slots - 1}")
        parts.append(part)
    return DocumentShape(document["doc_id"], tuple(parts))


def budget(config: PackConfig) -> int:
    """FLOPs that a pack may cost: `max_cost`, or `relative_cost` times a text document that fills `max_length`."""
    if config.max_cost is not None:
        return int(config.max_cost)
    return int(config.relative_cost * cost_of(config.max_length, text_pairs(config.max_length), config.cost))


def plan(shapes: Iterable[DocumentShape], config: PackConfig) -> Plan:
    """Every token and image of every document in exactly one pack, or a decision that says why the document is in none.

    No pack exceeds `max_length` slots or the budget of FLOPs, and no pack holds two pieces of one document (they would be
    taken for one, since the mask is bounded by the document). Where a text is cut, the first token after the cut begins a
    piece and is not predicted. Raises ValueError where two documents have one id, and for a budget that
    does not hold one token.
    """
    limit = budget(config)
    if cost_of(1, 1, config.cost) > limit:
        raise ValueError(
            f"a budget of {limit:.3g} FLOPs does not hold one token of this model; raise max_cost or relative_cost"
        )
    ordered = sorted(shapes, key=lambda shape: _hash(config.seed, shape.doc_id))
    for one, other in pairwise(ordered):
        if one.doc_id == other.doc_id:
            raise ValueError(f"two documents have the id {one.doc_id}; duplicates must be removed before packing")
    pieces: list[Piece] = []
    decisions: list[Decision] = []
    documents = split = 0
    for shape in ordered:
        cut, decision = _cut(shape, config, limit)
        pieces += cut
        documents += bool(cut)
        split += len(cut) > 1
        if decision:
            decisions.append(decision)
    bins = _Bins(config, limit)
    for start in range(0, len(pieces), config.window):
        bins.place(pieces[start : start + config.window])
        bins.close(config.open_packs)
    bins.close(0)
    packs = [_finish(members, config) for members in bins.closed]
    packs.sort(key=lambda pack: _hash(config.seed, *(f"{piece.doc_id}/{piece.number}" for piece in pack.pieces)))
    return Plan(tuple(packs), tuple(decisions), _statistics(packs, documents, split, len(pieces), limit, config))


def _hash(seed: int, *names: str) -> bytes:
    return sha256("\n".join((str(seed), *names)).encode()).digest()


def _finish(members: list[Piece], config: PackConfig) -> PackPlan:
    members = sorted(members, key=lambda piece: _hash(config.seed, "order", piece.doc_id))
    slots, pairs = sum(piece.slots for piece in members), sum(piece.pairs for piece in members)
    return PackPlan(tuple(members), slots, cost_of(slots, pairs, config.cost))


def _statistics(
    packs: Sequence[PackPlan], documents: int, split: int, pieces: int, limit: int, config: PackConfig
) -> PackStatistics:
    slots, costs = sum(pack.slots for pack in packs), [pack.cost for pack in packs]
    mean = sum(costs) / len(costs) if costs else 0.0
    return PackStatistics(
        packs=len(packs),
        pieces=pieces,
        documents=documents,
        split_documents=split,
        slots=slots,
        fill=slots / (len(packs) * config.max_length) if packs else 0.0,
        cost_fill=mean / limit,
        cost_mean=mean,
        cost_max=max(costs, default=0.0),
        cost_spread=max(costs) / mean if costs else 0.0,
    )


class _Cutter:
    """Builds the pieces of one document, each as large as the budgets allow."""

    def __init__(self, doc_id: str, config: PackConfig, limit: int) -> None:
        self.doc_id, self.config, self.limit = doc_id, config, limit
        self.pieces: list[Piece] = []
        self.start()

    def start(self) -> None:
        self.spans: list[Span] = []
        self.slots = self.pairs = self.codes = 0

    def fits(self, slots: int, pairs: int) -> bool:
        """Whether a run of `slots` that would itself begin a document with `pairs` can be added."""
        total, attended = self.slots + slots, self.pairs + pairs + self.slots * slots
        cost = cost_of(total, attended, self.config.cost)
        return total <= self.config.max_length and cost <= self.limit

    def add(self, span: Span, slots: int, pairs: int) -> None:
        self.pairs += pairs + self.slots * slots
        self.slots += slots
        self.spans.append(span)

    def close(self) -> None:
        if self.spans:
            self.pieces.append(Piece(self.doc_id, len(self.pieces), tuple(self.spans), self.slots, self.pairs, self.codes))
        self.start()

    def room(self, wanted: int) -> int:
        """The most text tokens, up to `wanted`, that can be added: bisection, the cost being monotone."""
        low, high = 0, wanted
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if self.fits(middle, text_pairs(middle)) else (low, middle - 1)
        return low

    def text(self, segment: int, tokens: int, start: int = 0) -> None:
        while start < tokens:
            taken = self.room(tokens - start)
            if taken:
                self.add(Span(segment, start, start + taken), taken, text_pairs(taken))
                start += taken
            if start < tokens:
                self.close()

    def image(self, segment: int, part: Part) -> None:
        if not self.fits(part.slots, part.pairs):
            context = self.take_context(part)
            self.close()
            if context:
                self.text(context.segment, context.stop, context.start)
        self.add(Span(segment, 0, 0), part.slots, part.pairs)
        self.codes += part.slots - 1

    def take_context(self, part: Part) -> Span | None:
        """Takes back text from the piece's end to go before the image; None where the piece would be left empty."""
        last = self.spans[-1] if self.spans else Span(0, 0, 0)
        spare = last.stop - last.start - (1 if len(self.spans) == 1 else 0)
        alone = _Cutter(self.doc_id, self.config, self.limit)
        alone.add(Span(0, 0, 0), part.slots, part.pairs)
        taken = min(self.config.image_context, spare, alone.room(self.config.image_context))
        if taken <= 0:
            return None
        # Text that is taken back saw all slots before it and itself.
        self.slots -= taken
        self.pairs -= text_pairs(taken) + self.slots * taken
        self.spans.pop()
        if last.stop - taken > last.start:
            self.spans.append(Span(last.segment, last.start, last.stop - taken))
        return Span(last.segment, last.stop - taken, last.stop)


def _cut(shape: DocumentShape, config: PackConfig, limit: int) -> tuple[list[Piece], Decision | None]:
    """The pieces of a document, or why it has none."""
    cutter = _Cutter(shape.doc_id, config, limit)
    if not any(part.slots for part in shape.parts):
        return [], _decision(shape, None, "empty", 0, None, "the document has no tokens and no image")
    for number, part in enumerate(shape.parts):
        if part.grid is not None and part.slots > config.max_length:
            detail = "an image is never split; raise max_length or lower the image's level"
            return [], _decision(shape, number, "longer-than-pack", part.slots, config.max_length, detail)
        if part.grid is not None and (cost := cost_of(part.slots, part.pairs, config.cost)) > limit:
            detail = "an image is never split; raise max_cost or relative_cost, or lower the image's level"
            return [], _decision(shape, number, "costlier-than-pack", cost, limit, detail)
    for number, part in enumerate(shape.parts):
        if part.grid is None:
            cutter.text(number, part.text)
        else:
            cutter.image(number, part)
    cutter.close()
    if len(cutter.pieces) > 1 and config.split == "drop":
        slots = sum(part.slots for part in shape.parts)
        detail = "split is 'drop': a document that does not fit one pack is set aside"
        return [], _decision(shape, None, "longer-than-pack", slots, config.max_length, detail)
    return cutter.pieces, None


def _decision(
    shape: DocumentShape, segment: int | None, rule: str, value: float, threshold: float | None, detail: str
) -> Decision:
    return {
        "doc_id": shape.doc_id,
        "address": None,
        "node": segment,
        "stage": "pack",
        "rule": rule,
        "value": float(value),
        "threshold": None if threshold is None else float(threshold),
        "action": "drop",
        "detail": detail,
    }


class _Bins:
    """Open packs as arrays of what is left, so that the best fit among thousands is one vector operation."""

    def __init__(self, config: PackConfig, limit: int) -> None:
        self.length, self.limit, self.model = config.max_length, limit, config.cost
        self.left_slots = np.zeros(0, np.int64)
        self.left_cost = np.zeros(0, np.int64)
        self.members: list[list[Piece]] = []
        self.closed: list[list[Piece]] = []
        self.holders: dict[str, list[int]] = {}

    def place(self, pieces: Sequence[Piece]) -> None:
        """Best-fit decreasing: largest first by the budget it takes more of, into the open pack it leaves least room in."""
        sized = [(cost_of(piece.slots, piece.pairs, self.model), piece) for piece in pieces]
        sized.sort(key=lambda item: max(item[1].slots / self.length, item[0] / self.limit), reverse=True)
        used, total = len(self.members), len(self.members) + len(sized)
        slots, costs = np.zeros(total, np.int64), np.zeros(total, np.int64)
        slots[:used], costs[:used] = self.left_slots, self.left_cost
        for cost, piece in sized:
            room_slots, room_cost = slots[:used] - piece.slots, costs[:used] - cost
            fits = (room_slots >= 0) & (room_cost >= 0)
            if piece.doc_id in self.holders:
                fits[self.holders[piece.doc_id]] = False
            if fits.any():
                left = np.where(fits, np.minimum(room_slots / self.length, room_cost / self.limit), np.inf)
                best = int(left.argmin())
            else:
                best, used = used, used + 1
                slots[best], costs[best] = self.length, self.limit
                self.members.append([])
            slots[best] -= piece.slots
            costs[best] -= cost
            self.members[best].append(piece)
            self.holders.setdefault(piece.doc_id, []).append(best)
        self.left_slots, self.left_cost = slots[:used], costs[:used]

    def close(self, keep: int) -> None:
        """Closes full packs, and the fullest until at most `keep` are open."""
        left = np.minimum(self.left_slots / self.length, self.left_cost / self.limit)
        order = np.argsort(-left, kind="stable")
        stay = sorted(int(i) for i in order[:keep] if left[i] > 0)
        kept = set(stay)
        self.closed += [members for i, members in enumerate(self.members) if i not in kept]
        self.members = [self.members[i] for i in stay]
        self.left_slots, self.left_cost = self.left_slots[stay], self.left_cost[stay]
        self.holders = {}
        for i, members in enumerate(self.members):
            for piece in members:
                self.holders.setdefault(piece.doc_id, []).append(i)


def assign_shards(packs: Sequence[PackPlan], code_bytes: int, config: PackConfig) -> list[tuple[PackPlan, ...]]:
    """The packs of each shard, in order: a shard is closed at `samples_per_shard` or `shard_bytes`, whichever comes first.

    `code_bytes`: width of a stored code (`npy.code_dtype(codebook_size).itemsize`). One set always has one shard at least.
    """
    shards: list[tuple[PackPlan, ...]] = []
    current: list[PackPlan] = []
    size = 0
    for pack in packs:
        codes = sum(piece.codes for piece in pack.pieces)
        need = TEXT_DTYPE.itemsize * (pack.slots - codes) + 2 * code_bytes * codes
        if current and (len(current) >= config.samples_per_shard or size + need > config.shard_bytes):
            shards.append(tuple(current))
            current, size = [], 0
        current.append(pack)
        size += need
    if current or not shards:
        shards.append(tuple(current))
    return shards
