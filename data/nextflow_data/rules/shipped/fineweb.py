"""fineweb: FineWeb's rules on lines, by datatrove's filter."""

from __future__ import annotations

from typing import Any

from pydantic import Field

from nextflow_data.common.section import Section
from nextflow_data.decisions import Finding
from nextflow_data.rules.datatrove_rule import DatatroveRule
from nextflow_data.rules.rule import rule


class FineWebRules(Section):
    """datatrove's FineWebQualityFilter (Penedo et al. 2024, arXiv 2406.17557, §3.6)."""

    line_punct_thr: float = Field(default=0.05, ge=0, le=1)
    """Ours; published: 0.12. Smallest share of lines that end in a final mark; lines of code and of tables count too."""
    line_punct_exclude_zero: bool = False
    """Published."""
    short_line_thr: float = Field(default=0.85, ge=0, le=1)
    """Ours; published: 0.67. Largest share of lines of at most `short_line_length` characters."""
    short_line_length: int = 30
    """Published."""
    char_duplicates_ratio: float = Field(default=0.2, ge=0, le=1)
    """Ours; published: 0.01, which one repeated table row passes. Largest share of characters in repeated lines."""
    new_line_ratio: float = Field(default=0.5, ge=0)
    """Ours; published: 0.3. Most line breaks per word; paragraphs here are parted by two."""


@rule
class FineWeb(DatatroveRule[FineWebRules]):
    """Reads one line a line, as in FineWeb: those that are not empty. The verdict is datatrove's."""

    name = "fineweb"
    Config = FineWebRules
    words = {
        "line_punct_thr": "too few lines end in a final mark",
        "short_line_thr": "too many lines are short",
        "char_duplicates_ratio": "too much of the text is in repeated lines",
        "new_line_ratio": "too many line breaks for its words",
        "empty": "there is no text",
    }

    def made(self, tokenizer: Any) -> Any:
        from datatrove.pipeline.filters.fineweb_quality_filter import FineWebQualityFilter

        return FineWebQualityFilter(**self.config.model_dump(), language=tokenizer)

    def read(self, text: str) -> str:
        return "\n".join(self.datatrove.lines_of(text))

    def measured(self, reason: str, text: str) -> Finding:
        from datatrove.pipeline.filters.gopher_repetition_filter import find_duplicates

        rules = self.config
        words_of = self.datatrove.tokenizer().word_tokenize
        lines = [line for line in text.split("\n") if line.strip()]
        match reason:
            case "line_punct_ratio":
                stops = self.filter.stop_chars
                field, value = "line_punct_thr", sum(line.endswith(stops) for line in lines) / len(lines)
            case "short_line_ratio":
                short = sum(len(line) <= rules.short_line_length for line in lines)
                field, value = "short_line_thr", short / len(lines)
            case "char_dup_ratio":
                field, value = "char_duplicates_ratio", find_duplicates(lines)[1] / len(text.replace("\n", ""))
            case "list_ratio":
                field, value = "new_line_ratio", text.count("\n") / len(words_of(text))
            case _:
                return self.found("empty", 0.0)
        return self.found(field, value)
