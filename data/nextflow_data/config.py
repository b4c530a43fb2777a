"""The recipe's sections for documents.

Every threshold of every rule is a field with a name, and each says whose number it is: "published" (with where) or "ours".
Ours are set for technical documentation with screenshots and photographs, which the published web filters mostly reject:
its lists, headings, tables and code are what those filters were made to find.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nextflow_data.common.section import Section, operational

MIB = 1 << 20


class IngestConfig(Section):
    """Reading records, parsing pages and measuring images. All limits are ours: they bound memory and time, not quality."""

    max_record_bytes: int = Field(default=256 * MIB, gt=0)
    """Largest record, in bytes after all decompression; a larger one is kept aside (`record-too-large`)."""
    max_header_bytes: int = Field(default=64 << 10, gt=0)
    """Largest WARC header block plus HTTP header block, in bytes."""
    max_page_bytes: int = Field(default=10 * MIB, gt=0)
    """Largest page, in bytes of decoded payload; a larger one is kept aside (`page-too-large`) and not parsed."""
    max_image_bytes: int = Field(default=64 * MIB, gt=0)
    """Largest image file, in bytes."""
    max_image_pixels: int = Field(default=64_000_000, gt=0)
    """Most pixels (width·height, read from the header before anything is decoded) an image may claim."""
    max_data_address_bytes: int = Field(default=4 * MIB, gt=0)
    """Largest image inside a `data:` address, in bytes after base64."""
    max_data_images: int = Field(default=64, ge=0)
    """Most `data:` images taken from one page, since each is decoded while the page is parsed."""
    measure_side: int = Field(default=512, ge=16)
    """Images are shrunk to this longest side, in pixels, before they are measured."""
    split_bytes: int = operational(1 << 30, ge=1)
    """A source file of more bytes than this is read in parts by several tasks, and once more for its hash. The output is the
    same whatever it is."""
    accept_status: tuple[int, ...] = (200,)
    """HTTP status codes whose records are used; others are kept aside (`http-status`)."""

    max_srcset_width: int = Field(default=2048, gt=0)
    """Widest candidate of a `srcset`, in pixels, worth choosing: the schedule's widest, 1:4 at level 1024, has 2048."""
    icon_declared_side: int = Field(default=40, ge=0)
    """An image whose markup declares both sides at most this many pixels is an icon and is left out."""
    icon_classes: tuple[str, ...] = (
        "icon",
        "icons",
        "emoji",
        "smiley",
        "spacer",
        "avatar",
        "logo",
        "gravatar",
        "badge",
        "sprite",
    )
    """Class tokens (whole, or a part between - and _) that mark an `img` as an icon."""

    boilerplate_classes: tuple[str, ...] = (
        "nav", "navbar", "navigation", "navheader", "navfooter", "navlinks", "topnav", "sidenav", "menu", "menubar",
        "submenu", "breadcrumb", "breadcrumbs", "sidebar", "sphinxsidebar", "related", "toc", "toctree-wrapper",
        "contents-local", "footer", "site-footer", "page-footer", "site-header", "page-header-nav", "topbar",
        "cookie", "cookies", "cookie-banner", "consent", "advert", "advertisement", "ads", "ad", "promo", "social",
        "share", "sharing", "share-buttons", "pagination", "pager", "prev-next", "prevnext", "skip-link", "skiplink",
        "skip", "headerlink", "searchbox", "search", "login", "newsletter", "popup", "modal", "comments-link",
        "edit-link", "editsection", "mw-editsection", "noprint", "wy-nav-side", "rst-footer-buttons", "rst-versions",
        "bd-sidebar", "indexterm-link", "legalnotice-link", "masthead", "tooltip-content", "tooltiptext", "sr-only",
        "visually-hidden", "screen-reader-text", "copybtn",
    )  # fmt: skip
    """Class tokens or ids (whole, case ignored) that mark navigation and other boilerplate."""
    boilerplate_roles: tuple[str, ...] = (
        "navigation", "banner", "contentinfo", "complementary", "search", "menu", "menubar", "toolbar", "dialog",
        "alertdialog",
    )  # fmt: skip
    """ARIA landmark and widget roles that mark boilerplate."""
    boilerplate_max_share: float = Field(default=0.6, gt=0, le=1)
    """A region holding more than this share of the page's text is never taken for boilerplate, whatever it is called."""
    link_density: float = Field(default=0.8, gt=0, le=1)
    """A list, table or div is navigation when at least this share of its characters is in links…"""
    link_density_min_links: int = Field(default=4, ge=1)
    """…and it has at least this many links."""


class DedupConfig(Section):
    """Duplicates of text and of images."""

    seed: int = 1
    """Seed of the hash functions."""
    shingle_words: int = Field(default=5, ge=1)
    """Words in a shingle (datatrove's default)."""
    bands: int = Field(default=14, ge=1)
    """Bands of the signature (datatrove's default)."""
    rows: int = Field(default=8, ge=1)
    """Hashes in a band (datatrove's default): a pair of similarity s shares a band with probability 1-(1-s^rows)^bands."""
    min_similarity: float = Field(default=0.8, ge=0, le=1)
    """A candidate pair is a duplicate when its estimated Jaccard similarity is at least this. Ours: pages of one template
    lie between the bands' own threshold (1/bands)^(1/rows) = 0.72 and here; of pairs at 0.8, the bands find 92 %."""
    min_shingles: int = Field(default=10, ge=1)
    """Texts with fewer distinct shingles are compared only exactly: their estimate says nothing. Ours."""
    min_images_in_common: float = Field(default=0.8, ge=0, le=1)
    """Documents of like texts are copies when at least this share of the images of the one with fewer is in the other, by
    perceptual hash (`image_hamming`). 0 looks at texts only. Ours: two galleries under the same words are not copies."""
    keep_document: Literal["richest", "any"] = "richest"
    """Which copy of a document stays: the one with most images (more than 16 count as 16), then with most characters (in
    steps of a fifth), then by a seeded hash; or by the hash alone, which takes the fewest rounds."""

    image_hamming: int = Field(default=6, ge=0, le=15)
    """Most differing bits of two 64-bit perceptual hashes for the pair to be looked at; at most 6 finds 391 of 397 resized
    and recompressed images. Ours."""
    image_thumbnail: int = Field(default=32, ge=4)
    """Side in pixels of the colour thumbnails on which a candidate pair is confirmed. Ours."""
    image_max_difference: float = Field(default=0.02, ge=0, le=1)
    """Largest mean absolute difference of the thumbnails (0 equal, 1 black against white) for one image. Ours: it finds most
    halved and recompressed copies; a photograph with a faint effect laid over it is a copy too."""
    image_max_aspect_difference: float = Field(default=0.05, ge=0)
    """Largest difference of the logarithms of the aspect ratios. Ours."""
    across_documents: bool = True
    """Also remove an image that another document keeps; within one document copies are always removed."""
    keep: Literal["largest", "first"] = "largest"
    """Which copy of an image stays: the one with most pixels (in steps of a fifth, then by a seeded hash), or the first by
    (doc_id, node)."""

    edges_in_one_task: int = operational(20_000, ge=0)
    """Where no more pairs of copies than this are left to decide on, one process decides on them; else all executors do, in
    rounds. The answer is the same."""
