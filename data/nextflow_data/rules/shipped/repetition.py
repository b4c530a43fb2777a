"""repetition: Gopher's rules on repeated lines, paragraphs and phrases, by datatrove's filter."""

from __future__ import annotations

from typing import Any

from nextflow_data.common.section import Section
from nextflow_data.decisions import Finding
from nextflow_data.rules.datatrove_rule import DatatroveRule
from nextflow_data.rules.rule import rule


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


@rule
class GopherRepetition(DatatroveRule[GopherRepetitionRules]):
    """The verdict is datatrove's; what failed is measured again."""

    name = "repetition"
    Config = GopherRepetitionRules
    words = {
        "dup_line_frac": "too many lines are repeated",
        "dup_para_frac": "too many paragraphs are repeated",
        "dup_line_char_frac": "too much of the text is in repeated lines",
        "dup_para_char_frac": "too much of the text is in repeated paragraphs",
    }

    def made(self, tokenizer: Any) -> Any:
        from datatrove.pipeline.filters.gopher_repetition_filter import GopherRepetitionFilter

        return GopherRepetitionFilter(**self.config.model_dump(), language=tokenizer)

    @classmethod
    def means(cls, check: str) -> str:
        group, _, n = check.partition(".")
        if group == "top_n_grams":
            return f"one phrase of {n} words makes up too much of the text"
        return (
            f"too much of the text is in repeated phrases of {n} words" if group == "dup_n_grams" else super().means(check)
        )

    def measured(self, reason: str, text: str) -> Finding:
        from datatrove.pipeline.filters.gopher_repetition_filter import (
            find_all_duplicate,
            find_duplicates,
            find_top_duplicate,
            get_n_grams,
        )

        paragraphs = self.filter.paragraph_exp.split(text.strip())
        lines = self.filter._line_splitter.split(text)
        words_of = self.datatrove.tokenizer().word_tokenize
        match reason:
            case "dup_para_frac":
                value = find_duplicates(paragraphs)[0] / len(paragraphs)
            case "dup_para_char_frac":
                value = find_duplicates(paragraphs)[1] / len(text)
            case "dup_line_frac":
                value = find_duplicates(lines)[0] / len(lines)
            case "dup_line_char_frac":
                value = find_duplicates(lines)[1] / len(text)
            case _ if reason.startswith("top_"):
                n = int(reason.split("_")[1])
                value = find_top_duplicate(get_n_grams(words_of(text), n)) / len(text)
                return Finding(f"{self.name}.top_n_grams.{n}", value, dict(self.config.top_n_grams)[n])
            case _ if reason.startswith("duplicated_"):
                n = int(reason.split("_")[1])
                value = find_all_duplicate(words_of(text), n) / len(text)
                return Finding(f"{self.name}.dup_n_grams.{n}", value, dict(self.config.dup_n_grams)[n])
            case _:
                return Finding(f"{self.name}.{reason}")
        return self.found(reason, value)
