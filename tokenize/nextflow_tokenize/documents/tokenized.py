"""A tokenised document: the row that the tokenize stage commits and the packer reads.

One row a document, its segments in the order of its nodes, ids and codes inline. Both code arrays of an image are scale by
scale, row by row; `input` is what the model is fed (self-corrected), `target` what it must predict. Codes have the smallest
unsigned type for the codebook, so the schema depends on the codebook's size; whoever reads a row takes what the file says.
"""

from __future__ import annotations

from typing import Literal, TypedDict

import pyarrow as pa

from nextflow_tokenize.npy import code_dtype

TOKENIZED_VERSION = 2
"""Version of the rows. 1: all codes uint32."""


def tokenized_schema(codebook_size: int) -> pa.Schema:
    """The schema of rows whose codes are from a codebook of this many entries (1 where no image is tokenised).

    Raises ValueError where they do not fit 32 bits.
    """
    codes = pa.list_(pa.from_numpy_dtype(code_dtype(codebook_size)))
    segment = pa.struct(
        [
            ("kind", pa.string()),
            ("loss", pa.bool_()),
            ("text", pa.list_(pa.int32())),
            ("sha256", pa.string()),
            ("grid", pa.list_(pa.int32())),
            ("scales", pa.int32()),
            ("input", codes),
            ("target", codes),
        ]
    )
    return pa.schema(
        [
            pa.field("doc_id", pa.string(), nullable=False),
            pa.field("address", pa.string()),
            pa.field("source_kind", pa.string()),
            pa.field("licence", pa.string()),
            pa.field("task", pa.string()),
            pa.field("segments", pa.list_(segment), nullable=False),
        ]
    )


class TokenizedSegment(TypedDict):
    """`kind` "text": `text` holds the ids. `kind` "image": sha256, grid [h, w] of the last scale, scales, input, target."""

    kind: Literal["text", "image"]
    loss: bool
    text: list[int] | None
    sha256: str | None
    grid: list[int] | None
    scales: int | None
    input: list[int] | None
    target: list[int] | None


class TokenizedDocument(TypedDict):
    """A row of `tokenized_schema`."""

    doc_id: str
    address: str | None
    source_kind: str | None
    licence: str | None
    task: str | None
    segments: list[TokenizedSegment]
