"""Records: what a source lists, in one shape for every kind of source, and how one says that it cannot be used.

A record is the unit that is found again by (uri, offset, length): a WARC record, a row, a tar's member, a whole video. The
offset and length are bytes wherever a file has them; a columnar file counts rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Generic, Literal, NotRequired, TypedDict, TypeVar

from nextflow_data.common.range_opener import kind_and_place
from nextflow_data.common.stage_names import INGEST
from nextflow_data.decisions import Aside, aside
from nextflow_data.document import Ref, Source

P = TypeVar("P")

RecordKind = Literal["page", "document", "image", "other"]
"""What a record is good for: "page" makes a document that may show images of other records, by their address; "document"
makes one from itself alone; "image" is there for those that name it; "other" is only listed."""


class RecordInfo(TypedDict):
    """One usable record. `uri`, `offset`, `length` make a Ref; `address` is what others name it by, and with `record_id` the
    identity of its document: neither may hold a path of this machine."""

    address: str
    uri: str
    offset: int
    length: int
    kind: RecordKind
    record_id: str
    mime: NotRequired[str | None]
    charset: NotRequired[str | None]
    status: NotRequired[int | None]
    date: NotRequired[str | None]
    licence: NotRequired[str | None]


class Unusable(Exception):
    """A record, page, row or image that cannot be used: `reason` in one hyphened word for counting, `detail` in words."""

    def __init__(self, reason: str, detail: str = "") -> None:
        super().__init__(f"{reason}: {detail}" if detail else reason)
        self.reason = reason
        self.detail = detail


@dataclass
class Span:
    """Which part of a file is to be read: records that begin in [start, stop), `stop` None for the end of the file. What the
    reader finds is written into the rest: where the first record `began` (None: none begins here), where the last one
    `ended`, and how many numbered records (rows) went by."""

    start: int = 0
    stop: int | None = None
    exact: bool = True
    """Whether a record begins at `start`, or is to be looked for from there on."""
    began: int | None = None
    ended: int = 0
    count: int = 0

    def holds(self, offset: int) -> bool:
        """Whether a record that begins at `offset` is of this part."""
        return self.stop is None or offset < self.stop


@dataclass(frozen=True, slots=True)
class Read(Generic[P]):
    """A record and, where a document is made of it, its payload, or why that cannot be used."""

    record: RecordInfo
    payload: P | Unusable | None = None


def ref_of(record: RecordInfo) -> Ref:
    """Where a record's bytes lie."""
    return {"uri": record["uri"], "offset": record["offset"], "length": record["length"]}


def source_of(record: RecordInfo) -> Source:
    """What a document says of the record that it was made from; its `kind` is the source's, which the uri names."""
    return {
        "address": record["address"],
        **ref_of(record),
        "kind": kind_and_place(record["uri"])[0],
        "date": record.get("date"),
    }


def put_aside(record: RecordInfo, error: Unusable) -> Aside:
    """The row of a listed record that turned out to be unusable."""
    return aside(INGEST, error.reason, record["address"], ref_of(record), error.detail)
