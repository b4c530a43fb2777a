"""Editing a document's nodes.

Invariant: two text nodes never stand side by side; all text between two images is one node, its blocks parted by an empty
line. So a tokeniser needs no rule for joining, and taking an image out joins what it parted.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from nextflow_data.addresses import site_of
from nextflow_data.document import Document, Image, Node, Task, text_node

BLOCK_SEPARATOR = "\n\n"
_ENDED = re.compile(r"[.!?:;\"”'’)\]…。！？]\s*$")


def join_texts(before: str, after: str) -> str:
    """Two texts that an image parted. They are one sentence (our rule) if the first does not end in a mark and the second
    goes on in lower case or with a mark; else they stay two blocks."""
    if not before or not after:
        return before or after
    if after[0] in ",.;:!?)":
        return before + after
    if after[0].islower() and not _ENDED.search(before):
        return f"{before} {after}"
    return before + BLOCK_SEPARATOR + after


def without(nodes: Iterable[Node], dropped: set[int] | frozenset[int]) -> list[Node]:
    """The nodes whose index is not in `dropped`, texts that come together joined, empty texts left out."""
    kept: list[Node] = []
    for index, node in enumerate(nodes):
        if index in dropped or (node["kind"] == "text" and not (node["text"] or "").strip()):
            continue
        if node["kind"] == "text" and kept and kept[-1]["kind"] == "text":
            kept[-1] = text_node(join_texts(kept[-1]["text"] or "", node["text"] or ""))
        else:
            kept.append(node)
    return kept


def text_of(document: Document) -> str:
    """All text of a document, in order, blocks parted by an empty line: what the text rules judge."""
    return BLOCK_SEPARATOR.join(node["text"] or "" for node in document["nodes"] if node["kind"] == "text")


def task_of(nodes: list[Node]) -> Task:
    """ "interleaved" where there is an image, else "text"."""
    return "interleaved" if any(node["kind"] == "image" for node in nodes) else "text"


def with_nodes(document: Document, nodes: list[Node]) -> Document:
    """`document` with other nodes. A task that its source gave it (a pair, an edit) stays while all its images do; else the
    task is set by what the nodes are."""
    whole = document["task"] not in ("text", "interleaved") and _images(nodes) == _images(document["nodes"])
    return {**document, "nodes": nodes, "task": document["task"] if whole else task_of(nodes)}


def _images(nodes: list[Node]) -> int:
    return sum(node["kind"] == "image" for node in nodes)


def recurrence_key(address: str, image: Image) -> str:
    """What is counted to find icons: "host sha256". Count the documents of a site that show the image, each once."""
    return f"{site_of(address)} {image['sha256']}"
