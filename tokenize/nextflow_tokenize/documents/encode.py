"""Documents to ids and codes, in order, with images batched by grid across documents.

Images of one grid are quantised together, whichever documents they come from (`vision.stream`), and a document is given out
when its last image is done: so what is held is bounded, and codes depend on nothing but the image's bytes, its seed (from
its hash) and the settings. A bad image leaves its document with a decision and a kept-aside record; the document goes on
without it. The cost of order: a document with a rare grid holds back those behind it until its batch is forced.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt
from nextflow_data.common.stage_names import TOKENIZE
from nextflow_data.config import IngestConfig
from nextflow_data.decisions import Aside, Decision, Finding, Subject, aside, decision
from nextflow_data.document import Document, Image, Node
from nextflow_data.records import Unusable

from nextflow_tokenize.config.tokenize import TokenizeConfig
from nextflow_tokenize.documents.tokenized import TokenizedDocument, TokenizedSegment
from nextflow_tokenize.schedule import LEVEL_SCALES, Grid, canonical_final, choose_grids, grids, nearest_final, upscale
from nextflow_tokenize.vision.codes.quantizer import seed_of
from nextflow_tokenize.vision.images.pixels import fit
from nextflow_tokenize.vision.stream import Buckets, Encoded, StreamItem
from nextflow_tokenize.vision.usable import check_levels

if TYPE_CHECKING:
    from nextflow_tokenize.documents.text_tokenizer import TextTokenizer
    from nextflow_tokenize.vision.model import VisionTokenizer

LoadImage = Callable[[Image], bytes]
"""Gives the bytes of an image node's file. Unusable is raised for an image without which its document goes on; whatever else
is raised (a store that fails, a package that is missing) ends the work."""

Result = tuple[TokenizedDocument | None, list[Decision], list[Aside]]
"""A document (None where nothing is left of it), what was decided about its nodes, and what was kept aside."""


@dataclass
class _Pending:
    """A document whose images are not all encoded yet."""

    document: Document
    segments: list[TokenizedSegment] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    asides: list[Aside] = field(default_factory=list)
    waiting: set[tuple[Grid, ...]] = field(default_factory=set)
    """Schedules whose batches hold images of this document."""


@dataclass(frozen=True)
class _Place:
    """Where an image's codes belong."""

    owner: _Pending
    segment: TokenizedSegment


def tokenize_documents(
    documents: Iterable[Document],
    text: TextTokenizer,
    vision: VisionTokenizer | None,
    load_image: LoadImage,
    config: TokenizeConfig,
    ingest: IngestConfig | None = None,
) -> Iterator[Result]:
    """One result a document, in their order.

    Neighbouring text nodes become one segment, an image's caption stands as text before it, the last segment ends with the
    end-of-text id. Images that do not load, do not decode, are not the bytes that were ingested or are too small for every
    level leave the document; with `vision` None all do. `ingest` holds the decoding limits. Raises only for settings that do
    not fit: ValueError where the tokenizer was not trained on the level asked for, or has one fixed square schedule.
    """
    return _Run(text, vision, load_image, config, ingest or IngestConfig()).run(documents)


class _Run:
    def __init__(
        self,
        text: TextTokenizer,
        vision: VisionTokenizer | None,
        load_image: LoadImage,
        config: TokenizeConfig,
        ingest: IngestConfig,
    ) -> None:
        self.text, self.vision, self.load_image, self.config, self.ingest = text, vision, load_image, config, ingest
        self.levels = sorted({config.level, *config.lower_levels}, reverse=True)
        self.buckets: Buckets[_Place] | None = None
        if vision is not None:
            check_levels(vision.config, self.levels)
            self.buckets = Buckets(vision, config.self_correction, config.batch_size, config.max_pending)

    def run(self, documents: Iterable[Document]) -> Iterator[Result]:
        queue: deque[_Pending] = deque()
        for document in documents:
            pending = _Pending(document)
            queue.append(pending)
            self._read(pending)
            while queue and (not queue[0].waiting or len(queue) > 4 * self.config.max_pending):
                yield self._finish(queue.popleft())
        while queue:
            yield self._finish(queue.popleft())

    def _finish(self, pending: _Pending) -> Result:
        for schedule in list(pending.waiting):
            assert self.buckets is not None
            self._place(self.buckets.force(schedule))
        document = pending.document
        if not pending.segments:
            return None, pending.decisions, pending.asides
        source = document["source"]
        row: TokenizedDocument = {
            "doc_id": document["doc_id"],
            "address": source["address"],
            "source_kind": source["kind"],
            "licence": document["licence"],
            "task": document["task"],
            "segments": _ended(pending.segments, self.text.eod_id),
        }
        return row, pending.decisions, pending.asides

    def _read(self, pending: _Pending) -> None:
        """All nodes of a document: text to ids at once, images to jobs."""
        document = pending.document
        nodes = document["nodes"]
        images = [i for i, node in enumerate(nodes) if node["kind"] == "image"]
        blocks: list[str] = []
        for index, node in enumerate(nodes):
            if node["kind"] == "text":
                blocks += _words(node)
                continue
            image = node["image"]
            array = None if image is None else self._open(pending, index, image)
            if image is None or array is None:
                continue
            schedule, pixels = array
            if self.config.captions and image["caption"]:
                blocks.append(image["caption"])
            self._text(pending, blocks)
            blocks = []
            given = document["task"] == "image-to-text" or (document["task"] == "editing" and index != images[-1])
            segment = _image_segment(image["sha256"], schedule, loss=not given)
            pending.segments.append(segment)
            pending.waiting.add(schedule)
            assert self.buckets is not None
            item = StreamItem(_Place(pending, segment), schedule, pixels, seed_of(image["sha256"]))
            self._place(self.buckets.add(item))
        self._text(pending, blocks)

    def _text(self, pending: _Pending, blocks: list[str]) -> None:
        if not blocks:
            return
        ids = self.text.encode(self.config.separator.join(blocks))
        if ids:
            pending.segments.append(_text_segment(ids))

    def _open(self, pending: _Pending, index: int, image: Image) -> tuple[tuple[Grid, ...], npt.NDArray[np.uint8]] | None:
        """An image's schedule and pixels, or None with the reason noted."""
        from nextflow_data.images.measure import ImageRejected, open_rgb

        if self.vision is None:
            detail = "the run has no vision tokenizer: none of its images could be trained on"
            pending.decisions.append(_drop(pending, index, Finding("no-vision-tokenizer", detail=detail)))
            return None
        try:
            payload = self.load_image(image)
        except Unusable as error:  # a file that is gone, a broken archive: the document goes on without the image
            reason = "image-changed" if error.reason == "content-changed" else "image-unreadable"
            self._reject(pending, index, image, reason, f"{type(error).__name__}: {error}")
            return None
        try:
            picture = open_rgb(payload, self.ingest)
        except ImageRejected as error:
            self._reject(pending, index, image, error.reason, error.detail)
            return None
        schedule = choose_grids(picture.height, picture.width, self.levels, self.config.max_upscale)
        if schedule is None:
            scales = LEVEL_SCALES[self.levels[-1]]
            last = grids(canonical_final(nearest_final(picture.height, picture.width), scales), scales)[-1]
            detail = f"{picture.width}×{picture.height} pixels are too few for level {self.levels[-1]}"
            value = upscale(picture.height, picture.width, last)
            pending.decisions.append(_drop(pending, index, Finding("max-upscale", value, self.config.max_upscale, detail)))
            return None
        return schedule, fit(picture, schedule[-1])

    def _reject(self, pending: _Pending, index: int, image: Image, reason: str, detail: str) -> None:
        pending.decisions.append(_drop(pending, index, Finding(reason, detail=detail)))
        pending.asides.append(aside(TOKENIZE, reason, image["address"], image["ref"], detail))

    def _place(self, done: list[Encoded[_Place]]) -> None:
        """Puts a bucket's codes into their segments."""
        for encoded in done:
            place = encoded.item.key
            place.segment["input"], place.segment["target"] = encoded.input.tolist(), encoded.target.tolist()
            place.owner.waiting.discard(encoded.item.schedule)


def _words(node: Node) -> list[str]:
    return [node["text"]] if node["text"] else []


def _text_segment(ids: list[int]) -> TokenizedSegment:
    return {
        "kind": "text",
        "loss": True,
        "text": ids,
        "sha256": None,
        "grid": None,
        "scales": None,
        "input": None,
        "target": None,
    }


def _image_segment(sha256: str, schedule: tuple[Grid, ...], loss: bool) -> TokenizedSegment:
    return {
        "kind": "image",
        "loss": loss,
        "text": None,
        "sha256": sha256,
        "grid": list(schedule[-1]),
        "scales": len(schedule),
        "input": None,
        "target": None,
    }


def _ended(segments: list[TokenizedSegment], eod: int) -> list[TokenizedSegment]:
    """The segments with the end-of-text id after the last."""
    last = segments[-1]
    if last["kind"] == "text" and last["text"] is not None:
        last["text"].append(eod)
        return segments
    return [*segments, _text_segment([eod])]


def _drop(pending: _Pending, index: int, finding: Finding) -> Decision:
    return decision(Subject.of(pending.document), TOKENIZE, finding, "drop", index)
