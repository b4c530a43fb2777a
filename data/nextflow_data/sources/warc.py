"""WARC files: pages that show images of other records by their addresses, as a crawl found them."""

from __future__ import annotations

from collections.abc import Iterator
from typing import BinaryIO, Literal

from nextflow_data.common.range_opener import RangeOpener
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside
from nextflow_data.document import Image
from nextflow_data.records import Read, RecordInfo, Span, Unusable, ref_of
from nextflow_data.sources.base import SOURCES, Found, Made, SourceConfig
from nextflow_data.sources.one_pass import Draft, OnePass


class WarcConfig(SourceConfig):
    """WARC files, gzipped by record or plain. Their limits are those of `ingest`."""

    kind: Literal["warc"] = "warc"


@SOURCES.register("warc")
class WarcSource(OnePass[bytes]):
    """Pages, and the images that they name."""

    Config = WarcConfig

    def read_on(self, stream: BinaryIO, uri: str, span: Span) -> Iterator[Read[bytes] | Aside]:
        from nextflow_data.warc.records import scan

        return scan(stream, uri, self.limits, span)

    def payload(self, record: RecordInfo, opener: RangeOpener) -> bytes:
        from nextflow_data.warc.records import RecordError, page_error, read

        page = record["kind"] == "page"
        most = self.limits.max_page_bytes if page else self.limits.max_image_bytes
        try:
            return read(ref_of(record), self.limits, opener, most)
        except RecordError as error:
            raise page_error(error) if page else error from None

    def draft(self, record: RecordInfo, payload: bytes) -> Draft:
        from nextflow_data.pages.assemble import image_addresses
        from nextflow_data.pages.draft import draft_text
        from nextflow_data.pages.parse import parse_page

        page = parse_page(payload, record["address"], record.get("charset"), self.limits)
        return Draft(draft_text(page, self.limits), image_addresses(page))

    def image(self, record: RecordInfo, payload: bytes) -> Image:
        from nextflow_data.images.measure import measured_image

        return measured_image(ref_of(record), record["address"], payload, self.limits)

    def finish(self, record: RecordInfo, draft: str, found: Found) -> Made:
        from nextflow_data.pages.assemble import assemble
        from nextflow_data.pages.draft import page_of

        return Made(*assemble(record, page_of(draft), found.images, found.rejected))

    @classmethod
    def image_bytes(cls, image: Image, opener: RangeOpener, limits: IngestConfig) -> bytes:
        """The payload of the image's record, or the image inside its page; "not-found-in-page" where that has none such."""
        from nextflow_data.pages.assemble import DATA_FRAGMENT, data_image
        from nextflow_data.pages.parse import PageRejected, parse_page
        from nextflow_data.warc.records import read

        address = image["address"] or ""
        if DATA_FRAGMENT not in address:
            return read(image["ref"], limits, opener, limits.max_image_bytes)
        page = read(image["ref"], limits, opener, limits.max_page_bytes)
        try:
            payload = data_image(parse_page(page, address.partition(DATA_FRAGMENT)[0], None, limits), address)
        except PageRejected as error:
            raise Unusable("not-found-in-page", str(error)) from None
        if payload is None:
            raise Unusable("not-found-in-page", address)
        return payload
