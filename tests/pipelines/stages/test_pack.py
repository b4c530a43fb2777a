"""Packing in groups: each planned by a task of its own, all of them one set; and what the tasks counted while they wrote."""

from __future__ import annotations

import json
from collections.abc import Mapping
from hashlib import sha256
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from nextflow_pipelines.contract.tables import read_table
from nextflow_pipelines.spark.context import RunContext, StageResult
from nextflow_pipelines.stages import pack
from nextflow_tokenize.audit.record import audit_record
from nextflow_tokenize.audit.shard_set import audit
from nextflow_tokenize.shards.reader import ShardSet

Results = Mapping[str, StageResult]


@pytest.fixture(scope="module")
def grouped(results: Results, chain: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> StageResult:
    """The small run's documents packed in groups of about four."""
    ctx = RunContext(tmp_path_factory.mktemp("grouped"))
    config = chain.SECTIONS["pack"].model_copy(update={"group_documents": 4, "samples_per_shard": 2})
    return pack.carry_out(ctx, config, results["tokenize"], results["text_tokenizer"], results["vision_tokenizer"])


def test_groups_are_cut_by_hash_and_own_ranges_of_shards(results: Results, grouped: StageResult) -> None:
    shards = ShardSet.open(grouped.dir / "shards", verify="full")
    whole = {row["doc_id"]: row for row in read_table(results["tokenize"].dir, "tokenized").to_pylist()}
    groups = -(-len(whole) // 4)
    assert shards.manifest.totals.groups == groups > 2
    owners = [shards.shards[n].group for n in range(len(shards.shards))]
    changes = sum(one != other for one, other in pairwise(owners))
    assert set(owners) == set(range(groups)) and changes == groups - 1
    for doc_id, row in whole.items():
        pieces = shards.pieces_of(doc_id)
        group = int(sha256(doc_id.encode()).hexdigest()[:8], 16) % groups
        assert {owners[int(piece["shard"][6:12])] for piece in pieces} == {group}
        assert [piece["piece"] for piece in pieces] == list(range(len(pieces)))
        assert sum(piece["text_tokens"] for piece in pieces) == sum(len(s["text"] or ()) for s in row["segments"])
        assert sum(piece["images"] for piece in pieces) == sum(s["kind"] == "image" for s in row["segments"])


def test_a_set_of_groups_is_sound_and_its_plans_are_told_together(grouped: StageResult) -> None:
    result = audit(grouped.dir / "shards")
    assert result.findings == []
    packing = result.manifest.packing if result.manifest else None
    assert packing is not None and grouped.facts["packs"] == result.samples_read
    assert (grouped.facts["fill"], grouped.facts["cost_spread"]) == (packing.fill, packing.spread)


@pytest.mark.parametrize("name", ["pack", "grouped"])
def test_what_the_tasks_counted_is_what_an_audit_of_the_bytes_counts(
    results: Results, grouped: StageResult, name: str
) -> None:
    folder = {**results, "grouped": grouped}[name].dir / "shards"
    recorded, read = audit_record(folder), audit(folder)
    assert recorded is not None and recorded.to_dict() == read.to_dict()
    assert recorded.statistics == read.statistics and recorded.ok


def test_a_set_of_an_earlier_version_has_no_record(results: Results, tmp_path: Path) -> None:
    (tmp_path / "shards").mkdir()
    manifest = (results["pack"].dir / "shards" / "manifest.json").read_bytes()
    (tmp_path / "shards" / "manifest.json").write_bytes(manifest)
    assert audit_record(tmp_path / "shards") is None


def test_a_report_of_the_record_opens_no_shard(results: Results, tmp_path: Path) -> None:
    """Only the manifest and the record are there."""
    source = results["pack"].dir
    (tmp_path / "shards").mkdir()
    for name in ("audit.json", "shards/manifest.json"):
        (tmp_path / name).write_bytes((source / name).read_bytes())
    found: Any = audit_record(tmp_path / "shards")
    assert found.statistics.packs == json.loads((source / "audit.json").read_text())["packs"] > 0
