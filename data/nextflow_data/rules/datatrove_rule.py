"""A text rule whose verdict is a filter of datatrove's: asked for its name of what failed, which is then measured again."""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from nextflow_data.decisions import Finding
from nextflow_data.document import Document
from nextflow_data.rules.rule import C, TextRule, Verdict


class DatatroveRule(TextRule[C]):
    """`datatrove` is `nextflow_data.rules.datatrove_filters`, imported when a rule is made; `filter` is datatrove's own."""

    def __init__(self, config: C) -> None:
        from nextflow_data.rules import datatrove_filters

        super().__init__(config)
        self.datatrove = datatrove_filters
        self.filter = self.made(datatrove_filters.tokenizer())

    @abstractmethod
    def made(self, tokenizer: Any) -> Any:
        """datatrove's filter with this rule's thresholds; `tokenizer` is the one that all share."""

    def read(self, text: str) -> str:
        """The text as the filter is given it."""
        return text

    @abstractmethod
    def measured(self, reason: str, text: str) -> Finding:
        """What failed, by datatrove's name of it, with its value in the text that the filter was given."""

    def judge(self, text: str, document: Document) -> Verdict:
        given = self.read(text)
        reason = self.datatrove.reason(self.filter.filter(self.datatrove.document(given)))
        return Verdict() if reason is None else Verdict(self.measured(reason, given))
