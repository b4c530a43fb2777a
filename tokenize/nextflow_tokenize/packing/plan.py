"""Which documents share a pack: sequences within a budget of slots and of FLOPs, planned offline and reproducibly.

The plan needs only each document's shape, a few integers. It is made a group of documents at a time (`groups`), so what it
takes does not grow with the corpus: about 1.5 KB a document of the group. Documents are ordered by a hash of seed and id, so
the plan is the same whatever order or partitioning they arrive in; within a window of that order pieces are placed best-fit
decreasing. The cost: one document changed can move its whole window and what follows it in its group.

Source: NextFlow (arXiv 2601.02204, section 4) packs "with a fixed computation budget", offline. How it fits documents is not
published; best-fit decreasing on two budgets is our choice.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from itertools import pairwise

import numpy as np
from nextflow_data.decisions import Decision

from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.npy import TEXT_DTYPE
from nextflow_tokenize.packing.pieces import Budgets, DocumentShape, Piece, cut


@dataclass(frozen=True, slots=True)
class PackPlan:
    """One pack: its pieces in order, all of different documents; slots and cost in FLOPs."""

    pieces: tuple[Piece, ...]
    slots: int
    cost: int


@dataclass(frozen=True, slots=True)
class PackStatistics:
    """`fill` is used slots / (packs · max_length); `cost_fill` mean cost / budget; `cost_spread` max cost / mean cost.

    `cost_total` is the exact sum, in FLOPs.
    """

    packs: int
    pieces: int
    documents: int
    split_documents: int
    slots: int
    fill: float
    cost_fill: float
    cost_total: int
    cost_mean: float
    cost_max: float
    cost_spread: float


@dataclass(frozen=True, slots=True)
class Packing:
    """Packs in the order they are to be written, and a decision for each document set aside."""

    packs: tuple[PackPlan, ...]
    decisions: tuple[Decision, ...]
    statistics: PackStatistics


def plan(shapes: Iterable[DocumentShape], config: PackConfig) -> Packing:
    """Every token and image of every document in exactly one pack, or a decision that says why the document is in none.

    No pack exceeds `max_length` slots or the budget of FLOPs, and no pack holds two pieces of one document (they would be
    taken for one, since the mask is bounded by the document). Where a text is cut, the first token after the cut begins a
    piece and is not predicted. Raises ValueError where two documents have one id, and for a budget that
    does not hold one token.
    """
    limits = Budgets.of(config)
    if limits.price(1, 1) > limits.cost:
        raise ValueError(
            f"a budget of {limits.cost:.3g} FLOPs does not hold one token of this model; raise max_cost or relative_cost"
        )
    ordered = sorted(shapes, key=lambda shape: _hash(config.seed, shape.doc_id))
    for one, other in pairwise(ordered):
        if one.doc_id == other.doc_id:
            raise ValueError(f"two documents have the id {one.doc_id}; duplicates must be removed before packing")
    pieces: list[Piece] = []
    decisions: list[Decision] = []
    documents = split = 0
    for shape in ordered:
        own, decided = cut(shape, config, limits)
        pieces += own
        documents += bool(own)
        split += len(own) > 1
        decisions += decided
    bins = _Bins(limits)
    for start in range(0, len(pieces), config.window):
        bins.place(pieces[start : start + config.window])
        bins.close(config.open_packs)
    bins.close(0)
    packs = [_finish(members, config.seed, limits) for members in bins.closed]
    packs.sort(key=lambda pack: _hash(config.seed, *(f"{piece.doc_id}/{piece.number}" for piece in pack.pieces)))
    slots, costs = sum(pack.slots for pack in packs), [pack.cost for pack in packs]
    found = _statistics(len(packs), len(pieces), documents, split, slots, sum(costs), max(costs, default=0.0), limits)
    return Packing(tuple(packs), tuple(decisions), found)


def _hash(seed: int, *names: str) -> bytes:
    return sha256("\n".join((str(seed), *names)).encode()).digest()


def _finish(members: list[Piece], seed: int, limits: Budgets) -> PackPlan:
    members = sorted(members, key=lambda piece: _hash(seed, "order", piece.doc_id))
    slots, pairs = sum(piece.slots for piece in members), sum(piece.pairs for piece in members)
    return PackPlan(tuple(members), slots, limits.price(slots, pairs))


def statistics_of(parts: Iterable[PackStatistics], config: PackConfig) -> PackStatistics:
    """The statistics of several groups together."""
    parts = list(parts)
    packs, pieces, documents, split, slots, cost = (
        sum(getattr(part, name) for part in parts)
        for name in ("packs", "pieces", "documents", "split_documents", "slots", "cost_total")
    )
    highest = max((part.cost_max for part in parts), default=0.0)
    return _statistics(packs, pieces, documents, split, slots, cost, highest, Budgets.of(config))


def _statistics(
    packs: int, pieces: int, documents: int, split: int, slots: int, cost: int, highest: float, limits: Budgets
) -> PackStatistics:
    mean = cost / packs if packs else 0.0
    return PackStatistics(
        packs=packs,
        pieces=pieces,
        documents=documents,
        split_documents=split,
        slots=slots,
        fill=slots / (packs * limits.slots) if packs else 0.0,
        cost_fill=mean / limits.cost,
        cost_total=cost,
        cost_mean=mean,
        cost_max=highest,
        cost_spread=highest / mean if packs else 0.0,
    )


class _Bins:
    """Open packs as arrays of what is left, so that the best fit among thousands is one vector operation."""

    def __init__(self, limits: Budgets) -> None:
        self.limits = limits
        self.left_slots = np.zeros(0, np.int64)
        self.left_cost = np.zeros(0, np.int64)
        self.members: list[list[Piece]] = []
        self.closed: list[list[Piece]] = []
        self.holders: dict[str, list[int]] = {}

    def place(self, pieces: Sequence[Piece]) -> None:
        """Best-fit decreasing: largest first by the budget it takes more of, into the open pack it leaves least room in."""
        length, limit = self.limits.slots, self.limits.cost
        sized = [
            (self.limits.price(piece.slots, piece.pairs), piece)
            for piece in sorted(pieces, key=self.limits.share, reverse=True)
        ]
        used, total = len(self.members), len(self.members) + len(sized)
        slots, costs = np.zeros(total, np.int64), np.zeros(total, np.int64)
        slots[:used], costs[:used] = self.left_slots, self.left_cost
        for cost, piece in sized:
            room_slots, room_cost = slots[:used] - piece.slots, costs[:used] - cost
            fits = (room_slots >= 0) & (room_cost >= 0)
            if piece.doc_id in self.holders:
                fits[self.holders[piece.doc_id]] = False
            if fits.any():
                left = np.where(fits, np.minimum(room_slots / length, room_cost / limit), np.inf)
                best = int(left.argmin())
            else:
                best, used = used, used + 1
                slots[best], costs[best] = length, limit
                self.members.append([])
            slots[best] -= piece.slots
            costs[best] -= cost
            self.members[best].append(piece)
            self.holders.setdefault(piece.doc_id, []).append(best)
        self.left_slots, self.left_cost = slots[:used], costs[:used]

    def close(self, keep: int) -> None:
        """Closes full packs, and the fullest until at most `keep` are open."""
        left = np.minimum(self.left_slots / self.limits.slots, self.left_cost / self.limits.cost)
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
