"""alt-text: the page's own words: the alt text, else the figure's caption, else the text next to the image. No model."""

from __future__ import annotations

import re
from collections.abc import Sequence

from pydantic import Field

from nextflow_data.captioners.captioner import Caption, Captioner, CaptionRequest, captioner
from nextflow_data.common.excerpts import shorten
from nextflow_data.common.section import Section
from nextflow_data.decisions import Finding
from nextflow_data.nodes import BLOCK_SEPARATOR
from nextflow_data.pages.blocks import PAGE_CAPTIONER

_FILE_NAME = re.compile(r"^[\w\-. %()/\\]+\.(png|jpe?g|gif|webp|bmp|tiff?|svg|avif)$", re.IGNORECASE)
_CAMERA_NAME = re.compile(r"^(img|dsc|dscn|image|photo|pic|screenshot|fig)?[\s_\-]*\d+$", re.IGNORECASE)


class AltTextConfig(Section):
    """Which of the page's words are worth taking. All ours."""

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


@captioner
class AltText(Captioner[AltTextConfig]):
    """Never opens an image."""

    name = "alt-text"
    Config = AltTextConfig
    words = {
        "min_characters": "the alt text is too short to say anything",
        "useless_alts": "the alt text is one that says nothing",
        "file_name": "the alt text is only a file's name",
    }

    def caption(self, batch: Sequence[CaptionRequest]) -> list[Caption]:
        return [self._one(request) for request in batch]

    def _one(self, request: CaptionRequest) -> Caption:
        refusals: list[Finding] = []
        alt = request.image["alt"]
        if alt:
            refusal = useless_alt(alt, self.config)
            if refusal is None:
                return Caption(shorten(alt, self.config.max_characters), "alt")
            refusals.append(refusal)
        if request.image["captioner"] == PAGE_CAPTIONER and request.image["caption"]:
            return Caption(shorten(request.image["caption"], self.config.max_characters), "figcaption", tuple(refusals))
        nearby = nearby_text(request.before, request.after) if self.config.nearby_text else None
        if nearby is not None and len(nearby) >= self.config.min_characters:
            return Caption(shorten(nearby, self.config.max_characters), "nearby", tuple(refusals))
        return Caption(None, None, tuple(refusals))


def useless_alt(alt: str, config: AltTextConfig) -> Finding | None:
    """Why an alt text says nothing about its image, or None: too short, a file's or camera's name, or a word on the list."""
    plain = alt.strip().strip("[](){}<>\"'.:").strip()
    if len(plain) < config.min_characters:
        return Finding("alt-text.min_characters", float(len(plain)), float(config.min_characters), alt[:200])
    if plain.lower() in config.useless_alts:
        return Finding("alt-text.useless_alts", None, None, alt[:200])
    if _FILE_NAME.match(plain) or _CAMERA_NAME.match(plain):
        return Finding("alt-text.file_name", None, None, alt[:200])
    return None


def nearby_text(before: str, after: str) -> str | None:
    """The block next to an image: the one before it, else the one after (our choice: documentation shows after it tells)."""
    last = before.rstrip().rsplit(BLOCK_SEPARATOR, 1)[-1]
    first = after.lstrip().split(BLOCK_SEPARATOR, 1)[0]
    return " ".join((last or first).split()) or None
