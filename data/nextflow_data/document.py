"""Documents: the rows that cross every border of the data side. What is done to them is `nextflow_data.decisions`.

A document is an ordered list of text and image nodes. Pixels never travel: an image node holds a reference (file, offset,
length) and what was measured once when the image was ingested. The cost is a seek per image at tokenisation, of a store
a request; the gain is that documents stay small, and that a shard can be traced to bytes.

Rows are plain dicts in the shape of the Arrow schemas below (`table.to_pylist()` gives them back), because every stage
reads and writes Arrow. `SCHEMA_VERSION` is stored in each stage manifest and checked on reading.
"""

from __future__ import annotations

import hashlib
from typing import Literal, TypedDict

import pyarrow as pa

SCHEMA_VERSION = 2
"""Of documents and decisions: 2 since decisions say `scope` and `index` (`decisions.decisions_as_now` reads the older)."""

Task = Literal["text", "text-to-image", "image-to-text", "editing", "interleaved"]

REF = pa.struct([("uri", pa.string()), ("offset", pa.int64()), ("length", pa.int64())])

IMAGE = pa.struct(
    [
        ("ref", REF),
        ("address", pa.string()),
        ("sha256", pa.string()),
        ("format", pa.string()),
        ("width", pa.int32()),
        ("height", pa.int32()),
        ("phash", pa.string()),
        ("sharpness", pa.float64()),
        ("entropy", pa.float64()),
        ("edge_density", pa.float64()),
        ("colourfulness", pa.float64()),
        ("alt", pa.string()),
        ("caption", pa.string()),
        ("captioner", pa.string()),
    ]
)

NODE = pa.struct([("kind", pa.string()), ("text", pa.string()), ("image", IMAGE)])

SOURCE = pa.struct(
    [
        ("address", pa.string()),
        ("uri", pa.string()),
        ("offset", pa.int64()),
        ("length", pa.int64()),
        ("kind", pa.string()),
        ("date", pa.string()),
    ]
)

DOCUMENT_SCHEMA = pa.schema(
    [
        pa.field("doc_id", pa.string(), nullable=False),
        pa.field("source", SOURCE, nullable=False),
        pa.field("nodes", pa.list_(NODE), nullable=False),
        pa.field("task", pa.string(), nullable=False),
        pa.field("licence", pa.string()),
        pa.field("consent", pa.string()),
        pa.field("lang", pa.string()),
    ]
)


class Ref(TypedDict):
    """Where bytes lie. For a gzipped WARC, offset and length are those of the compressed member, in bytes."""

    uri: str
    offset: int
    length: int


class Image(TypedDict):
    """One image node's content: its reference, its measurements (see `nextflow_data.images.measure`) and its words."""

    ref: Ref
    address: str | None
    sha256: str
    format: str
    width: int
    height: int
    phash: str
    sharpness: float
    entropy: float
    edge_density: float
    colourfulness: float
    alt: str | None
    caption: str | None
    captioner: str | None


class Node(TypedDict):
    """`kind` is "text" (then `text` is set, `image` None) or "image" (the reverse)."""

    kind: Literal["text", "image"]
    text: str | None
    image: Image | None


class Source(TypedDict):
    """Where a document came from: its web address, and the file and record that hold it."""

    address: str
    uri: str
    offset: int
    length: int
    kind: str
    date: str | None


class Document(TypedDict):
    """A row of DOCUMENT_SCHEMA."""

    doc_id: str
    source: Source
    nodes: list[Node]
    task: Task
    licence: str | None
    consent: str | None
    lang: str | None


def doc_id(address: str, record: str) -> str:
    """Identity of a document: the first 32 hex digits of sha256(address, newline, record).

    `record` is what tells two captures of one address apart (a WARC record id, or a row's number). No local path enters,
    so the id is the same on every machine. 128 bits make a collision among 10^12 documents a 10^-15 event.
    """
    return hashlib.sha256(f"{address}\n{record}".encode()).hexdigest()[:32]


def text_node(text: str) -> Node:
    """A text node."""
    return {"kind": "text", "text": text, "image": None}


def image_node(image: Image) -> Node:
    """An image node."""
    return {"kind": "image", "text": None, "image": image}
