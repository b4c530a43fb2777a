"""Statistics of shards add up to those of the set, whatever the cut, and their size is bounded."""

from __future__ import annotations

from typing import Any

from nextflow_tokenize.shards.reader import ShardSet
from nextflow_tokenize.shards.statistics import Statistics


def row(number: int, site: str, tokens: int = 1) -> dict[str, Any]:
    return {"piece": 0, "address": f"https://{site}/{number}", "source_kind": "warc", "licence": None, "task": "t"} | {
        "text_tokens": tokens,
        "image_codes": 0,
        "images": 0,
    }


def test_shards_add_up(sound_set: Any) -> None:
    shards = ShardSet.open(sound_set.path)
    budget = shards.manifest.budget
    whole, parts = Statistics(), Statistics()
    for number in range(len(shards.shards)):
        own = Statistics()
        for counted in (own, whole):
            for place in range(shards.shards[number].samples):
                counted.add(shards.read(int(shards.shards.starts[number]) + place), budget.max_length, budget.max_cost)
            for piece in shards.documents(shards.shards[number]).to_pylist():
                counted.add_piece(piece)
        parts.plus(Statistics.from_json(own.to_json()))
    assert parts.bounded() == whole.bounded()
    assert parts.cost_deviation > 0 and parts.cost_min <= parts.cost_mean <= parts.cost_max


def test_names_without_bound_are_a_hundred_and_others() -> None:
    total = Statistics()
    for shard in range(150):
        own = Statistics()
        own.add_piece(row(0, "large.example", 1000))
        for number in range(300):
            own.add_piece(row(number, f"s{shard}-{number}.example"))
        total.plus(own.bounded())
    total.bounded()
    assert len(total.tokens_by_site) == 101
    large = {"documents": 150, "text_tokens": 150_000, "image_codes": 0, "images": 0}
    assert total.tokens_by_site["large.example"] == large
    sums = {name: sum(amount[name] for amount in total.tokens_by_site.values()) for name in ("documents", "text_tokens")}
    assert sums == {"documents": 150 * 301, "text_tokens": 150 * 1300}
    assert total.tokens_by_licence == {"(unknown)": total.tokens_by_source["warc"]}
