"""What a parsed page is made of: text blocks and image candidates in document order, and what was left out."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from nextflow_data.images.measure import ImageMeasures
    from nextflow_data.pages.charset import Origin

PAGE_CAPTIONER = "figcaption"
"""`captioner` of an image whose caption is its figure's own; the caption stage may keep it or replace it."""

BlockKind = Literal["paragraph", "heading", "list", "table", "caption", "pre"]


@dataclass(frozen=True, slots=True)
class TextBlock:
    """`text` of one block. Blocks with one `paragraph` number are pieces of one block, cut by images between them."""

    kind: BlockKind
    text: str
    paragraph: int


@dataclass(slots=True)
class ImageCandidate:
    """One `img`: its `addresses`, canonical and best first, or its `data` (then `data_index` counts the page's data: images,
    and `measured` is what was measured of it, or reason and detail why it cannot be used). `figcaption` is the caption of
    the figure it stands in. Sides are declared ones, in pixels."""

    addresses: tuple[str, ...]
    alt: str | None
    width: int | None = None
    height: int | None = None
    data: bytes | None = None
    data_index: int | None = None
    measured: ImageMeasures | tuple[str, str] | None = None
    figcaption: str | None = None


@dataclass(frozen=True, slots=True)
class Removed:
    """Something left out of a page: `rule`, its measured value and threshold where it has them, and what it was."""

    rule: str
    value: float | None
    threshold: float | None
    detail: str


@dataclass(slots=True, kw_only=True)
class PageContent:
    """What a document is made of: a page's blocks in document order, and what was left out of it."""

    licence: str | None
    blocks: list[TextBlock | ImageCandidate] = field(default_factory=list)
    removed: list[Removed] = field(default_factory=list)


@dataclass(slots=True, kw_only=True)
class ParsedPage(PageContent):
    """A page as it was parsed."""

    address: str
    base: str
    title: str | None
    lang: str | None
    charset: str
    charset_origin: Origin
