"""From a parsed page and the images of its archive to a document.

Images are looked up by canonical address among the records of the same source. One that is not there, or that is there and
cannot be decoded, leaves the document with a decision that says so. A `data:` image has no record of its own: its reference
is the page's record and its address is the page's with `#data-image-N`, N counting the page's data: images; to get at its
pixels (`data_image`) the page is parsed again. That is slow and rare; the gain is one kind of reference for every image, and
no pixels in documents.
"""

from __future__ import annotations

from collections.abc import Mapping

from nextflow_data.common.stage_names import INGEST
from nextflow_data.decisions import Aside, Decision, Finding, Subject, aside, decision
from nextflow_data.document import Document, Image, Node, doc_id, image_node, text_node
from nextflow_data.images.measure import image_of
from nextflow_data.nodes import BLOCK_SEPARATOR, task_of
from nextflow_data.pages.blocks import PAGE_CAPTIONER, ImageCandidate, PageContent, TextBlock
from nextflow_data.records import RecordInfo, ref_of, source_of

DATA_FRAGMENT = "#data-image-"


def image_addresses(parsed: PageContent) -> list[str]:
    """Every canonical address at which an image of the page may be found, in document order, each once."""
    return list(dict.fromkeys(a for block in parsed.blocks if isinstance(block, ImageCandidate) for a in block.addresses))


def data_image(parsed: PageContent, address: str) -> bytes | None:
    """The bytes of the `data:` image of that address, None where the page has none of its number."""
    number = address.partition(DATA_FRAGMENT)[2]
    for block in parsed.blocks:
        if isinstance(block, ImageCandidate) and block.data is not None and str(block.data_index) == number:
            return block.data
    return None


def assemble(
    record: RecordInfo,
    parsed: PageContent,
    images: Mapping[str, Image],
    rejected: Mapping[str, str] | None = None,
) -> tuple[Document | None, list[Decision], list[Aside]]:
    """The document of one page, the decisions that made it, and what of it was put aside.

    `images` maps canonical addresses to measured images, `rejected` those that could not be measured to their reason. A page
    with neither text nor an image gives None and an Aside "empty-page".
    """
    subject = Subject(doc_id(record["address"], record["record_id"]), record["address"])
    decisions = [_decide(subject, Finding(r.rule, r.value, r.threshold, r.detail)) for r in parsed.removed]
    asides: list[Aside] = []
    nodes: list[Node] = []
    gathered: list[TextBlock] = []

    def close_text() -> None:
        if gathered:
            nodes.append(text_node(_join(gathered)))
            gathered.clear()

    for block in parsed.blocks:
        if isinstance(block, TextBlock):
            gathered.append(block)
            continue
        image = _resolve(block, record, images, rejected or {}, subject, decisions, asides)
        if image is not None:
            close_text()
            nodes.append(image_node(image))
    close_text()
    if not nodes:
        detail = "neither text nor images after boilerplate was left out"
        asides.append(aside(INGEST, "empty-page", record["address"], ref_of(record), detail))
        return None, [], asides
    document: Document = {
        "doc_id": subject.doc_id,
        "source": source_of(record),
        "nodes": nodes,
        "task": task_of(nodes),
        "licence": record.get("licence") or parsed.licence,
        "consent": None,
        "lang": None,
    }
    return document, decisions, asides


def _resolve(
    block: ImageCandidate,
    record: RecordInfo,
    images: Mapping[str, Image],
    rejected: Mapping[str, str],
    subject: Subject,
    decisions: list[Decision],
    asides: list[Aside],
) -> Image | None:
    """The first of a candidate's addresses that is at hand, with the page's words; or None and a decision."""
    found: Image | None = next((images[address] for address in block.addresses if address in images), None)
    if found is None and block.measured is not None:
        address = f"{record['address']}{DATA_FRAGMENT}{block.data_index}"
        if isinstance(block.measured, tuple):
            reason, detail = block.measured
            asides.append(aside(INGEST, reason, address, ref_of(record), detail))
            decisions.append(_decide(subject, Finding("image-unusable", detail=f"{address}: {reason}")))
            return None
        found = image_of(ref_of(record), address, block.measured)
    if found is None:
        why = next((f"{address}: {rejected[address]}" for address in block.addresses if address in rejected), None)
        rule = "image-not-in-source" if why is None else "image-unusable"
        decisions.append(_decide(subject, Finding(rule, detail=why or " ".join(block.addresses)[:500])))
        return None
    caption = block.figcaption
    return {**found, "alt": block.alt, "caption": caption, "captioner": PAGE_CAPTIONER if caption else None}


def _join(blocks: list[TextBlock]) -> str:
    """One text of blocks in order: pieces of one paragraph by a space, list items and table rows by a line break."""
    text, last = blocks[0].text, blocks[0]
    for block in blocks[1:]:
        if block.paragraph == last.paragraph:
            separator = "" if block.text[0] in ",.;:!?)" and last.kind != "pre" else " "
        elif block.kind == last.kind and block.kind in ("list", "table"):
            separator = "\n"
        else:
            separator = BLOCK_SEPARATOR
        text, last = text + separator + block.text, block
    return text


def _decide(subject: Subject, finding: Finding) -> Decision:
    return decision(subject, INGEST, finding, "flag" if finding.rule.startswith("charset") else "edit")
