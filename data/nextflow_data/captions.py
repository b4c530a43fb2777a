"""Words for images: the interface that captioners implement, and the one that uses the page's own words.

A captioner gets batches, so that a model can be fed well, and names itself with its version, so that every caption says who
wrote it. It is given the image's reference and the text around it; one that needs pixels reads them by
`nextflow_data.pages.assemble.image_bytes`.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from nextflow_data.config import CaptionConfig
from nextflow_data.document import Action, Decision, Document, Image, Node
from nextflow_data.excerpts import shorten
from nextflow_data.nodes import BLOCK_SEPARATOR
from nextflow_data.pages.assemble import PAGE_CAPTIONER

STAGE = "caption"
_FILE_NAME = re.compile(r"^[\w\-. %()/\\]+\.(png|jpe?g|gif|webp|bmp|tiff?|svg|avif)$", re.IGNORECASE)
_CAMERA_NAME = re.compile(r"^(img|dsc|dscn|image|photo|pic|screenshot|fig)?[\s_\-]*\d+$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class CaptionRequest:
    """One image to caption, with the text of its document just before and after it."""

    image: Image
    before: str
    after: str


@dataclass(frozen=True, slots=True)
class Refusal:
    """Words that were at hand and not used: the rule, its measured value and threshold, and the words."""

    rule: str
    value: float | None
    threshold: float | None
    detail: str


@dataclass(frozen=True, slots=True)
class Caption:
    """`text` None: the captioner has none. `source` says where it came from ("alt", "figcaption", "nearby", or a model)."""

    text: str | None
    source: str | None
    refusals: tuple[Refusal, ...] = ()


class Captioner(Protocol):
    """`name` with `version` identifies what writes captions; both go into the stage's fingerprint."""

    name: str
    version: str

    def caption(self, batch: Sequence[CaptionRequest]) -> list[Caption]:
        """One caption a request, in order. Must give the same answer for the same request, whatever shares its batch."""
        ...


class AltTextCaptioner:
    """The page's own words: the alt text, else the figure's caption, else the text next to the image. Needs no model."""

    name = "alt-text"
    version = "1"

    def __init__(self, config: CaptionConfig) -> None:
        self.config = config

    def caption(self, batch: Sequence[CaptionRequest]) -> list[Caption]:
        return [self._one(request) for request in batch]

    def _one(self, request: CaptionRequest) -> Caption:
        refusals: list[Refusal] = []
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


def useless_alt(alt: str, config: CaptionConfig) -> Refusal | None:
    """Why an alt text says nothing about its image, or None: too short, a file's or camera's name, or a word on the list."""
    plain = alt.strip().strip("[](){}<>\"'.:").strip()
    if len(plain) < config.min_characters:
        return Refusal("caption.min_characters", float(len(plain)), float(config.min_characters), alt[:200])
    if plain.lower() in config.useless_alts:
        return Refusal("caption.useless_alts", None, None, alt[:200])
    if _FILE_NAME.match(plain) or _CAMERA_NAME.match(plain):
        return Refusal("caption.file_name", None, None, alt[:200])
    return None


def nearby_text(before: str, after: str) -> str | None:
    """The block next to an image: the one before it, else the one after (our choice: documentation shows after it tells)."""
    last = before.rstrip().rsplit(BLOCK_SEPARATOR, 1)[-1]
    first = after.lstrip().split(BLOCK_SEPARATOR, 1)[0]
    return " ".join((last or first).split()) or None


def make_captioner(config: CaptionConfig) -> Captioner:
    """The captioner a recipe names."""
    return AltTextCaptioner(config)


def caption_document(document: Document, captioner: Captioner, config: CaptionConfig) -> tuple[Document, list[Decision]]:
    """`document` with a caption on every image that has words, each naming its captioner, and what was refused.

    `captioner` of an image becomes "name/version:source". Images without a caption are flagged, not dropped.
    """
    nodes = list(document["nodes"])
    indices = [index for index, node in enumerate(nodes) if node["image"] is not None]
    requests = [_request(nodes, index) for index in indices]
    captions: list[Caption] = []
    for start in range(0, len(requests), config.batch_images):
        captions += captioner.caption(requests[start : start + config.batch_images])
    decisions: list[Decision] = []
    for index, request, caption in zip(indices, requests, captions, strict=True):
        decisions += [_decision(document, index, refusal, "flag") for refusal in caption.refusals]
        if caption.text is None:
            nothing = Refusal("caption.none", None, None, request.image["address"] or "")
            decisions.append(_decision(document, index, nothing, "flag"))
        who = f"{captioner.name}/{captioner.version}:{caption.source}" if caption.text is not None else None
        image: Image = {**request.image, "caption": caption.text, "captioner": who}
        nodes[index] = {**nodes[index], "image": image}
    return {**document, "nodes": nodes}, decisions


def _request(nodes: Sequence[Node], index: int) -> CaptionRequest:
    image = nodes[index]["image"]
    assert image is not None
    before = nodes[index - 1]["text"] if index > 0 else None
    after = nodes[index + 1]["text"] if index + 1 < len(nodes) else None
    return CaptionRequest(image, before or "", after or "")


def _decision(document: Document, node: int, refusal: Refusal, action: Action) -> Decision:
    return {
        "doc_id": document["doc_id"],
        "address": document["source"]["address"],
        "node": node,
        "stage": STAGE,
        "rule": refusal.rule,
        "value": refusal.value,
        "threshold": refusal.threshold,
        "action": action,
        "detail": refusal.detail,
    }
