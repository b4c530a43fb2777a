"""quality: Gopher's rules on words and lines, by datatrove's filter."""

from __future__ import annotations

from typing import Any

from nextflow_data.common.section import Section
from nextflow_data.decisions import Finding
from nextflow_data.rules.datatrove_rule import DatatroveRule
from nextflow_data.rules.rule import rule


class GopherQualityRules(Section):
    """datatrove's GopherQualityFilter (Rae et al. 2021, arXiv 2112.11446, A.1.1). None turns a rule off."""

    min_doc_words: int | None = 20
    """Ours; published: 50. A short caption page with good images is worth having."""
    max_doc_words: int | None = 100_000
    """Published."""
    min_avg_word_length: int | None = 3
    """Published."""
    max_avg_word_length: int | None = 10
    """Published."""
    max_symbol_word_ratio: float | None = 0.1
    """Published."""
    max_bullet_lines_ratio: float | None = 0.9
    """Published."""
    max_ellipsis_lines_ratio: float | None = 0.3
    """Published."""
    min_alpha_words_ratio: float | None = 0.45
    """Ours; published: 0.8 (datatrove calls it max_non_alpha_words_ratio), which spaCy's split of punctuation into words of
    their own makes much harsher than the paper meant: it drops half of a programming manual."""
    min_stop_words: int | None = 2
    """Published."""


@rule
class GopherQuality(DatatroveRule[GopherQualityRules]):
    """The verdict is datatrove's; what failed is measured again."""

    name = "quality"
    Config = GopherQualityRules
    words = {
        "min_doc_words": "too few words",
        "max_doc_words": "too many words",
        "min_avg_word_length": "words are too short on average",
        "max_avg_word_length": "words are too long on average",
        "max_symbol_word_ratio": "too many # or … for its words",
        "max_bullet_lines_ratio": "too many lines are bullet points",
        "max_ellipsis_lines_ratio": "too many lines end in an ellipsis",
        "min_alpha_words_ratio": "too few words have a letter in them",
        "min_stop_words": "too few of the commonest words of the language",
    }

    def made(self, tokenizer: Any) -> Any:
        from datatrove.pipeline.filters.gopher_quality_filter import GopherQualityFilter

        return GopherQualityFilter(
            **self.config.model_dump(exclude={"min_alpha_words_ratio"}),
            max_non_alpha_words_ratio=self.config.min_alpha_words_ratio,
            language=tokenizer,
        )

    def measured(self, reason: str, text: str) -> Finding:
        import numpy as np
        from datatrove.utils.text import PUNCTUATION_SET

        words = self.datatrove.tokenizer().word_tokenize(text)
        lines = text.splitlines()
        plain = [w for w in words if any(ch not in PUNCTUATION_SET for ch in w)]
        match reason:
            case "gopher_short_doc":
                field, value = "min_doc_words", float(len(plain))
            case "gopher_long_doc":
                field, value = "max_doc_words", float(len(plain))
            case "gopher_below_avg_threshold":
                field, value = "min_avg_word_length", float(np.mean([len(w) for w in plain]))
            case "gopher_above_avg_threshold":
                field, value = "max_avg_word_length", float(np.mean([len(w) for w in plain]))
            case "gopher_too_many_hashes":
                field, value = "max_symbol_word_ratio", text.count("#") / len(words)
            case "gopher_too_many_ellipsis":
                field, value = "max_symbol_word_ratio", (text.count("...") + text.count("…")) / len(words)
            case "gopher_too_many_bullets":
                bullets = sum(line.lstrip().startswith(("•", "-")) for line in lines)
                field, value = "max_bullet_lines_ratio", bullets / len(lines)
            case "gopher_too_many_end_ellipsis":
                field, value = "max_ellipsis_lines_ratio", sum(s.rstrip().endswith(("...", "…")) for s in lines) / len(lines)
            case "gopher_below_alpha_threshold":
                field, value = "min_alpha_words_ratio", sum(any(c.isalpha() for c in w) for w in words) / len(words)
            case "gopher_enough_stop_words":
                stop_words = self.filter.stop_words
                field, value = "min_stop_words", float(len(stop_words & set(words)))
            case _:
                return Finding(f"{self.name}.{reason}")
        return self.found(field, value, reason)
