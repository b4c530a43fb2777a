"""A source whose files are read once from end to end: what each record becomes is made while its bytes go by.

A record is turned into a *draft*: all that its document needs but the images of other records, which are named by address
(`links`) and found later. So no page is parsed twice and no text is read again from its source. A draft holds neither the
file's name nor a row's number in it, because neither is known while a part of a file is read: `named` puts them in after.

A large file is read in parts by several tasks. A part begins at the first place in it that looks as if a record began there
(`Span.exact` False), which a record inside a record's payload does too; so whoever reads the parts compares where each began
with where the one before it ended, and has it read again from there if they differ. What a part gives depends on nothing but
where it begins and where the next does, so all parts together give what the whole file gives.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import BinaryIO, TypeVar

from nextflow_data.common.range_opener import RangeOpener
from nextflow_data.common.stage_names import INGEST
from nextflow_data.decisions import Aside, aside
from nextflow_data.records import Read, RecordInfo, Span
from nextflow_data.sources.base import Found, Made, Source

P = TypeVar("P")


@dataclass(frozen=True, slots=True)
class Draft:
    """What a record became: `text`, in whatever form its source takes it back, and the addresses it names, each once."""

    text: str
    links: Sequence[str] = ()


class OnePass(Source[P]):
    """A kind of source that is read in one pass."""

    @abstractmethod
    def read_on(self, stream: BinaryIO, uri: str, span: Span) -> Iterator[Read[P] | Aside]:
        """Every record of a part of a file in its order, in one sequential read; what cannot be used as an Aside. `uri` is
        empty where the file's name is to be put in by `named`. Raises nothing for bad data."""

    @abstractmethod
    def draft(self, record: RecordInfo, payload: P) -> Draft:
        """A page or row read whole, its own images measured. Raises Unusable."""

    @abstractmethod
    def finish(self, record: RecordInfo, draft: str, found: Found) -> Made:
        """The document of a draft's text. Raises Unusable."""

    def named(self, text: str, uri: str, before: int) -> str:
        """An address or record id as `read_on` gave it for an empty uri, now that the file's uri is known and how many
        numbered records came before the part."""
        return text

    def records(self, uri: str, opener: RangeOpener) -> Iterator[RecordInfo | Aside]:
        try:
            stream = opener.open(uri)
        except FileNotFoundError:
            yield aside(INGEST, "missing-file", None, {"uri": uri, "offset": 0, "length": 0}, "cannot be opened")
            return
        with stream:
            for found in self.read_on(stream, uri, Span()):
                yield found.record if isinstance(found, Read) else found

    def links(self, record: RecordInfo, payload: P) -> Sequence[str]:
        return self.draft(record, payload).links

    def document(self, record: RecordInfo, payload: P, found: Found) -> Made:
        return self.finish(record, self.draft(record, payload).text, found)
