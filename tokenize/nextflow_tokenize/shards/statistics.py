"""What a shard set holds, counted from the samples themselves and not from what the manifest says of them.

Made twice, alike: by the tasks that write shards, a shard each, and by the audit that reads them. Statistics of shards add
up, in the order of shards, and their size is bounded whatever the set's: names (sources, sites, licences, tasks) beyond
`MOST_NAMES` are added up as "(other)", a shard at a time, so with more names than that those told apart are the largest of
what single shards told apart, and not always the largest of all.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from math import sqrt
from typing import Any, Protocol

from nextflow_data.addresses import site_of
from numpy.typing import NDArray

from nextflow_tokenize.segments import Segment, slots
from nextflow_tokenize.shards.manifest import MOST_NAMES
from nextflow_tokenize.shards.records import CostRecord, Tokens

BINS = 20
"""Bars of a histogram over 0 … 1; a value of 1 is in the last."""
UNKNOWN, OTHER = "(unknown)", "(other)"
_HELD = 100 * MOST_NAMES
"""Names of one kind held while shards are added up; then all but the largest are added up too."""
_AMOUNTS = ("documents", "text_tokens", "image_codes", "images")

Amounts = dict[str, dict[str, int]]
"""By name: documents, text tokens, image codes and images."""


class Packed(Protocol):
    """What is counted of a sample, before it is written or after it was read."""

    @property
    def segments(self) -> Sequence[Segment]: ...
    @property
    def text(self) -> NDArray: ...
    @property
    def target(self) -> NDArray: ...
    @property
    def cost(self) -> float: ...


@dataclass
class Statistics:
    """Counts over all samples that could be read.

    `fill`, `cost_fill`: packs by their share of the budget of slots and of FLOPs, in BINS bars. `kinds`: slots by what they
    hold: text, codes, and markers, one an image (⟨boi⟩ predicts the code of scale 1, so it counts as that code's slot, and
    ⟨eoi⟩ is the marker). `trained`: text tokens and codes in segments with loss. `images_by_grid`: by "h×w, K scales".
    Costs are whole FLOPs, so their sums are exact. `documents` and `tokens_by_*` are of the table of documents, whose first
    piece counts a document; they are empty where that table cannot be trusted.
    """

    packs: int = 0
    documents: int = 0
    pieces: int = 0
    slots: int = 0
    text_tokens: int = 0
    image_codes: int = 0
    images: int = 0
    trained: int = 0
    cost_total: int = 0
    cost_squares: int = 0
    cost_min: float = 0.0
    cost_max: float = 0.0
    kinds: Counter[str] = field(default_factory=Counter)
    fill: list[int] = field(default_factory=lambda: [0] * BINS)
    cost_fill: list[int] = field(default_factory=lambda: [0] * BINS)
    images_by_grid: Counter[str] = field(default_factory=Counter)
    segments_per_pack: Counter[int] = field(default_factory=Counter)
    documents_per_pack: Counter[int] = field(default_factory=Counter)
    tokens_by_source: Amounts = field(default_factory=dict)
    tokens_by_site: Amounts = field(default_factory=dict)
    tokens_by_licence: Amounts = field(default_factory=dict)
    tokens_by_task: Amounts = field(default_factory=dict)

    def add(self, sample: Packed, max_length: int, max_cost: int) -> None:
        """Counts one sample."""
        used = 0
        for segment in sample.segments:
            taken = slots(segment)
            used += taken
            amount = taken
            if segment["kind"] == "image":
                amount = taken - 1
                self.images += 1
                h, w = segment["grid"]
                self.images_by_grid[f"{h}×{w}, {segment['scales']} scales"] += 1
                self.kinds["markers"] += 1
            self.kinds["text" if segment["kind"] == "text" else "codes"] += amount
            self.trained += amount if segment["loss"] else 0
        self.cost_min = min(self.cost_min, sample.cost) if self.packs else sample.cost
        self.cost_max = max(self.cost_max, sample.cost)
        self.cost_total += int(sample.cost)
        self.cost_squares += int(sample.cost) ** 2
        self.packs += 1
        self.slots += used
        self.text_tokens += len(sample.text)
        self.image_codes += len(sample.target)
        self.fill[_bin(used / max_length)] += 1
        self.cost_fill[_bin(sample.cost / max_cost)] += 1
        self.segments_per_pack[len(sample.segments)] += 1
        self.documents_per_pack[len({segment["doc"] for segment in sample.segments})] += 1

    def add_piece(self, row: Mapping[str, Any]) -> None:
        """Counts one row of the table of documents."""
        self.pieces += 1
        self.documents += row["piece"] == 0
        site = site_of(row["address"]) if row["address"] else None
        for table, name in (
            (self.tokens_by_source, row["source_kind"]),
            (self.tokens_by_site, site),
            (self.tokens_by_licence, row["licence"]),
            (self.tokens_by_task, row["task"]),
        ):
            amount = table.setdefault(UNKNOWN if name is None else name, dict.fromkeys(_AMOUNTS, 0))
            amount["documents"] += row["piece"] == 0
            for key in _AMOUNTS[1:]:
                amount[key] += row[key]

    def plus(self, other: Statistics) -> None:
        """Adds what was counted of another shard. Give shards in their order, each `bounded`."""
        lowest = [part.cost_min for part in (self, other) if part.packs]
        self.cost_min = min(lowest, default=0.0)
        self.cost_max = max(self.cost_max, other.cost_max)
        for item in fields(self):
            mine, more = getattr(self, item.name), getattr(other, item.name)
            if item.name in ("cost_min", "cost_max"):
                continue
            if isinstance(mine, int):
                setattr(self, item.name, mine + more)
            elif isinstance(mine, list):
                setattr(self, item.name, [a + b for a, b in zip(mine, more, strict=True)])
            elif isinstance(mine, Counter):
                mine.update(more)
            else:
                for name, amount in more.items():
                    held = mine.setdefault(name, dict.fromkeys(_AMOUNTS, 0))
                    for key in _AMOUNTS:
                        held[key] += amount[key]
                if len(mine) > _HELD:
                    setattr(self, item.name, _largest(mine, _HELD // 10))

    def bounded(self) -> Statistics:
        """This, with at most `MOST_NAMES` names of a kind and "(other)"."""
        for name in ("tokens_by_source", "tokens_by_site", "tokens_by_licence", "tokens_by_task"):
            setattr(self, name, _largest(getattr(self, name), MOST_NAMES))
        return self

    @property
    def cost_mean(self) -> float:
        """Mean cost of a pack, FLOPs."""
        return self.cost_total / self.packs if self.packs else 0.0

    @property
    def cost_spread(self) -> float:
        """Max / mean cost."""
        return self.cost_max / self.cost_mean if self.cost_total else 0.0

    @property
    def cost_deviation(self) -> float:
        """Standard deviation of the packs' cost, FLOPs."""
        return sqrt(self.packs * self.cost_squares - self.cost_total**2) / self.packs if self.packs else 0.0

    def packing(self, max_length: int, max_cost: int) -> CostRecord:
        """Fill and spread of the packs within their budgets."""
        return CostRecord(
            mean=self.cost_mean,
            max=self.cost_max,
            spread=self.cost_spread,
            fill=self.slots / (self.packs * max_length) if self.packs else 0,
            cost_fill=self.cost_mean / max_cost,
        )

    def to_json(self) -> str:
        """Everything counted, so that `from_json` gives an equal one."""
        value = {item.name: getattr(self, item.name) for item in fields(self)}
        return json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)

    @classmethod
    def from_json(cls, text: str | bytes) -> Statistics:
        """What `to_json` wrote."""
        value = json.loads(text)
        for name in ("kinds", "images_by_grid"):
            value[name] = Counter(value[name])
        for name in ("segments_per_pack", "documents_per_pack"):
            value[name] = Counter({int(key): count for key, count in value[name].items()})
        return cls(**value)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with sorted keys, for JSON and templates."""
        value = {item.name: _plain(getattr(self, item.name)) for item in fields(self)}
        rates = ("cost_mean", "cost_spread", "cost_deviation")
        return value | {name: getattr(self, name) for name in rates}


def tokens_of(amounts: Amounts) -> dict[str, Tokens]:
    """Amounts as a manifest has them."""
    return {name: Tokens(**{key: row[key] for key in _AMOUNTS[1:]}) for name, row in sorted(amounts.items())}


def _largest(amounts: Amounts, most: int) -> Amounts:
    named = {name: amount for name, amount in amounts.items() if name != OTHER}
    if len(named) <= most:
        return dict(sorted(amounts.items()))
    order = sorted(named, key=lambda name: (-named[name]["text_tokens"] - named[name]["image_codes"], name))
    other = dict(amounts.get(OTHER, dict.fromkeys(_AMOUNTS, 0)))
    for name in order[most:]:
        for key in _AMOUNTS:
            other[key] += named[name][key]
    return dict(sorted([*((name, named[name]) for name in order[:most]), (OTHER, other)]))


def _bin(share: float) -> int:
    return min(BINS - 1, max(0, int(share * BINS)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): value[key] for key in sorted(value)}
    return value
