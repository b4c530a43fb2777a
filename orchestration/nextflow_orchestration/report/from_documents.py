"""The report's part on documents: what was left after each stage, what each rule did, what was kept aside.

Read from the stages' data sets batch by batch, so memory grows with the number of decisions' values and not with the text.
"""

from __future__ import annotations

import json
import statistics
from array import array
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import pyarrow.compute as pc
from nextflow_data.common.excerpts import shorten
from nextflow_data.common.stage_names import PACK, TOKENIZE
from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.contract.metrics import read_metrics
from nextflow_pipelines.contract.tables import dataset_files, iter_batches, read_decisions, read_table
from nextflow_pipelines.registry import STAGES

from nextflow_orchestration.report.model import Example, Fact, Kept, Rule, StageCount
from nextflow_orchestration.report.pictures import Gallery
from nextflow_orchestration.runs.lineage import Commit
from nextflow_orchestration.words.numbers import plural
from nextflow_orchestration.words.rows import aside_line, node_words
from nextflow_orchestration.words.rules import number, place, reason_words, rule_words

_ORDER = {"drop": 0, "edit": 1, "flag": 2}


def stage_seconds(root: AnyPath, commit: Commit) -> float | None:
    """How long the stage took when it was made, from the run's metrics; None where that is not known."""
    found = None
    for row in read_metrics(root, commit.manifest["stage"]):
        if row.get("fingerprint") == commit.manifest["fingerprint"] and isinstance(row.get("seconds"), int | float):
            found = float(row["seconds"])
    return found


def count_documents(commit: Commit) -> tuple[int, int]:
    """(documents, image nodes) that a stage committed."""
    documents = images = 0
    for batch in iter_batches(dataset_files(commit.folder, "documents"), rows=4096, columns=["nodes.list.element.kind"]):
        documents += batch.num_rows
        kinds = pc.struct_field(pc.list_flatten(batch["nodes"]), "kind")
        images += pc.sum(pc.equal(kinds, "image")).as_py() or 0
    return documents, images


def stage_counts(root: AnyPath, commits: dict[str, Commit], reused: frozenset[str]) -> tuple[StageCount, ...]:
    """What was left after each stage, in documents and images; the stages past documents are counted by their manifests."""
    found = []
    for stage, commit in commits.items():
        counted = count_documents(commit) if commit.has("documents") else _later_counts(commit)
        if counted is not None:
            seconds = stage_seconds(root, commit)
            found.append(StageCount(stage, STAGES[stage].does, *counted, commit.folder.name, seconds, stage in reused))
    return tuple(found)


def _later_counts(commit: Commit) -> tuple[int, int] | None:
    """(documents, images) of the tokenize and pack stages; None where they are not stated."""
    if commit.manifest["stage"] not in (TOKENIZE, PACK):
        return None
    if commit.manifest["stage"] == TOKENIZE:
        counts = commit.manifest["counts"]
        documents, images = counts.get("rows", {}).get("tokenized"), counts.get("tokens", {}).get("images")
    else:
        try:
            totals = json.loads((commit.folder / "shards" / "manifest.json").read_bytes())["totals"]
        except (OSError, ValueError, KeyError):
            return None
        documents, images = totals.get("documents"), totals.get("images")
    return (documents, images) if isinstance(documents, int) and isinstance(images, int) else None


def input_facts(commits: dict[str, Commit]) -> tuple[Fact, ...]:
    """The source files with their hashes, and the records in them by kind."""
    if "ingest" not in commits:
        return ()
    manifest = commits["ingest"].manifest
    facts = [
        Fact("File", f"{name.partition('-')[2] or name} (sha256 {digest})") for name, digest in manifest["inputs"].items()
    ]
    records = manifest["counts"].get("records", {})
    if records:
        facts.append(
            Fact(
                "Records",
                ", ".join(plural(count, kind) for kind, count in sorted(records.items(), key=lambda item: -item[1])),
            )
        )
    return tuple(facts)


@dataclass
class _Group:
    stage: str
    rule: str
    action: str
    scope: str
    count: int = 0
    documents: set[str] = field(default_factory=set)
    thresholds: set[float] = field(default_factory=set)
    values: array[float] = field(default_factory=lambda: array("d"))
    cases: list[dict[str, Any]] = field(default_factory=list)
    alike: list[dict[str, Any]] = field(default_factory=list)
    details: set[str] = field(default_factory=set)

    def add(self, row: dict[str, Any], examples: int) -> None:
        """Counts a decision. Examples are of different documents and of different images: a site's logo is one case."""
        self.count += 1
        if len(self.cases) < examples and row["doc_id"] not in self.documents:
            known = row["index"] is not None and row["detail"] in self.details
            (self.alike if known else self.cases).append(row)
            self.details.add(row["detail"])
            del self.alike[examples:]
        self.documents.add(row["doc_id"])
        if row["threshold"] is not None:
            self.thresholds.add(row["threshold"])
        if row["value"] is not None:
            self.values.append(row["value"])


def _importance(group: _Group) -> tuple[int, bool, int, str]:
    """Drops first, of documents before their parts; then the oftenest."""
    return _ORDER.get(group.action, 3), group.scope != "document", -group.count, group.rule


def rules(commits: dict[str, Commit], examples: int, gallery: Gallery) -> tuple[Rule, ...]:
    """Every rule of every stage with what it did; drops first, then the oftenest first."""
    found: list[Rule] = []
    before: Commit | None = None
    for stage, commit in commits.items():
        if commit.has("decisions"):
            groups: dict[tuple[str, str, str], _Group] = {}
            for batch in read_decisions(commit.folder):
                for row in batch.to_pylist():
                    rule, action, scope = row["rule"], row["action"], row["scope"]
                    group = groups.setdefault((rule, action, scope), _Group(stage, rule, action, scope))
                    group.add(row, examples)
            for group in groups.values():
                group.cases = (group.cases + group.alike)[: max(len(group.cases), min(2, examples))]
            ordered = sorted(
                groups.values(), key=lambda g: (_ORDER.get(g.action, 3), g.scope != "document", -g.count, g.rule)
            )
            documents = _documents(before or commit, {case["doc_id"] for g in ordered for case in g.cases})
            found += [_rule(group, documents, gallery) for group in ordered]
        if commit.has("documents"):
            before = commit
    return tuple(found)


def _documents(commit: Commit, wanted: set[str]) -> dict[str, dict[str, Any]]:
    if not wanted or not commit.has("documents"):
        return {}
    rows = read_table(commit.folder, "documents", columns=["doc_id", "nodes"], filters=[("doc_id", "in", sorted(wanted))])
    return {row["doc_id"]: row for row in rows.to_pylist()}


def _rule(group: _Group, documents: dict[str, dict[str, Any]], gallery: Gallery) -> Rule:
    values = None
    if group.values:
        low, middle, high = min(group.values), statistics.median(group.values), max(group.values)
        values = (number(low), number(middle), number(high))
    threshold = "varies" if len(group.thresholds) > 1 else number(next(iter(group.thresholds), None))
    return Rule(
        stage=group.stage,
        rule=group.rule,
        action=group.action if group.scope == "document" else f"{group.action} {group.scope}",
        means=rule_words(group.rule),
        count=group.count,
        documents=len(group.documents),
        threshold=threshold,
        values=values,
        examples=tuple(_example(case, documents.get(case["doc_id"]), gallery) for case in group.cases),
    )


def _example(case: dict[str, Any], document: dict[str, Any] | None, gallery: Gallery) -> Example:
    nodes = document["nodes"] if document else []
    index = case["index"] if case["scope"] == "node" else None
    node = nodes[index] if index is not None and index < len(nodes) else None
    text = "\n\n".join(n["text"] for n in nodes if n["text"])
    snippet = shorten(gist(text), 160) if node is None else node_words(node)
    return Example(
        address=case["address"] or case["doc_id"],
        where=place(case["scope"], case["index"], node),
        value=number(case["value"]),
        detail=shorten(case["detail"] or "", 300),
        snippet=snippet,
        picture=gallery.thumbnail(node["image"]) if node is not None and node["image"] else None,
    )


def gist(text: str) -> str:
    """The first paragraph that reads like prose (eight words and a final mark), else the whole text."""
    blocks = (block.strip() for block in text.split("\n\n"))
    return next((b for b in blocks if len(b.split()) >= 8 and b.endswith((".", "!", "?"))), text)


def kept_aside(commits: dict[str, Commit], examples: int) -> tuple[Kept, ...]:
    """Kept-aside records by stage and reason, the oftenest first."""
    counts: dict[tuple[str, str], int] = {}
    cases: dict[tuple[str, str], list[Example]] = {}
    for stage, row in _asides(commits):
        key = stage, row["reason"]
        counts[key] = counts.get(key, 0) + 1
        if len(cases.setdefault(key, [])) < examples:
            line = aside_line(stage, row)
            cases[key].append(
                Example(line.address or line.where, line.where if line.address else "", detail=row["detail"] or "")
            )
    ordered = sorted(counts, key=lambda key: (list(commits).index(key[0]), -counts[key], key[1]))
    return tuple(
        Kept(stage, reason_text(reason), counts[stage, reason], tuple(cases[stage, reason])) for stage, reason in ordered
    )


def reason_text(reason: str) -> str:
    """A reason by name and in words."""
    words = reason_words(reason)
    return reason if words == reason.replace("-", " ") else f"{reason}: {words}"


def _asides(commits: dict[str, Commit]) -> Iterator[tuple[str, dict[str, Any]]]:
    for stage, commit in commits.items():
        if commit.has("asides"):
            for batch in iter_batches(dataset_files(commit.folder, "asides"), rows=4096):
                for row in batch.to_pylist():
                    yield stage, row
