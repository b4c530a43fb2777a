"""A parsed page as text, between the one reading of its source and the finding of its images.

JSON lists, compact: the licence, blocks in order, what was left out. The page's own images (`data:`) are measured
here, while their bytes are at hand, and only the measures go on.
"""

from __future__ import annotations

import json
from typing import Any

from nextflow_data.config import IngestConfig
from nextflow_data.images.measure import try_measure
from nextflow_data.pages.blocks import ImageCandidate, PageContent, Removed, TextBlock


def draft_text(page: PageContent, config: IngestConfig) -> str:
    """What `assemble` needs of a page, as text for `page_of`."""
    blocks: list[Any] = []
    for block in page.blocks:
        if isinstance(block, TextBlock):
            blocks.append([block.kind, block.text, block.paragraph])
            continue
        measured = None if block.data is None else try_measure(block.data, config)
        blocks.append([block.addresses, block.alt, block.figcaption, block.data_index, measured])
    removed = [[one.rule, one.value, one.threshold, one.detail] for one in page.removed]
    return json.dumps([page.licence, blocks, removed], ensure_ascii=False, separators=(",", ":"))


def page_of(draft: str) -> PageContent:
    """The page of a draft, without pixels."""
    licence, blocks, removed = json.loads(draft)
    page = PageContent(licence=licence)
    for block in blocks:
        if len(block) == 3:
            page.blocks.append(TextBlock(*block))
            continue
        addresses, alt, figcaption, data_index, measured = block
        page.blocks.append(
            ImageCandidate(
                tuple(addresses),
                alt,
                data_index=data_index,
                measured=tuple(measured) if isinstance(measured, list) else measured,
                figcaption=figcaption,
            )
        )
    page.removed.extend(Removed(*one) for one in removed)
    return page
