"""WARC files: pages that show images of other records by their addresses, as a crawl found them."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from nextflow_data.common.range_opener import RangeOpener
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside
from nextflow_data.document import Image
from nextflow_data.records import RecordInfo, Unusable, ref_of
from nextflow_data.sources.base import SOURCES, Found, Made, Source, SourceConfig

if TYPE_CHECKING:
    from nextflow_data.pages.blocks import ParsedPage


class WarcConfig(SourceConfig):
    """WARC files, gzipped by record or plain. Their limits are those of `ingest`."""

    kind: Literal["warc"] = "warc"


@SOURCES.register("warc")
class WarcSource(Source[bytes]):
    """Pages, and the images that they name; a page is parsed once for its links and once for its document."""

    Config = WarcConfig

    def records(self, uri: str, opener: RangeOpener) -> Iterator[RecordInfo | Aside]:
        from nextflow_data.warc.records import scan

        return scan(uri, self.limits, opener)

    def payload(self, record: RecordInfo, opener: RangeOpener) -> bytes:
        from nextflow_data.warc.records import read

        page = record["kind"] == "page"
        most = self.limits.max_page_bytes if page else self.limits.max_image_bytes
        try:
            return read(ref_of(record), self.limits, opener, most)
        except Unusable as error:
            if page and error.reason == "payload-too-large":
                raise Unusable("page-too-large", error.detail) from None
            raise

    def links(self, record: RecordInfo, payload: bytes) -> Sequence[str]:
        from nextflow_data.pages.assemble import image_addresses

        return image_addresses(self._parse(record, payload))

    def image(self, record: RecordInfo, payload: bytes) -> Image:
        from nextflow_data.images.measure import measured_image

        return measured_image(ref_of(record), record["address"], payload, self.limits)

    def document(self, record: RecordInfo, payload: bytes, found: Found) -> Made:
        from nextflow_data.pages.assemble import assemble

        return Made(*assemble(record, self._parse(record, payload), found.images, self.limits, found.rejected))

    def _parse(self, record: RecordInfo, payload: bytes) -> ParsedPage:
        from nextflow_data.pages.parse import parse_page

        return parse_page(payload, record["address"], record.get("charset"), self.limits)

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
