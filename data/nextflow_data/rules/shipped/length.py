"""length: a text beyond all measure is dropped before anything reads it."""

from __future__ import annotations

from pydantic import Field

from nextflow_data.common.section import Section
from nextflow_data.document import Document
from nextflow_data.rules.rule import TextRule, Verdict, rule


class LengthRules(Section):
    """Bounds the time and memory that one document may take. Ours."""

    max_characters: int = Field(default=1_000_000, gt=0)
    """Most characters of text: beyond, the tokenisation's time and memory are not worth the document."""


@rule
class Length(TextRule[LengthRules]):
    """Characters of the whole text."""

    name = "length"
    Config = LengthRules
    words = {"max_characters": "too much text to be worth its cost"}

    def judge(self, text: str, document: Document) -> Verdict:
        if len(text) > self.config.max_characters:
            return Verdict(self.found("max_characters", float(len(text))))
        return Verdict()
