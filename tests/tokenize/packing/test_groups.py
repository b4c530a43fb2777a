"""Groups of documents: planned apart they lose next to nothing, and what they own is told by a few numbers."""

from __future__ import annotations

import importlib.util
import random
from hashlib import sha256
from pathlib import Path
from types import ModuleType

import pytest
from nextflow_tokenize.config.pack import PackConfig
from nextflow_tokenize.packing.groups import first_shards, group_of, groups_of
from nextflow_tokenize.packing.pieces import DocumentShape
from nextflow_tokenize.packing.plan import plan, statistics_of


@pytest.fixture(scope="module")
def mix() -> ModuleType:
    """The synthetic mix of `test_plan`."""
    spec = importlib.util.spec_from_file_location("test_plan_mix", Path(__file__).with_name("test_plan.py"))
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("relative_cost", [1.0, 0.25])
def test_groups_are_filled_and_cost_as_one_plan_of_all(mix: ModuleType, relative_cost: float) -> None:
    """Within 0.2 points of fill and of spread, at groups an eighth of the size that is the default."""
    shapes = [DocumentShape(sha256(shape.doc_id.encode()).hexdigest()[:32], shape.parts) for shape in mix.web_shapes(7500)]
    config = PackConfig(relative_cost=relative_cost, group_documents=2500)
    groups = groups_of(len(shapes), config)
    assert groups == 3
    parts = [plan([s for s in shapes if group_of(s.doc_id, groups) == group], config) for group in range(groups)]
    together, whole = statistics_of((part.statistics for part in parts), config), plan(shapes, config).statistics
    for name in ("fill", "cost_fill", "cost_spread"):
        assert abs(getattr(together, name) - getattr(whole, name)) < 0.002, name
    assert (together.documents, together.slots) == (whole.documents, whole.slots)
    assert together.packs == sum(len(part.packs) for part in parts)
    assert together.cost_total == sum(pack.cost for part in parts for pack in part.packs)


def test_one_group_is_one_plan() -> None:
    config = PackConfig(group_documents=10)
    assert [groups_of(count, config) for count in (0, 1, 10, 11, 21)] == [1, 1, 1, 2, 3]
    assert {group_of(f"{n:032x}", 1) for n in range(50)} == {0}
    assert first_shards([7], 3) == [0]


def test_groups_own_ranges_that_follow_each_other_in_seeded_order() -> None:
    counts = [random.Random(0).randint(1, 9) for _ in range(30)]
    orders = []
    for seed in (0, 1):
        first = first_shards(counts, seed)
        owned = sorted((start + n, group) for group, start in enumerate(first) for n in range(counts[group]))
        assert [shard for shard, _ in owned] == list(range(sum(counts)))
        orders.append([group for shard, group in owned if shard == first[group]])
    assert orders[0] != orders[1] != list(range(30))
