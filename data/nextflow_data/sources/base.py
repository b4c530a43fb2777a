"""What a source is: it lists the records of a file, makes documents of them, and reads an image's bytes.

A source opens nothing itself: it is given a range opener, so that disks and stores are read by the same code. It knows
nothing of what runs it: whoever ingests does, for each kind of source alike,

    records   list every file once, in one sequential read
    links     for records of kind "page": by which addresses their images are known
    image     for records of kind "image" that some page names: measured, once
    document  for records of kind "page" and "document": the document, with the images found at its addresses

so an image may lie in another file or source than the page, row or dialogue that shows it, and a source whose records
stand alone (a pair, a row with its pictures) lists "document" records only and leaves `links` and `image` as they are.

An image is read back from its reference and its address alone (`image_bytes`), not with the settings it was ingested with,
which later stages and reports do not have. So what a record holds more than one of is told by the address: a `data:` image
by its number, a column by its name, a video's frame by its time. The cost of records that are read again by their place: a
row of a columnar file costs its row group, unless the source keeps the last one.
"""

from __future__ import annotations

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import Field, field_validator

from nextflow_data.common.range_opener import RangeOpener, kind_and_place
from nextflow_data.common.section import Section
from nextflow_data.common.sockets import Socket
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside, Decision
from nextflow_data.document import Document, Image
from nextflow_data.records import RecordInfo, Unusable

P = TypeVar("P")


class SourceConfig(Section):
    """Files of one kind. A kind with settings of its own has a subclass, which its Source names."""

    kind: str
    """The source's registered name."""
    files: tuple[str, ...] = Field(min_length=1)
    """The files; one may be named without a list."""

    @field_validator("files", mode="before")
    @classmethod
    def _one_or_many(cls, value: Any) -> Any:
        return [value] if isinstance(value, str) else value

    def deciding(self) -> dict[str, Any]:
        """The kind's own settings: files are known by their content, and the kind by what they are called."""
        return {name: value for name, value in super().deciding().items() if name not in SourceConfig.model_fields}


@dataclass(frozen=True, slots=True)
class Found:
    """What became of a page's addresses: `images` as measured, `rejected` ones with their reason; others are nowhere."""

    images: Mapping[str, Image] = field(default_factory=dict)
    rejected: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Made:
    """A record's document (None where nothing of it is left), the decisions that made it, and what was put aside."""

    document: Document | None
    decisions: Sequence[Decision] = ()
    asides: Sequence[Aside] = ()


class Source(ABC, Generic[P]):
    """A kind of source. `P` is a record's payload, in whatever form its own methods take it: bytes, or a row.

    Whatever is wrong with a record is an `Unusable`, which is put aside; anything else that is raised stops the stage.
    """

    Config: ClassVar[type[SourceConfig]] = SourceConfig
    """The section of its entries."""

    def __init__(self, config: SourceConfig, limits: IngestConfig) -> None:
        self.config, self.limits = config, limits

    @abstractmethod
    def records(self, uri: str, opener: RangeOpener) -> Iterator[RecordInfo | Aside]:
        """Every record of a file in its order, in one sequential read; what cannot be used as an Aside. Raises nothing for
        bad data, also where the file is not there or is of another kind."""

    @abstractmethod
    def payload(self, record: RecordInfo, opener: RangeOpener) -> P:
        """A listed record's content. Raises Unusable."""

    def links(self, record: RecordInfo, payload: P) -> Sequence[str]:
        """For a "page": every address at which an image of it may be found, each once. Raises Unusable."""
        return ()

    def image(self, record: RecordInfo, payload: P) -> Image:
        """For an "image": measured, without words (`images.measure.measured_image`). Raises Unusable."""
        raise NotImplementedError(f"{type(self).__name__} lists no image records")

    @abstractmethod
    def document(self, record: RecordInfo, payload: P, found: Found) -> Made:
        """For a "page" or a "document": what is made of it. Raises Unusable where it cannot be read at all."""

    @classmethod
    @abstractmethod
    def image_bytes(cls, image: Image, opener: RangeOpener, limits: IngestConfig) -> bytes:
        """The encoded bytes of an image that this kind of source made. Raises Unusable; need not verify them."""


SOURCES: Socket[type[Source[Any]]] = Socket("source", "nextflow_data.sources", "nextflow.sources")
"""Every kind of source by name: `@SOURCES.register("warc")`."""


def read_image(image: Image, opener: RangeOpener, limits: IngestConfig) -> bytes:
    """The encoded bytes of any image node, as they were when it was measured: the one place where they are verified.

    Raises Unusable: what the source's `image_bytes` raises, and "content-changed" where the bytes are not those that were
    measured; UnknownPart where the package that has the kind of source is not installed.
    """
    kind, _ = kind_and_place(image["ref"]["uri"])
    payload = SOURCES.get(kind).image_bytes(image, opener, limits)
    found = hashlib.sha256(payload).hexdigest()
    if found != image["sha256"]:
        raise Unusable("content-changed", f"{image['address']} has sha256 {found}, {image['sha256']} was measured")
    return payload
