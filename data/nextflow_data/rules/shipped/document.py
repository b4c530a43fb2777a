"""document: whether what is left of a document is worth having."""

from __future__ import annotations

from pydantic import Field

from nextflow_data.common.section import Section
from nextflow_data.decisions import Finding
from nextflow_data.document import Document
from nextflow_data.nodes import text_of
from nextflow_data.rules.rule import DocumentRule, rule


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


@rule
class WhatIsLeft(DocumentRule[DocumentRules]):
    """Images and characters of text, and the one by the other."""

    name = "document"
    Config = DocumentRules
    words = {
        "min_images": "too few images are left",
        "max_images": "too many images",
        "min_characters": "too little text is left",
        "min_characters_per_image": "too little text for its images",
        "empty": "nothing is left",
    }

    def judge(self, document: Document) -> Finding | None:
        rules = self.config
        images = sum(node["kind"] == "image" for node in document["nodes"])
        characters = len(text_of(document))
        if images < rules.min_images:
            return self.found("min_images", float(images))
        if images > rules.max_images:
            return self.found("max_images", float(images))
        if characters < rules.min_characters:
            return self.found("min_characters", float(characters))
        if images and characters / images < rules.min_characters_per_image:
            return self.found("min_characters_per_image", characters / images)
        return None
