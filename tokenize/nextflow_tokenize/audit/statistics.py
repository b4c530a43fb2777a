"""What a shard set holds, counted from the samples themselves and not from what the manifest says of them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import Any

from nextflow_tokenize.segments import slots
from nextflow_tokenize.shards.sample_format import Sample

BINS = 20
"""Bars of a histogram over 0 … 1; a value of 1 is in the last."""


@dataclass
class Statistics:
    """Counts over all samples that could be read.

    `fill`, `cost_fill`: packs by their share of the budget of slots and of FLOPs, in BINS bars. `kinds`: slots by what they
    hold: text, codes, and markers, one an image (⟨boi⟩ predicts the code of scale 1, so it counts as that code's slot, and
    ⟨eoi⟩ is the marker). `trained`: text tokens and codes in segments with loss. `images_by_grid`: by "h×w, K scales".
    `documents` and `tokens_by_*` are of `documents.parquet`; empty where that table cannot be trusted.
    """

    packs: int = 0
    documents: int = 0
    slots: int = 0
    text_tokens: int = 0
    image_codes: int = 0
    images: int = 0
    trained: int = 0
    kinds: Counter[str] = field(default_factory=Counter)
    fill: list[int] = field(default_factory=lambda: [0] * BINS)
    cost_fill: list[int] = field(default_factory=lambda: [0] * BINS)
    costs: list[float] = field(default_factory=list, repr=False)
    images_by_grid: Counter[str] = field(default_factory=Counter)
    segments_per_pack: Counter[int] = field(default_factory=Counter)
    documents_per_pack: Counter[int] = field(default_factory=Counter)
    tokens_by_source: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens_by_licence: dict[str, dict[str, int]] = field(default_factory=dict)
    tokens_by_task: dict[str, dict[str, int]] = field(default_factory=dict)

    def add(self, sample: Sample, max_length: int, max_cost: int) -> None:
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
        self.packs += 1
        self.slots += used
        self.text_tokens += len(sample.text)
        self.image_codes += len(sample.target)
        self.costs.append(sample.cost)
        self.fill[_bin(used / max_length)] += 1
        self.cost_fill[_bin(sample.cost / max_cost)] += 1
        self.segments_per_pack[len(sample.segments)] += 1
        self.documents_per_pack[len({segment["doc"] for segment in sample.segments})] += 1

    @property
    def cost_mean(self) -> float:
        """Mean cost of a pack, FLOPs."""
        return sum(self.costs) / len(self.costs) if self.costs else 0.0

    @property
    def cost_spread(self) -> float:
        """Max / mean cost."""
        return max(self.costs) / self.cost_mean if self.costs and self.cost_mean else 0.0

    def to_dict(self) -> dict[str, Any]:
        """Plain values, with sorted keys, for JSON and templates."""
        value = {item.name: _plain(getattr(self, item.name)) for item in fields(self) if item.name != "costs"}
        value |= {
            "cost_mean": self.cost_mean,
            "cost_max": max(self.costs, default=0.0),
            "cost_min": min(self.costs, default=0.0),
        }
        return value | {"cost_spread": self.cost_spread}


def _bin(share: float) -> int:
    return min(BINS - 1, max(0, int(share * BINS)))


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): value[key] for key in sorted(value)}
    return value
