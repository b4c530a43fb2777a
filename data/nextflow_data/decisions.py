"""Decisions and kept-aside records: what was done to a document, what could not be used, and one way to say either.

A Decision means the same in every stage. `scope` and `index` say what it was done to: the whole document, the node of that
number in the document as the stage received it, or the segment of that number. `action` says what was done to just that:
`drop` took it out, `edit` changed it, `flag` only noted it. A stage that drops a document because of one of its parts says
both, each as a decision of its own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NotRequired, TypedDict

import pyarrow as pa

from nextflow_data.document import Document, Ref

Action = Literal["drop", "edit", "flag"]
Scope = Literal["document", "node", "segment"]

DECISION_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("address", pa.string()),
        pa.field("scope", pa.string(), nullable=False),
        pa.field("index", pa.int32()),
        pa.field("stage", pa.string(), nullable=False),
        pa.field("rule", pa.string(), nullable=False),
        pa.field("value", pa.float64()),
        pa.field("threshold", pa.float64()),
        pa.field("action", pa.string(), nullable=False),
        pa.field("detail", pa.string()),
    ]
)

ASIDE_SCHEMA = pa.schema(
    [
        pa.field("stage", pa.string(), nullable=False),
        pa.field("reason", pa.string(), nullable=False),
        pa.field("address", pa.string()),
        pa.field("uri", pa.string()),
        pa.field("offset", pa.int64()),
        pa.field("length", pa.int64()),
        pa.field("detail", pa.string()),
    ]
)


class Decision(TypedDict):
    """A row of DECISION_SCHEMA: what one rule did to one document, or to one of its nodes or segments.

    `index` is None for the whole document. `threshold` is None for rules that have none; `detail` says in words what a
    number cannot (the id of the copy that stays, the text removed).
    """

    doc_id: str
    address: str | None
    scope: Scope
    index: int | None
    stage: str
    rule: str
    value: float | None
    threshold: float | None
    action: Action
    detail: str | None


class Aside(TypedDict):
    """A row of ASIDE_SCHEMA: a record that could not be used, and why. The bytes stay where `uri`/`offset` say."""

    stage: str
    reason: str
    address: NotRequired[str | None]
    uri: NotRequired[str | None]
    offset: NotRequired[int | None]
    length: NotRequired[int | None]
    detail: NotRequired[str | None]


@dataclass(frozen=True, slots=True)
class Finding:
    """What a rule found: its name, what was measured and what was asked (None where it has no number), the rest in words."""

    rule: str
    value: float | None = None
    threshold: float | None = None
    detail: str | None = None


@dataclass(frozen=True, slots=True)
class Subject:
    """The document that decisions are about."""

    doc_id: str
    address: str | None

    @classmethod
    def of(cls, document: Document) -> Subject:
        """That of a row."""
        return cls(document["doc_id"], document["source"]["address"])


def decision(
    subject: Subject, stage: str, finding: Finding, action: Action, index: int | None = None, scope: Scope | None = None
) -> Decision:
    """A row. `scope` is "node" where an index is given, else "document", unless it is said."""
    return {
        "doc_id": subject.doc_id,
        "address": subject.address,
        "scope": scope or ("document" if index is None else "node"),
        "index": index,
        "stage": stage,
        "rule": finding.rule,
        "value": finding.value,
        "threshold": finding.threshold,
        "action": action,
        "detail": finding.detail,
    }


def aside(stage: str, reason: str, address: str | None, ref: Ref, detail: str | None = None) -> Aside:
    """A row; `ref` is where the bytes lie that could not be used."""
    return {
        "stage": stage,
        "reason": reason,
        "address": address,
        "uri": ref["uri"],
        "offset": ref["offset"],
        "length": ref["length"],
        "detail": detail,
    }


def decisions_as_now(table: pa.Table) -> pa.Table:
    """Decisions in DECISION_SCHEMA, also from schema version 1, whose `node` meant one thing or another.

    There, a removed image was an "edit" for filter and dedup and a "drop" for tokenize, and pack's node was a segment for
    which the whole document went. A table without that column is given back as it is.
    """
    if "node" not in table.schema.names:
        return table
    rows: list[Any] = table.to_pylist()
    for row in rows:
        node = row.pop("node")
        row["scope"], row["index"] = ("document" if node is None else "node"), node
        if node is not None and row["stage"] == "pack":
            row |= {"scope": "document", "index": None, "detail": f"segment {node}: {row['detail']}"}
        elif node is not None and row["rule"].startswith(("image.", "dedup.image")):
            row["action"] = "drop"
    return pa.Table.from_pylist(rows, schema=DECISION_SCHEMA)
