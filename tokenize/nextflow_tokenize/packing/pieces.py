"""From a document to the pieces that packs are made of: whole where it fits a pack, else cut between text tokens.

A piece goes into one pack whole, and no two pieces of a document share a pack, because the mask is bounded by the document.
An image is never cut; the words before it can go along when a cut falls there. The cost of a cut: the first token after it
begins a piece, sees nothing before it and is not predicted.
"""

from __future__ import annotations

from dataclasses import dataclass

from nextflow_data.common.stage_names import PACK
from nextflow_data.decisions import Decision, Finding, Subject, decision

from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.documents.tokenized import TokenizedDocument
from nextflow_tokenize.packing.cost import cost_of, flops_per_pair, flops_per_slot, image_pairs, text_pairs
from nextflow_tokenize.segments import slots_at


@dataclass(frozen=True, slots=True)
class SegmentShape:
    """A segment's shape: `text` tokens, or an image of last grid `grid` with `scales` scales (then `text` is 0)."""

    text: int = 0
    grid: tuple[int, int] | None = None
    scales: int = 0

    @property
    def slots(self) -> int:
        """Slots the segment takes."""
        return self.text if self.grid is None else slots_at(self.grid, self.scales)

    @property
    def pairs(self) -> int:
        """Attended pairs if the segment begins its document."""
        return text_pairs(self.text) if self.grid is None else image_pairs(self.grid, self.scales)


@dataclass(frozen=True, slots=True)
class DocumentShape:
    """All that planning needs of a document: its id, the shape of each segment, in order, and its address."""

    doc_id: str
    parts: tuple[SegmentShape, ...]
    address: str | None = None


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


def shape_of(document: TokenizedDocument) -> DocumentShape:
    """The shape of a tokenised document. Raises ValueError for an image whose codes are not Σhw of its schedule."""
    parts = []
    for number, segment in enumerate(document["segments"]):
        if segment["kind"] == "text":
            parts.append(SegmentShape(text=len(segment["text"] or ())))
            continue
        (h, w), scales = segment["grid"] or (0, 0), segment["scales"] or 0
        part = SegmentShape(grid=(h, w), scales=scales)
        for name in ("input", "target"):
            if (found := len(segment[name] or ())) != part.slots - 1:  # type: ignore[literal-required]
                where = f"document {document['doc_id']}, segment {number}"
                raise ValueError(f"{where}: {found} {name} codes, but grid {h}×{w} at {scales} scales has {part.slots - 1}")
        parts.append(part)
    return DocumentShape(document["doc_id"], tuple(parts), document["address"])


def budget(config: PackConfig) -> int:
    """FLOPs that a pack may cost: `max_cost`, or `relative_cost` times a text document that fills `max_length`."""
    if config.max_cost is not None:
        return int(config.max_cost)
    return int(config.relative_cost * cost_of(config.max_length, text_pairs(config.max_length), config.cost))


@dataclass(frozen=True, slots=True)
class Budgets:
    """Both bounds of a pack, and the rates that its cost is counted with."""

    slots: int
    cost: int
    slot: int
    pair: int

    @classmethod
    def of(cls, config: PackConfig) -> Budgets:
        """The bounds of a configuration."""
        return cls(config.max_length, budget(config), flops_per_slot(config.cost), flops_per_pair(config.cost))

    def price(self, slots: int, pairs: int) -> int:
        """FLOPs."""
        return slots * self.slot + pairs * self.pair

    def share(self, piece: Piece) -> float:
        """The part of a pack that a piece takes, by the budget it takes more of."""
        return max(piece.slots / self.slots, self.price(piece.slots, piece.pairs) / self.cost)


class _Cutter:
    """Builds the pieces of one document, each as large as the budgets allow."""

    def __init__(self, doc_id: str, config: PackConfig, limits: Budgets) -> None:
        self.doc_id, self.config, self.limits = doc_id, config, limits
        self.pieces: list[Piece] = []
        self.start()

    def start(self) -> None:
        self.spans: list[Span] = []
        self.slots = self.pairs = self.codes = 0

    def fits(self, slots: int, pairs: int) -> bool:
        """Whether a run of `slots` that would itself begin a document with `pairs` can be added."""
        total, attended = self.slots + slots, self.pairs + pairs + self.slots * slots
        return total <= self.limits.slots and self.limits.price(total, attended) <= self.limits.cost

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
        if self.fits(wanted, text_pairs(wanted)):
            return wanted
        low, high = 0, wanted - 1
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

    def image(self, segment: int, part: SegmentShape) -> None:
        if not self.fits(part.slots, part.pairs):
            context = self.take_context(part)
            self.close()
            if context:
                self.text(context.segment, context.stop, context.start)
        self.add(Span(segment, 0, 0), part.slots, part.pairs)
        self.codes += part.slots - 1

    def take_context(self, part: SegmentShape) -> Span | None:
        """Takes back text from the piece's end to go before the image; None where the piece would be left empty."""
        last = self.spans[-1] if self.spans else Span(0, 0, 0)
        spare = last.stop - last.start - (1 if len(self.spans) == 1 else 0)
        alone = _Cutter(self.doc_id, self.config, self.limits)
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


def cut(shape: DocumentShape, config: PackConfig, limits: Budgets) -> tuple[list[Piece], list[Decision]]:
    """The pieces of a document, or why it has none: the segment that fits no pack, where one does not, and the document."""
    cutter = _Cutter(shape.doc_id, config, limits)
    if not any(part.slots for part in shape.parts):
        return [], [_drop(shape, Finding("empty", 0.0, detail="the document has no tokens and no image"))]
    for number, part in enumerate(shape.parts):
        found = None if part.grid is None else _too_large(part, config, limits)
        if found is not None:
            whole = Finding("pack.nothing_left", detail=f"segment {number} fits no pack, and none is left out")
            return [], [decision(_subject(shape), PACK, found, "drop", number, "segment"), _drop(shape, whole)]
    for number, part in enumerate(shape.parts):
        if part.grid is None:
            cutter.text(number, part.text)
        else:
            cutter.image(number, part)
    cutter.close()
    if len(cutter.pieces) > 1 and config.split == "drop":
        slots = sum(part.slots for part in shape.parts)
        detail = "split is 'drop': a document that does not fit one pack is set aside"
        return [], [_drop(shape, Finding("longer-than-pack", float(slots), float(config.max_length), detail))]
    return cutter.pieces, []


def _too_large(image: SegmentShape, config: PackConfig, limits: Budgets) -> Finding | None:
    """Why an image fits no pack, or None: it is never split."""
    advice = "or lower the image's level"
    if image.slots > config.max_length:
        return Finding("longer-than-pack", float(image.slots), float(config.max_length), f"raise max_length {advice}")
    cost = limits.price(image.slots, image.pairs)
    if cost > limits.cost:
        return Finding("costlier-than-pack", float(cost), float(limits.cost), f"raise max_cost or relative_cost, {advice}")
    return None


def _subject(shape: DocumentShape) -> Subject:
    return Subject(shape.doc_id, shape.address)


def _drop(shape: DocumentShape, finding: Finding) -> Decision:
    return decision(_subject(shape), PACK, finding, "drop")
