"""The recipe's sections for documents.

Every threshold of every rule is a field with a name, and each says whose number it is: "published" (with where) or "ours".
Ours are set for technical documentation with screenshots and photographs, which the published web filters mostly reject:
its lists, headings, tables and code are what those filters were made to find.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nextflow_data.section import Section

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
    accept_status: tuple[int, ...] = (200,)
    """HTTP status codes whose records are used; others are kept aside (`http-status`)."""

    max_srcset_width: int = Field(default=2048, gt=0)
    """Widest candidate of a `srcset`, in pixels, worth choosing: the schedule's largest image is 1024 tokens·pixels wide."""
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


class GopherQualityRules(Section):
    """datatrove's GopherQualityFilter (Rae et al. 2021, arXiv 2112.11446, A.1.1). None turns a rule off."""

    min_doc_words: int | None = 20
    """Ours; published: 50. A short caption page with good images is worth having."""
    max_doc_words: int | None = 100_000
    """Published."""
    min_avg_word_length: int | None = 3
    """Published."""
    max_avg_word_length: int | None = 10
    """Published."""
    max_symbol_word_ratio: float | None = 0.1
    """Published."""
    max_bullet_lines_ratio: float | None = 0.9
    """Published."""
    max_ellipsis_lines_ratio: float | None = 0.3
    """Published."""
    min_alpha_words_ratio: float | None = 0.45
    """Ours; published: 0.8 (datatrove calls it max_non_alpha_words_ratio), which spaCy's split of punctuation into words of
    their own makes much harsher than the paper meant: it drops half of a programming manual."""
    min_stop_words: int | None = 2
    """Published."""


class GopherRepetitionRules(Section):
    """datatrove's GopherRepetitionFilter (Rae et al. 2021, table A1). None turns a rule off."""

    dup_line_frac: float | None = 0.3
    """Published."""
    dup_para_frac: float | None = 0.3
    """Published."""
    dup_line_char_frac: float | None = 0.2
    """Published."""
    dup_para_char_frac: float | None = 0.2
    """Published."""
    top_n_grams: tuple[tuple[int, float], ...] = ((2, 0.25), (3, 0.22), (4, 0.2))
    """(n, largest share of characters in the most frequent n-gram). Ours; published: 2: 0.20, 3: 0.18, 4: 0.16. Reference
    pages repeat the name of what they describe."""
    dup_n_grams: tuple[tuple[int, float], ...] = ((5, 0.25), (6, 0.24), (7, 0.23), (8, 0.22), (9, 0.21), (10, 0.2))
    """(n, largest share of characters in repeated n-grams). Ours; published: 5: 0.15 … 10: 0.10."""


class C4Rules(Section):
    """datatrove's C4QualityFilter (Raffel et al. 2020, §2.2), without the list of bad words, which needs a download."""

    remove_citations: bool = False
    """Ours; published: True, take out [12] and [edit]. It also takes the index out of `speed[0]` and the brackets out of
    `rgba[]`: code must not be edited."""
    no_terminal_punctuation: bool = False
    """Ours; published: True, drop every line without a final mark. Headings, list items and table rows have none."""
    min_sentences: int = 2
    """Ours; published: 5. -1 turns it off."""
    min_words_per_line: int = -1
    """Ours; published: 3, which removes headings. -1 turns it off."""
    max_word_length: int = 1000
    """Published (in C4's code). -1 turns it off."""
    lorem_ipsum: bool = True
    """Published: drop a document that has the phrase."""
    javascript: bool = False
    """Ours; published: True, drop lines with the word. Technical pages are about it."""
    curly_bracket: bool = False
    """Ours; published: True, drop any document with a {. That is every page with code."""
    policy: bool = True
    """Published: drop lines about cookies, privacy policy and terms of use."""


class FineWebRules(Section):
    """datatrove's FineWebQualityFilter (Penedo et al. 2024, arXiv 2406.17557, §3.6)."""

    line_punct_thr: float = Field(default=0.05, ge=0, le=1)
    """Ours; published: 0.12. Smallest share of lines that end in a final mark; lines of code and of tables count too."""
    line_punct_exclude_zero: bool = False
    """Published."""
    short_line_thr: float = Field(default=0.85, ge=0, le=1)
    """Ours; published: 0.67. Largest share of lines of at most `short_line_length` characters."""
    short_line_length: int = 30
    """Published."""
    char_duplicates_ratio: float = Field(default=0.2, ge=0, le=1)
    """Ours; published: 0.01, which one repeated table row passes. Largest share of characters in repeated lines."""
    new_line_ratio: float = Field(default=0.5, ge=0)
    """Ours; published: 0.3. Most line breaks per word; paragraphs here are parted by two."""


class LanguageRules(Section):
    """Language identification with py3langid, whose model ships in its package."""

    allowed: tuple[str, ...] = ("en",)
    """ISO 639-1 codes that are kept; empty keeps all."""
    min_probability: float = Field(default=0.3, ge=0, le=1)
    """Smallest normalised probability of the best of some 97 languages; ours: lists of names in English lie at 0.3–0.5."""


class ImageRules(Section):
    """Rules on one image node; an image that fails is taken out of its document. All thresholds are ours."""

    min_side: int = Field(default=64, ge=1)
    """Smallest shorter side, in pixels."""
    max_aspect: float = Field(default=4.0, ge=1)
    """Largest longer side / shorter side; NextFlow's schedule ends at 1:4 and 4:1."""
    min_sharpness: float = Field(default=5.0, ge=0)
    """Smallest variance of the Laplacian, on the copy that is measured (grey levels 0…255)."""
    min_entropy: float = Field(default=0.3, ge=0, le=8)
    """Smallest Shannon entropy of the grey levels, in bits. Line drawings lie between 0.3 and 1, empty canvases below."""
    max_recurrence: int = Field(default=5, ge=1)
    """Most pages of one site that may show the same image before it is taken for an icon or a logo."""


class DocumentRules(Section):
    """Rules on a document after its images were looked at. All thresholds are ours."""

    min_images: int = Field(default=0, ge=0)
    """Fewest images."""
    max_images: int = Field(default=100, ge=0)
    """Most images."""
    min_characters: int = Field(default=100, ge=0)
    """Fewest characters of text over all nodes."""
    min_characters_per_image: float = Field(default=10.0, ge=0)
    """Fewest characters of text for each image."""
    max_characters: int = Field(default=1_000_000, gt=0)
    """Most characters of text: beyond, the tokenisation's time and memory are not worth the document."""


class FilterConfig(Section):
    """Which rules judge a document, and their thresholds. A group set to null is not run."""

    language: LanguageRules | None = LanguageRules()
    repetition: GopherRepetitionRules | None = GopherRepetitionRules()
    quality: GopherQualityRules | None = GopherQualityRules()
    c4: C4Rules | None = C4Rules()
    fineweb: FineWebRules | None = FineWebRules()
    image: ImageRules | None = ImageRules()
    document: DocumentRules | None = DocumentRules()


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
    """Which copy of an image stays: the one with most pixels (then the first), or the first by (doc_id, node)."""


class CaptionConfig(Section):
    """Words for images. `captioner` "alt-text" takes the page's own words; models come behind the same interface."""

    captioner: Literal["alt-text"] = "alt-text"
    """Who makes the words, by name."""
    batch_images: int = Field(default=64, ge=1)
    """Images handed to a captioner at once."""
    max_characters: int = Field(default=300, ge=1)
    """Longest caption, in characters, cut at a word."""
    min_characters: int = Field(default=3, ge=1)
    """Shorter alt texts are useless."""
    nearby_text: bool = True
    """Without a usable alt text or figure caption, take the text next to the image."""
    useless_alts: tuple[str, ...] = (
        "image", "img", "picture", "photo", "photograph", "figure", "icon", "logo", "graphic", "screenshot", "thumbnail",
        "untitled", "placeholder", "alt", "alt text", "null", "undefined", "none", "note", "tip", "warning", "caution",
        "important",
    )  # fmt: skip
    """Alt texts (whole, case and brackets ignored) that say nothing about the image."""
