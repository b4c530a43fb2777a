"""A page as an ordered list of text blocks and image candidates.

The page's tree is walked once (`nextflow_data.pages.walk`). What is left out as boilerplate or as an icon is counted, never
silent. Main-content extractors were tried and find 52–76 % of the content images; the walk finds them all, and pays with
weaker guesses about boilerplate, which the filters after it must make good.
"""

from __future__ import annotations

import re

from lxml import etree, html

from nextflow_data.addresses import absolute_address, canonical_address
from nextflow_data.config import IngestConfig
from nextflow_data.pages.blocks import ParsedPage, Removed
from nextflow_data.pages.charset import decode_page
from nextflow_data.pages.walk import PageWalk
from nextflow_data.records import Unusable

_INVISIBLE = re.compile(r"[\x00-\x08\x0e-\x1b\x7f\u00ad\u200b\u200e\u200f\u2060\ufeff\ufffe\uffff\ud800-\udfff]")
MAX_DEPTH = 2048
"""Depth at which libxml2 stops parsing; a page that deep is rejected, since the rest of it is missing."""


class PageRejected(Unusable):
    """A page that is not parsed: `reason` is page-too-large, empty-page or markup-too-deep."""


def parse_page(payload: bytes, address: str, content_type: str | None, config: IngestConfig) -> ParsedPage:
    """The page in `payload`, fetched from `address`. `content_type` is the HTTP header's value or a bare charset.

    Raises PageRejected; nothing else, whatever the bytes.
    """
    if len(payload) > config.max_page_bytes:
        raise PageRejected("page-too-large", f"{len(payload)} bytes, at most {config.max_page_bytes} are parsed")
    decoded = decode_page(payload, _charset_label(content_type))
    text = _INVISIBLE.sub("", decoded.text)
    if not text.strip():
        raise PageRejected("empty-page", "no text")
    # Not lxml.html's own parser, which asks Python for the class of every element.
    parser = etree.HTMLParser(encoding="utf-8", huge_tree=True)
    try:
        root = html.document_fromstring(text.encode("utf-8"), parser=parser)
    except (etree.ParserError, etree.XMLSyntaxError, ValueError) as error:
        raise PageRejected("empty-page", str(error)) from None
    if any("depth" in entry.message.lower() for entry in parser.error_log):
        raise PageRejected("markup-too-deep", f"elements nested deeper than {MAX_DEPTH}")
    page = ParsedPage(
        address=address,
        base=_base(root, address),
        title=_first_text(root, "title"),
        lang=(root.get("lang") or root.get("{http://www.w3.org/XML/1998/namespace}lang") or "").strip().lower()[:35] or None,
        licence=_licence(root, address),
        charset=decoded.charset,
        charset_origin=decoded.origin,
    )
    if decoded.lie is not None:
        page.removed.append(Removed("charset-claim", None, None, f"{decoded.lie} claimed, read as {decoded.charset}"))
    if decoded.origin == "replaced":
        page.removed.append(
            Removed("charset-replaced", float(decoded.text.count("\ufffd")), None, f"undecodable under {decoded.charset}")
        )
    PageWalk(page, root, config).run()
    return page


def _base(root: etree._Element, address: str) -> str:
    href = next((b.get("href") for b in root.iter("base") if b.get("href")), None)
    return (absolute_address(address, href) if href else None) or address


def _licence(root: etree._Element, address: str) -> str | None:
    for element in root.iter("link", "a"):
        if "license" in (element.get("rel") or "").lower().split() and element.get("href"):
            return absolute_address(address, element.get("href")) or canonical_address(element.get("href"))
    return None


def _first_text(root: etree._Element, tag: str) -> str | None:
    element = next(root.iter(tag), None)
    return None if element is None else (" ".join("".join(element.itertext()).split())[:500] or None)


def _charset_label(content_type: str | None) -> str | None:
    if not content_type:
        return None
    if "/" not in content_type and "=" not in content_type:
        return content_type.strip()
    match = re.search(r"charset\s*=\s*[\"']?\s*([^\s;\"']+)", content_type, re.IGNORECASE)
    return match[1] if match else None
