"""`mnf explain`: what became of a page, told from the commits of its run and nothing else.

Every answer is looked up in what the stages committed (documents, decisions, kept-aside records, tokenised rows, the shard
set's index), so the story holds for a run made yesterday on another machine. The cost is a scan of the id and address
columns of one data set for each question, all held while it looks: seconds on millions of documents, with no index to keep
in step, and too much for a billion (SCALE.md).
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
from nextflow_data.addresses import canonical_address
from nextflow_data.storage.store_path import AnyPath
from nextflow_pipelines.contract.tables import dataset_files, iter_batches, read_table
from nextflow_tokenize.schedule import schedule_of, token_count
from nextflow_tokenize.shards.reader import ShardSet

from nextflow_orchestration.explain.nearest import alike, nearest
from nextflow_orchestration.explain.story import DocumentStory, PackStory, Placement, Step, Story, TokenLine, Verdict
from nextflow_orchestration.runs.lineage import Commit, chain, shard_folder
from nextflow_orchestration.runs.records import whose_run
from nextflow_orchestration.words.numbers import plural
from nextflow_orchestration.words.rows import AsideLine, aside_line, node_lines, node_words
from nextflow_orchestration.words.rules import in_words

_DOCUMENT_STAGES = ("ingest", "filter", "dedup", "caption")
_VERDICTS: dict[str, Verdict] = {"drop": "dropped", "edit": "edited", "flag": "flagged"}
_PACK_QUERY = re.compile(r"(shard-\d+)(?:\.tar)?:(.+)")
_MOST_ALIKE = 3
"""Decisions of one rule that are told one by one."""
TOKENIZED = "tokenized"
"""The data set of the tokenize stage."""


def explain(root: AnyPath, query: str, recipe: str | None = None) -> Story:
    """The story that `query` asks for in the last run under `root`, or the last one of `recipe`.

    `query`: a page's address (also without scheme, or the end of it where only one page ends so), a document id or the
    beginning of one, the beginning of an image's sha256 (8 digits or more), or `shard:key`. An unknown query gives a Story
    with the nearest addresses. Raises NoRun when nothing is committed under `root`.
    """
    commits = chain(root, recipe=recipe)
    return replace(_told(commits, query.strip()), run=whose_run(root, recipe))


def _told(commits: dict[str, Commit], query: str) -> Story:
    if found := _PACK_QUERY.fullmatch(query):
        return _explain_pack(commits, query, found[1], found[2])
    first = (
        next(commits[s] for s in _DOCUMENT_STAGES if s in commits) if any(s in commits for s in _DOCUMENT_STAGES) else None
    )
    if first is None:
        return Story(query)
    ids, addresses = _directory(first)
    matches = _match(query, ids, addresses, first)
    asides = _asides(commits, query)
    documents = tuple(_document(commits, doc_id) for doc_id in matches[:5])
    if documents or asides:
        more = tuple(addresses[ids.index(m)] for m in matches[5:15])
        return Story(query, documents, asides=asides, suggestions=more)
    return Story(query, suggestions=nearest(query, addresses))


def _directory(commit: Commit) -> tuple[list[str], list[str]]:
    """Ids and addresses of every document of a stage, in one order."""
    ids: list[str] = []
    addresses: list[str] = []
    for batch in iter_batches(dataset_files(commit.folder, "documents"), rows=4096, columns=["doc_id", "source.address"]):
        ids += batch["doc_id"].to_pylist()
        addresses += pc.struct_field(batch["source"], "address").to_pylist()
    return ids, addresses


def _match(query: str, ids: list[str], addresses: list[str], commit: Commit) -> list[str]:
    wanted = {query, canonical_address(query), canonical_address(f"https://{query}"), canonical_address(f"http://{query}")}
    if exact := [i for i, a in zip(ids, addresses, strict=True) if a in wanted]:
        return exact
    if re.fullmatch(r"[0-9a-f]{4,64}", query):
        if by_id := [i for i in ids if i.startswith(query)]:
            return by_id
        if len(query) >= 8 and (by_image := _documents_showing(commit, query)):
            return by_image
    ending = [i for i, a in zip(ids, addresses, strict=True) if len(query) >= 4 and a.endswith(query)]
    return ending if len(ending) == 1 else []


def _documents_showing(commit: Commit, sha256: str) -> list[str]:
    found = []
    for batch in iter_batches(dataset_files(commit.folder, "documents"), columns=["doc_id", "nodes"]):
        for row in batch.to_pylist():
            if any((node["image"] or {}).get("sha256", "").startswith(sha256) for node in row["nodes"]):
                found.append(row["doc_id"])
    return found


def _asides(commits: dict[str, Commit], query: str) -> tuple[AsideLine, ...]:
    wanted = {query, canonical_address(query), canonical_address(f"https://{query}")} - {None}
    found = []
    for stage, commit in commits.items():
        if not commit.has("asides"):
            continue
        table = read_table(commit.folder, "asides")
        rows = table.filter(pc.is_in(table["address"], value_set=pa.array(sorted(w for w in wanted if w), pa.string())))
        found += [aside_line(stage, row) for row in rows.to_pylist()]
    return tuple(found)


def _rows(commit: Commit, dataset: str, doc_id: str) -> list[dict[str, Any]]:
    if not commit.has(dataset):
        return []
    return read_table(commit.folder, dataset, filters=[("doc_id", "==", doc_id)]).to_pylist()


def _document(commits: dict[str, Commit], doc_id: str) -> DocumentStory:
    rows: dict[str, dict[str, Any]] = {}
    steps: list[Step] = []
    last: dict[str, Any] | None = None
    gone = ""
    for stage, commit in commits.items():
        decisions = _rows(commit, "decisions", doc_id)
        steps += _steps(stage, decisions, last)
        if stage not in _DOCUMENT_STAGES or not commit.has("documents"):
            continue
        row = next(iter(_rows(commit, "documents", doc_id)), None)
        if row is not None:
            rows[stage] = last = row
            if not decisions:
                steps.append(Step(stage, "kept", _kept_words(stage, row)))
            continue
        if last is not None:
            gone = stage
            if not any(d["action"] == "drop" and d["scope"] == "document" for d in decisions):
                steps.append(Step(stage, "missing", "is not in the output, and no decision says why: please report this"))
        break
    assert last is not None, doc_id
    first = next(iter(rows.values()))
    tokens, placements = _tokens(commits, doc_id), _placements(commits, doc_id)
    return DocumentStory(
        doc_id=doc_id,
        address=first["source"]["address"],
        outcome=_outcome(commits, gone, steps, tokens, placements),
        record=_record(doc_id, first, last),
        nodes=node_lines(first["nodes"]),
        steps=tuple(steps),
        final=node_lines(last["nodes"]) if last["nodes"] != first["nodes"] and not gone else (),
        tokens=tokens,
        placements=placements,
    )


def _steps(stage: str, decisions: list[dict[str, Any]], before: dict[str, Any] | None) -> list[Step]:
    """A stage's decisions on one document; of one rule's many, the first few and how many more."""
    steps: list[Step] = []
    seen: dict[tuple[str, str, str], int] = {}
    for decision in decisions:
        key = decision["rule"], decision["action"], decision["scope"]
        seen[key] = seen.get(key, 0) + 1
        if seen[key] <= _MOST_ALIKE:
            steps.append(_step(stage, decision, before))
    for (rule, action, scope), count in seen.items():
        if count > _MOST_ALIKE:
            steps.append(Step(stage, _verdict(action, scope), f"{rule}: {count - _MOST_ALIKE} more like these", scope))
    return steps


def _verdict(action: str, scope: str) -> Verdict:
    """What a decision did to the document: one that took a part out of it has edited it."""
    return _VERDICTS.get("edit" if action == "drop" and scope != "document" else action, "flagged")


def _step(stage: str, decision: dict[str, Any], before: dict[str, Any] | None) -> Step:
    """One decision; with the image it was about, where it was about one."""
    index = decision["index"] if decision["scope"] == "node" and before is not None else None
    node = before["nodes"][index] if before is not None and index is not None and index < len(before["nodes"]) else None
    snippet = node_words(node) if node is not None and node["image"] is not None else ""
    words = in_words(decision)
    return Step(stage, _verdict(decision["action"], decision["scope"]), words, decision["scope"], snippet)


def _kept_words(stage: str, row: dict[str, Any]) -> str:
    """What no decision means in a stage."""
    images = sum(node["kind"] == "image" for node in row["nodes"])
    return {
        "ingest": "parsed, nothing was left out",
        "filter": "passed every rule",
        "dedup": "no copy of it" + (", or of its images," if images else "") + " stays elsewhere",
        "caption": f"words were found for {plural(images, 'image')}" if images else "it has no image to find words for",
    }[stage]


def _record(doc_id: str, first: dict[str, Any], last: dict[str, Any]) -> tuple[tuple[str, str], ...]:
    source = first["source"]
    return tuple(
        (name, str(value))
        for name, value in (
            ("id", doc_id),
            ("record", f"{source['uri']}, offset {source['offset']:,}, {source['length']:,} bytes ({source['kind']})"),
            ("date", source["date"]),
            ("licence", last["licence"]),
            ("language", last["lang"]),
            ("task", last["task"]),
        )
        if value
    )


def _tokens(commits: dict[str, Commit], doc_id: str) -> tuple[TokenLine, ...]:
    if "tokenize" not in commits:
        return ()
    rows = _rows(commits["tokenize"], TOKENIZED, doc_id)
    lines = []
    for index, segment in enumerate(rows[0]["segments"] if rows else ()):
        use = "" if segment["loss"] else ", condition only"
        if segment["kind"] == "text":
            lines.append(TokenLine(index, "text", len(segment["text"] or ()), f"text ids{use}"))
            continue
        (h, w), scales = segment["grid"], segment["scales"]
        changed = sum(a != b for a, b in zip(segment["input"], segment["target"], strict=True))
        codes = token_count(schedule_of((h, w), scales))
        words = f"{scales} scales to {h}×{w}, {changed} of {codes} input codes differ from their targets{use}"
        lines.append(TokenLine(index, "image", codes, words))
    return tuple(lines)


def _placement(row: dict[str, Any]) -> Placement:
    parts = [f"{row['text_tokens']:,} text tokens"] if row["text_tokens"] else []
    parts += [f"{plural(row['images'], 'image')} in {row['image_codes']:,} codes"] if row["images"] else []
    words = f"piece {row['piece'] + 1}: {', '.join(parts)}" if row["piece"] else ", ".join(parts)
    return Placement(row["shard"].removesuffix(".tar"), row["key"], row["first_slot"], row["last_slot"] - 1, words)


def _placements(commits: dict[str, Commit], doc_id: str) -> tuple[Placement, ...]:
    folder = shard_folder(commits)
    if folder is None:
        return ()
    return tuple(_placement(row) for row in ShardSet.open(folder).pieces_of(doc_id))


def _explain_pack(commits: dict[str, Commit], query: str, shard: str, key: str) -> Story:
    folder = shard_folder(commits)
    if folder is None:
        return Story(query, note="This run has no shards yet.")
    shards = ShardSet.open(folder)
    number = int(shard.removeprefix("shard-"))
    if number >= len(shards.shards):
        last = shards.shards[len(shards.shards) - 1].name.removesuffix(".tar")
        return Story(query, note=f"The set's last shard is {last}.")
    record = shards.shards[number]
    of_pack = pc.field("key") == key
    found = shards.samples(record).filter(of_pack).to_pylist()
    if not found:
        keys = [f"{shard}:{known}" for known in shards.samples(record)["key"].to_pylist()]
        return Story(query, suggestions=tuple(alike(query, keys, 0.0)))
    (sample,) = found
    rows = shards.documents(record).filter(of_pack).to_pylist()
    rows.sort(key=lambda row: row["first_slot"])
    pieces = tuple((_placement(row), row["address"] or row["doc_id"]) for row in rows)
    documents = tuple(_document(commits, doc_id) for doc_id in dict.fromkeys(row["doc_id"] for row in rows))
    return Story(query, documents, PackStory(shard, key, sample["slots"], sample["cost"], pieces))


def _outcome(
    commits: dict[str, Commit],
    gone: str,
    steps: list[Step],
    tokens: tuple[TokenLine, ...],
    placements: tuple[Placement, ...],
) -> str:
    """The whole story in one sentence."""
    if gone:
        why = _why(steps, gone)
        return f"Not in the shards: {gone} dropped it" + (f" ({why})." if why else ".")
    if placements:
        packs = f"{len(placements)} packs" if len(placements) > 1 else f"{placements[0].shard}:{placements[0].key}"
        return f"In the shards: {sum(t.tokens for t in tokens):,} tokens, in {packs}."
    for stage, words in (("tokenize", "is not tokenised yet"), ("pack", "is not packed yet")):
        if stage not in commits:
            return f"Kept so far; the run {words}."
    dropped = _why(steps)
    return "Not in the shards" + (f": {dropped}." if dropped else ", and no decision says why: please report this.")


def _why(steps: list[Step], stage: str | None = None) -> str:
    """What dropped the document, in words, and the part of it that was the reason; "" where nothing did."""
    whole = next((s for s in reversed(steps) if s.verdict == "dropped" and stage in (None, s.stage)), None)
    if whole is None:
        return ""
    parts = [s.words for s in steps if s.stage == whole.stage and s.scope == "segment"]
    return "; ".join([whole.words, *parts[:1]])
