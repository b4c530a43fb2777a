"""Rows of the data sets in one line each, as reports and stories show them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nextflow_data.common.excerpts import shorten

from nextflow_orchestration.words.rules import reason_words

SNIPPET = 100
"""Characters of a snippet."""


@dataclass(frozen=True)
class NodeLine:
    """One node of the document in short: "text" or "image", its size in words, and its beginning or its address."""

    index: int
    kind: str
    size: str
    words: str


@dataclass(frozen=True)
class AsideLine:
    """A record kept aside: the stage, the reason, what was found, and where the bytes are."""

    stage: str
    reason: str
    address: str
    where: str
    words: str


def node_words(node: dict[str, Any]) -> str:
    """A node in one line: the beginning of its text, or its image's address, size and words."""
    if node["kind"] == "text":
        return shorten(node["text"] or "", SNIPPET)
    image = node["image"]
    words = image["caption"] or image["alt"]
    return f"{image['address']} ({image['width']}×{image['height']} {image['format']})" + (
        f" {shorten(words, SNIPPET)}" if words else ""
    )


def node_lines(nodes: list[dict[str, Any]]) -> tuple[NodeLine, ...]:
    """Nodes in order, each in one line."""
    lines = []
    for index, node in enumerate(nodes):
        size = f"{len((node['text'] or '').split()):,} words" if node["kind"] == "text" else "image"
        lines.append(NodeLine(index, node["kind"], "" if size == "image" else size, node_words(node)))
    return tuple(lines)


def aside_line(stage: str, row: dict[str, Any]) -> AsideLine:
    """A row of the kept-aside data set in words."""
    where = f"{row['uri']}, offset {row['offset'] or 0:,}, {row['length'] or 0:,} bytes" if row["uri"] else ""
    words = ". ".join(w for w in (reason_words(row["reason"]), row["detail"]) if w)
    return AsideLine(row["stage"] or stage, row["reason"], row["address"] or "", where, words)
