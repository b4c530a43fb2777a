"""The text tokenizer's sample: all of a small corpus, a bounded part of a large one, the same however documents are
spread."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from nextflow_pipelines.contract.tables import read_table
from nextflow_pipelines.spark.context import StageResult
from nextflow_pipelines.stages.common import document_files
from nextflow_pipelines.stages.text_tokenizer import sample_texts

Results = Mapping[str, StageResult]


def texts_of(document: Any) -> list[str]:
    found = [n["image"]["caption"] if n["image"] is not None else n["text"] for n in document["nodes"]]
    return [text for text in found if text]


def test_a_small_corpus_is_taken_whole(results: Results, session: Any) -> None:
    documents = read_table(results["caption"].dir, "documents").to_pylist()
    rows = sample_texts(document_files(results["caption"]), 1 << 30, 0, session).collect()
    assert {row["doc_id"]: row["texts"] for row in rows} == {d["doc_id"]: texts_of(d) for d in documents}


def test_of_more_a_seeded_part_is_taken(results: Results, session: Any) -> None:
    """Those whose hash is in the lowest part of its range; another seed draws others; one file or several, the same."""
    files = document_files(results["caption"])
    documents = read_table(results["caption"].dir, "documents").to_pylist()
    sizes = {d["doc_id"]: sum(len(text.encode()) for text in texts_of(d)) for d in documents}
    most = sum(sizes.values()) // 2
    drawn = {}
    for seed in (0, 1):
        limit = (1 << 48) * most // sum(sizes.values())
        expected = {d for d in sizes if int(sha256(f"{seed}:{d}".encode()).hexdigest()[:12], 16) < limit}
        drawn[seed] = {row["doc_id"] for row in sample_texts(files, most, seed, session).collect()}
        assert drawn[seed] == expected and 0 < len(expected) < len(sizes)
    assert drawn[0] != drawn[1]
