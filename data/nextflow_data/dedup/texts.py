"""Duplicate documents: who is whose copy, and who stays.

Spark groups documents by text hash and by band key; everything that decides is here and works on any subset, in any order.
The survivor of a group is the document with most images, then most characters, then the smallest doc_id: the richest copy
(our rule), and the same one on any number of partitions.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import TypedDict

import numpy as np

from nextflow_data.common.stage_names import DEDUP
from nextflow_data.config import DedupConfig
from nextflow_data.decisions import Decision, Finding, Subject, decision
from nextflow_data.dedup.clusters import connected_components
from nextflow_data.dedup.minhash import signature, similarity_of, text_hash
from nextflow_data.document import Document
from nextflow_data.nodes import text_of

Edge = tuple[str, str, float]
"""(doc_id, doc_id, similarity 0…1); 1.0 for equal texts."""


class DocumentSummary(TypedDict):
    """What deduplication needs of a document. `signature` is uint32 [bands·rows] as a list, None for a short text."""

    doc_id: str
    address: str
    images: int
    characters: int
    text_hash: str
    signature: list[int] | None


def summarise(document: Document, config: DedupConfig) -> DocumentSummary:
    """The summary of one document."""
    found = signature(document, config)
    return {
        "doc_id": document["doc_id"],
        "address": document["source"]["address"],
        "images": sum(node["kind"] == "image" for node in document["nodes"]),
        "characters": len(text_of(document)),
        "text_hash": text_hash(document),
        "signature": None if found is None else [int(value) for value in found],
    }


def choose_survivor(group: Iterable[DocumentSummary]) -> DocumentSummary:
    """The document that stays: most images, then most characters, then the smallest doc_id."""
    return min(group, key=lambda s: (-s["images"], -s["characters"], s["doc_id"]))


def decide_documents(summaries: Mapping[str, DocumentSummary], edges: Iterable[Edge], config: DedupConfig) -> list[Decision]:
    """A drop for every document of a group but its survivor, in order of doc_id.

    `value` is the similarity to the survivor where the two have signatures (it may be under the threshold: groups are
    chains), else that of the edge that tied the document in.
    """
    edges = list(edges)
    labels = connected_components((a, b) for a, b, _ in edges)
    groups: dict[str, list[DocumentSummary]] = defaultdict(list)
    for one in sorted(labels):
        groups[labels[one]].append(summaries[one])
    strongest: dict[str, float] = {}
    for a, b, similarity in edges:
        strongest[a] = max(similarity, strongest.get(a, 0.0))
        strongest[b] = max(similarity, strongest.get(b, 0.0))
    decisions: list[Decision] = []
    for group in groups.values():
        survivor = choose_survivor(group)
        for summary in group:
            if summary["doc_id"] == survivor["doc_id"]:
                continue
            equal = summary["text_hash"] == survivor["text_hash"]
            value = 1.0 if equal else strongest[summary["doc_id"]]
            if not equal and summary["signature"] is not None and survivor["signature"] is not None:
                value = similarity_of(np.array(summary["signature"]), np.array(survivor["signature"]))
            finding = Finding(
                "dedup.exact" if equal else "dedup.min_similarity",
                value,
                1.0 if equal else config.min_similarity,
                f"kept {survivor['doc_id']} {survivor['address']}",
            )
            decisions.append(decision(Subject(summary["doc_id"], summary["address"]), DEDUP, finding, "drop"))
    return sorted(decisions, key=lambda d: d["doc_id"])
