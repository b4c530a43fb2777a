"""All stages on a small WARC: what each planted page and image comes to, and what kills and partitions must not change."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from bound import bind_sources
from nextflow_data.common.whole_files import file_sha256
from nextflow_data.storage.errors import ChangedObject
from nextflow_pipelines.contract.stage import StageError, find_committed, read_manifest
from nextflow_pipelines.contract.tables import read_table
from nextflow_pipelines.registry import STAGES, run_stage
from nextflow_pipelines.sources import SOURCES_FOLDER, image_loader, source_opener
from nextflow_pipelines.spark.config import SparkConfig
from nextflow_pipelines.spark.context import RunContext, StageResult

Results = Mapping[str, StageResult]
SITE = "https://docs.example"


def rows(result: StageResult, dataset: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_table(result.dir, dataset).to_pylist()
    return found


def addresses(result: StageResult) -> set[str]:
    return {row["source"]["address"].removeprefix(SITE) for row in rows(result, "documents")}


def decisions(result: StageResult) -> set[tuple[str, str, str]]:
    return {(d["address"].removeprefix(SITE), d["rule"], d["action"]) for d in rows(result, "decisions")}


def tree(root: Path) -> dict[str, str]:
    """Every committed file under a root."""
    return {
        p.relative_to(root).as_posix(): file_sha256(p)
        for folder in root.iterdir()
        if folder.name.rsplit("-", 1)[0] in STAGES
        for p in sorted(folder.rglob("*"))
        if p.is_file()
    }


def test_every_stage_is_committed_and_whole(damaged_files: Any, results: Results, root: Path) -> None:
    assert list(results) == list(STAGES)
    for name, result in results.items():
        assert not result.skipped and damaged_files(result.dir) == [] and find_committed(root, name) == [result.dir]
        assert json.loads((root / "metrics" / f"{name}.jsonl").read_text())["seconds"] > 0
        for path in result.dir.rglob("*.json"):
            assert str(root) not in path.read_text(), f"{path} holds a path of this machine"


def test_ingest_makes_a_document_of_each_page_and_puts_the_rest_aside(results: Results) -> None:
    pages = {f"/{n}.html" for n in range(14)} | {f"/{n}.html" for n in ("near", "same", "resized", "short", "francais")}
    assert addresses(results["ingest"]) == pages
    asides = {(row["reason"], (row["address"] or "").removeprefix(SITE)) for row in rows(results["ingest"], "asides")}
    assert {aside for aside in asides if aside[0] != "gzip-truncated"} == {
        ("http-status", "/gone.html"),
        ("truncated-image", "/img/torn.png"),
        ("too-many-pixels", "/img/bomb.png"),
        ("page-too-large", "/huge.html"),
    }
    assert len(asides) == 5
    unusable = {address for address, rule, _ in decisions(results["ingest"]) if rule == "image-unusable"}
    assert unusable == {"/3.html", "/4.html"}


def test_each_image_record_is_measured_once(results: Results, warc: Path) -> None:
    images = rows(results["ingest"], "images")
    planted = ["icon.png", "torn.png", "small.jpg", "bomb.png", "line.png"]
    named = {f"{SITE}/img/{name}" for name in [*(f"own{n}.png" for n in range(14)), *planted]}
    assert sorted(row["address"] for row in images) == sorted(named)
    assert {row["address"] for row in images if row["image"] is None} == {f"{SITE}/img/{n}.png" for n in ("torn", "bomb")}


def test_references_lead_to_the_bytes_from_any_place(results: Results, root: Path, chain: ModuleType) -> None:
    load = image_loader(root, chain.SECTIONS["ingest"])
    seen = 0
    for document in rows(results["caption"], "documents"):
        assert document["source"]["uri"].startswith(f"{SOURCES_FOLDER}/")
        for node in document["nodes"]:
            if node["image"] is not None:
                assert node["image"]["ref"]["uri"] == document["source"]["uri"]
                assert load(node["image"])[:4] in (b"\x89PNG", b"\xff\xd8\xff\xe0")
                seen += 1
    assert seen >= 13


def test_filter_drops_what_its_rules_name(results: Results) -> None:
    found = decisions(results["filter"])
    whole = {d["address"].removeprefix(SITE) for d in rows(results["filter"], "decisions") if d["scope"] == "document"}
    assert {d for d in found if d[0] in whole and d[2] == "drop"} == {
        ("/francais.html", "language.allowed", "drop"),
        ("/short.html", next(rule for a, rule, _ in found if a == "/short.html"), "drop"),
    }
    assert ("/6.html", "image.min_side", "drop") in found  # one pixel wide
    # Fourteen pages of the site show the icon; the rule allows five.
    recurring = [d for d in rows(results["filter"], "decisions") if d["rule"] == "image.max_recurrence"]
    assert len(recurring) == 14 and {d["value"] for d in recurring} == {14.0}
    assert all(
        "icon" not in n["image"]["address"] for d in rows(results["filter"], "documents") for n in d["nodes"] if n["image"]
    )


def test_dedup_removes_the_planted_copies_and_says_which_one_stays(results: Results) -> None:
    dropped = {d["address"].removeprefix(SITE): d for d in rows(results["dedup"], "decisions") if d["scope"] == "document"}
    assert set(dropped) == {"/near.html", "/same.html"}
    assert dropped["/same.html"]["rule"] == "dedup.exact" and f"{SITE}/1.html" in dropped["/same.html"]["detail"]
    assert dropped["/near.html"]["rule"] == "dedup.min_similarity" and f"{SITE}/0.html" in dropped["/near.html"]["detail"]
    assert 0.7 <= dropped["/near.html"]["value"] < 1
    edits = [d for d in rows(results["dedup"], "decisions") if d["scope"] == "node"]
    assert [(d["address"].removeprefix(SITE), d["rule"]) for d in edits] == [("/resized.html", "dedup.image_max_difference")]
    kept = addresses(results["filter"]) - {"/near.html", "/same.html"}
    assert addresses(results["dedup"]) == kept


def test_documents_go_by_id_to_the_files_they_were_put_in_first(results: Results) -> None:
    for name in ("ingest", "filter", "dedup", "caption"):
        ids = [d["doc_id"] for file in read_manifest(results[name].dir)["files"] if file["path"].startswith("documents/")
               for d in read_rows(results[name].dir / file["path"])]  # fmt: skip
        assert len(ids) == len(set(ids)) == results[name].counts["rows"]["documents"]


def read_rows(path: Path) -> list[dict[str, Any]]:
    import pyarrow.parquet as pq

    found: list[dict[str, Any]] = pq.read_table(path, partitioning=None).to_pylist()
    assert [row["doc_id"] for row in found] == sorted(row["doc_id"] for row in found)
    return found


def test_images_are_captioned(results: Results) -> None:
    images = [n["image"] for d in rows(results["caption"], "documents") for n in d["nodes"] if n["image"]]
    assert images and all(image["caption"].startswith("Figure about Topic") for image in images)


def test_tokenizers_are_named_by_hash_all_the_way_to_the_shards(results: Results) -> None:
    from nextflow_tokenize.shards.reader import ShardSet
    from nextflow_tokenize.vision.identity import identity

    vision = identity(results["vision_tokenizer"].dir / "tokenizer")
    text = file_sha256(results["text_tokenizer"].dir / "tokenizer.json")
    inputs = read_manifest(results["tokenize"].dir)["inputs"]
    assert (inputs["vision_tokenizer_hash"], inputs["text_tokenizer_hash"]) == (vision, text)
    manifest = ShardSet.open(results["pack"].dir / "shards", verify="full").manifest
    assert manifest.vision_tokenizer is not None
    assert (manifest.vision_tokenizer.sha256, manifest.text_tokenizer.sha256) == (vision, text)
    assert manifest.parents["tokenize"] == results["tokenize"].fingerprint
    assert manifest.parents["caption"] == results["caption"].fingerprint
    assert manifest.sha256 == results["pack"].facts["shard_set"]


def test_every_token_of_every_document_is_in_the_shards_once(results: Results) -> None:
    from nextflow_tokenize.shards.reader import ShardSet

    shards = ShardSet.open(results["pack"].dir / "shards", verify="full")
    assert shards.manifest.totals.shards > 1
    tokens = results["tokenize"].counts["tokens"]
    totals = shards.manifest.totals
    assert (totals.text_tokens, totals.image_codes, totals.images) == (
        tokens["text"],
        tokens["image codes"],
        tokens["images"],
    )
    packed: dict[str, list[int]] = {}
    for sample in shards:
        start = 0
        for segment in sample.segments:
            if segment["kind"] == "text":
                packed.setdefault(segment["doc"], [])
                start += segment["tokens"]
    whole = {
        row["doc_id"]: sum(len(s["text"] or ()) for s in row["segments"]) for row in rows(results["tokenize"], "tokenized")
    }
    assert set(packed) == set(whole)
    for doc_id, count in whole.items():
        assert sum(piece["text_tokens"] for piece in shards.pieces_of(doc_id)) == count


def test_a_second_run_does_nothing_and_starts_no_session(
    results: Results, chain: ModuleType, warc: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def no_session(self: RunContext) -> Any:
        raise AssertionError("a session was asked for")

    monkeypatch.setattr(RunContext, "session", no_session)
    before = tree(root)
    again = chain.run_chain(root, [warc])
    assert all(result.skipped for result in again.values()) and tree(root) == before
    assert {n: r.counts for n, r in again.items()} == {n: r.counts for n, r in results.items()}


def test_the_number_of_files_changes_no_shard(results: Results, chain: ModuleType, warc: Path, tmp_path: Path) -> None:
    other = chain.run_chain(tmp_path, [warc], files=1)

    def shards(result: StageResult) -> dict[str, str]:
        return {
            p.name: file_sha256(p) for p in (result.dir / "shards").rglob("*") if p.suffix in (".tar", ".idx", ".parquet")
        }

    assert shards(other["pack"]) == shards(results["pack"])
    key = lambda row: row["doc_id"]  # noqa: E731
    for name in ("ingest", "filter", "dedup", "caption"):
        assert rows(other[name], "documents") == sorted(rows(results[name], "documents"), key=key)


def start(script: Path, root: Path, warc: Path, kill_in: str) -> tuple[int, list[dict[str, Any]], str]:
    done = subprocess.run(
        [sys.executable, script, root, "3", "4", kill_in, warc], capture_output=True, text=True, check=False
    )
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()], done.stderr


def kill_in_each(stages: list[str], script: Path, warc: Path, root: Path, target: Path) -> None:
    """The source lies elsewhere and Spark has other partitions than in the run that nobody killed: neither may show."""
    moved = target / "moved" / warc.name
    moved.parent.mkdir()
    shutil.copy(warc, moved)
    warc = moved
    for stage in stages:
        code, _, stderr = start(script, target, warc, stage)
        assert code == -signal.SIGKILL, stderr
        assert find_committed(target, stage) == []
    code, lines, stderr = start(script, target, warc, "none")
    assert code == 0, stderr
    ended = {line["stage"]: line for line in lines}
    assert ended[stages[-1]]["kept"] >= 1 and not ended[stages[-1]]["skipped"]
    assert all(ended[stage]["skipped"] for stage in stages[:-1])
    assert tree(target) == tree(root)


def test_killed_in_a_stage_the_bytes_are_those_of_a_run_never_killed(
    results: Results, script: Path, warc: Path, root: Path, tmp_path: Path
) -> None:
    kill_in_each(["tokenize"], script, warc, root, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_killed_in_every_stage_the_bytes_are_those_of_a_run_never_killed(
    results: Results, script: Path, warc: Path, root: Path, tmp_path: Path
) -> None:
    kill_in_each([name for name in STAGES if name != "text_tokenizer"], script, warc, root, tmp_path)


def test_sources_without_records_end_in_an_empty_shard_set(session: Any, chain: ModuleType, tmp_path: Path) -> None:
    from nextflow_tokenize.shards.reader import ShardSet

    empty, noise = tmp_path / "empty.warc.gz", tmp_path / "noise.warc.gz"
    empty.write_bytes(b"")
    noise.write_bytes(os.urandom(5000))
    results = chain.run_chain(tmp_path / "run", [empty, noise], files=1, partitions=1)
    assert [row["reason"] for row in rows(results["ingest"], "asides")] == ["empty-file", "not-warc"]
    assert results["vision_tokenizer"].facts["tokenizer"] is None
    shards = ShardSet.open(results["pack"].dir / "shards", verify="full")
    assert len(shards) == 0 and shards.manifest.vision_tokenizer is None


def test_a_missing_source_is_named_before_any_work(chain: ModuleType, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"absent\.warc\.gz"):
        chain.run_chain(tmp_path / "run", [tmp_path / "absent.warc.gz"])
    assert not (tmp_path / "run").exists()


def test_a_reference_opens_its_file_until_that_changes(tmp_path: Path) -> None:
    one, other = tmp_path / "a.warc", tmp_path / "b.warc"
    one.write_bytes(b"1")
    other.write_bytes(b"2")
    uris = bind_sources(tmp_path / "root", [one, other])
    opener = source_opener(tmp_path / "root")
    assert [opener.read(uri, 0, 9) for uri in uris] == [b"1", b"2"]
    other.write_bytes(b"22")
    with pytest.raises(ChangedObject, match=r"b\.warc"):
        opener.read(uris[1], 0, 9)


def test_a_stage_that_lacks_a_section_or_an_input_says_which(tmp_path: Path, chain: ModuleType) -> None:
    ctx = RunContext(tmp_path, SparkConfig())
    with pytest.raises(KeyError, match="stage dedup needs the section 'ingest'"):
        run_stage("dedup", ctx, {"dedup": chain.SECTIONS["dedup"]}, {})
    with pytest.raises(KeyError, match="stage dedup needs the input 'filter'"):
        run_stage("dedup", ctx, chain.SECTIONS, {})


def test_a_tokenizer_that_was_exchanged_is_refused(
    results: Results, chain: ModuleType, warc: Path, root: Path, tmp_path: Path
) -> None:
    shutil.copytree(root, tmp_path / "run", symlinks=True)
    shutil.rmtree(tmp_path / "run" / results["tokenize"].dir.name)
    weights = tmp_path / "run" / results["vision_tokenizer"].dir.name / "tokenizer" / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(StageError, match="does not hold the tokenizer it was committed with"):
        chain.run_chain(tmp_path / "run", [warc])
