"""Captions for a stream of documents: images are asked about in full batches, whichever documents they come from.

A document is given out when its last image is answered, in the order they came. What that costs: up to a batch of images,
and the documents they are in, are held; a document without images waits for those before it.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from nextflow_data.captioners.captioner import Caption, Captioner, CaptionRequest
from nextflow_data.common.stage_names import CAPTION
from nextflow_data.decisions import Decision, Finding, Subject, decision
from nextflow_data.document import Document, Image, Node

MAX_WAITING = 1024
"""Documents held at most; a batch that is not full is then asked for. Our choice: some tens of megabytes."""


@dataclass
class _Waiting:
    """A document whose images are not all captioned yet."""

    document: Document
    indices: list[int]
    captions: list[Caption] = field(default_factory=list)

    @property
    def done(self) -> bool:
        return len(self.captions) == len(self.indices)


def caption_documents(
    documents: Iterable[Document], captioner: Captioner[Any], batch_images: int
) -> Iterator[tuple[Document, list[Decision]]]:
    """Each document with a caption on every image that has words, each naming its captioner, and what was refused.

    `captioner` of an image becomes "name/version:source". Images without a caption are flagged, not dropped. Raises what the
    captioner raises, and ValueError where it gives another number of captions than it was asked for.
    """
    waiting: deque[_Waiting] = deque()
    asked: deque[tuple[_Waiting, CaptionRequest]] = deque()

    def answer(least: int) -> None:
        while len(asked) >= least:
            batch = [asked.popleft() for _ in range(min(batch_images, len(asked)))]
            captions = captioner.caption([request for _, request in batch])
            if len(captions) != len(batch):
                raise ValueError(f"captioner {captioner.name} gave {len(captions)} captions for {len(batch)} images")
            for (owner, _), caption in zip(batch, captions, strict=True):
                owner.captions.append(caption)

    for document in documents:
        nodes = document["nodes"]
        one = _Waiting(document, [index for index, node in enumerate(nodes) if node["image"] is not None])
        waiting.append(one)
        asked += [(one, _request(nodes, index)) for index in one.indices]
        answer(batch_images)
        if len(waiting) > MAX_WAITING:
            answer(1)
        while waiting and waiting[0].done:
            yield _captioned(waiting.popleft(), captioner)
    answer(1)
    while waiting:
        yield _captioned(waiting.popleft(), captioner)


def _request(nodes: Sequence[Node], index: int) -> CaptionRequest:
    image = nodes[index]["image"]
    assert image is not None
    before = nodes[index - 1]["text"] if index > 0 else None
    after = nodes[index + 1]["text"] if index + 1 < len(nodes) else None
    return CaptionRequest(image, before or "", after or "")


def _captioned(one: _Waiting, captioner: Captioner[Any]) -> tuple[Document, list[Decision]]:
    nodes, subject, decisions = list(one.document["nodes"]), Subject.of(one.document), list[Decision]()
    for index, caption in zip(one.indices, one.captions, strict=True):
        found = nodes[index]["image"]
        assert found is not None
        decisions += [decision(subject, CAPTION, refusal, "flag", index) for refusal in caption.refusals]
        if caption.text is None:
            nothing = Finding("caption.none", detail=found["address"] or "")
            decisions.append(decision(subject, CAPTION, nothing, "flag", index))
        who = f"{captioner.name}/{captioner.version}:{caption.source}" if caption.text is not None else None
        image: Image = {**found, "caption": caption.text, "captioner": who}
        nodes[index] = {**nodes[index], "image": image}
    return {**one.document, "nodes": nodes}, decisions
